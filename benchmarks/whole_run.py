"""What whole commands cost on the shipped digits world, and what the savings that are on by default save.

    OMP_NUM_THREADS=1 python benchmarks/whole_run.py                      # half an hour on two CPU cores
    OMP_NUM_THREADS=1 python benchmarks/whole_run.py --repeats 1 -- --train.epochs 2

`gapclose close --config configs/digits.yaml` with its defaults, the same with whole prompts and without stored states, and `gapclose measure`
take turns in random order, each in a process and a directory of its own. CPU seconds are of the process and its children, from the start of Python
to its end. Options after `--` go to all of them.

The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from synthetic import between, quartiles

from gapclose.core.versions import versions_now

ROOT = Path(__file__).parent.parent
PLAIN = ("--observe.share_prefix", "false", "--train.cache_trunk", "false")
COMMANDS = {"close": ("close",), "close, savings off": ("close", *PLAIN), "measure": ("measure",)}


def taken(command: list[str], log: Path) -> tuple[float, float]:
    """Seconds and CPU seconds of a command.

    Raises:
        SystemExit: with its output, when it fails.
    """
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with log.open("w") as out:
        code = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False).returncode
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}:\n{log.read_text()[-4000:]}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--config", default=str(ROOT / "configs" / "digits.yaml"))
    parser.add_argument("options", nargs="*", help="of every command, after --")
    args = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    draw = np.random.default_rng(0)
    for _ in range(args.repeats):
        for name in draw.permutation(list(COMMANDS)):
            with tempfile.TemporaryDirectory() as folder:
                command, *more = COMMANDS[name]
                start = [sys.executable, "-m", "gapclose", command, "--config", args.config, "--run_dir", f"{folder}/run"]
                found[name].append(taken([*start, *more, *args.options], Path(folder) / "log"))
            print(f"{name}: {found[name][-1][0]:.0f} s, {found[name][-1][1]:.0f} s of CPU", flush=True)
    cpu = {name: np.array(rows)[:, 1] for name, rows in found.items()}
    ratio = quartiles(cpu["close"] / cpu["close, savings off"])
    table = Table("command", "CPU seconds", "quartiles", "seconds")
    for name, rows in found.items():
        spent = quartiles(cpu[name])
        table.add_row(
            name, f"{spent['median']:.0f}", f"{spent['lower_quartile']:.0f}-{spent['upper_quartile']:.0f}", f"{np.median(rows, 0)[0]:.0f}"
        )
    Console(width=100).print(table)
    print(f"close, by close with savings off: {ratio['median']:.2f} ({between(ratio)})")
    setting = {
        "config": args.config, "options": args.options, "rounds": args.repeats, "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"), "load_average": round(os.getloadavg()[0], 2), **versions_now(),
    }  # fmt: skip
    print(json.dumps({"setting": setting, "cpu_seconds": {n: quartiles(s) for n, s in cpu.items()}, "ratio": ratio}))


if __name__ == "__main__":
    main()
