"""What it takes to choose a probe from observations that do not fit in memory: disk, peak memory and time, by items and layers.

Sizes for a laptop (a minute or two), then larger ones, then shared out over two processes:
    python benchmarks/scale.py
    python benchmarks/scale.py --items 2000 4000 8000 --layers 2 8 16
    python benchmarks/scale.py --items 4000 --layers 8 --widths 896 --processes 2

Residuals are synthetic, in bfloat16: a spectrum that decays like 1 / rank over isotropic noise, a class signal that swells towards three
fifths of the depth, four questions to a clip that share part of their state. gapclose's own code writes them in shards of 128 items, as an observation does, and a fresh process for every size reads
them and chooses the probe. Memory is the peak resident set of that process over what it held before it opened the observation, with its
libraries awake (Linux: VmHWM is reset in between); pages of the shards that are mapped for the moment count.

Every width is measured at all items, the first of both at all layers. Of the last width the line of peak memory over N is tried on the largest N,
which it has not seen, and then carried over to 100,000 items of width 3,584: its slope is of residuals and their copies, N x D; what is left at N = 0 holds
covariances, D x D, and is taken to be them alone. Layers are told beside it: more of them take no more.

Shapes: N items, D width, L layers, C classes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console
from rich.table import Table

from gapclose.core.files import write_json
from gapclose.observe.store import StoredResiduals, read_observations, shard_path, write_shard
from gapclose.probes.config import FAMILIES, ProbeConfig
from gapclose.probes.search import choose_probe

SHARD = 128
TARGET = 100_000, 28, 3584  # items, layers, width
MB, GB = 1e6, 1e9


def labels(n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes and clips of the items, (N,) each."""
    return np.random.default_rng(0).permutation(np.arange(n) % classes), np.arange(n) // 4


def write(directory: Path, n: int, layers: int, width: int, classes: int) -> int:
    """Write an observation of N items and L layers; returns its bytes on disk."""
    y, draw, rank = torch.as_tensor(labels(n, classes)[0]), torch.Generator().manual_seed(0), min(512, width)
    spectrum = torch.arange(1, rank + 1) ** -0.5
    mixing = torch.randn(rank, width, generator=draw) * (spectrum / spectrum.norm())[:, None]
    means = torch.nn.functional.normalize(torch.randn(classes, rank, generator=draw))
    for s, places in enumerate(torch.arange(n).split(SHARD)):
        result: dict[str, Any] = {"ids": [str(p) for p in places.tolist()], "answers": [], "scores": torch.zeros(len(places), classes)}
        for layer in range(1, layers + 1):
            own, clip = (torch.randn(SHARD // k, rank, generator=draw).repeat_interleave(k, 0)[: len(places)] for k in (1, 4))
            signal = 2.2 * np.exp(-(((layer / layers - 0.6) / 0.25) ** 2)) * means[y[places]]
            noise = 0.5 * torch.randn(len(places), width, generator=draw)
            result[f"layer.{layer}"] = ((own + 0.5 * clip + signal) @ mixing + noise).bfloat16()
        write_shard(shard_path(directory, s), [result])
    write_json(directory / "manifest.json", {"shards": s + 1, "n_items": n, "fingerprint": "synthetic"})
    return sum(p.stat().st_size for p in directory.iterdir())


def memory(key: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process, in bytes."""
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))


def child(args: argparse.Namespace) -> None:
    """Read and choose in this process, or in this rank of several, and print what it took."""
    if "WORLD_SIZE" in os.environ:
        PartialState(cpu=True)
    config, looked = ProbeConfig(families=args.families), list[int]()
    few, (y, clips) = torch.randn(96, 32), labels(96, args.classes)
    concepts, given = [str(c) for c in range(args.classes)], {"seed": 0, "spread": "WORLD_SIZE" in os.environ}
    choose_probe({1: few}, y, clips, concepts, config, layers=[1], **given)  # libraries wake up

    def peak_from(before: int) -> float:
        peak = memory("VmHWM") - before
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        return peak / MB

    real = StoredResiduals.__getitem__
    StoredResiduals.__getitem__ = lambda self, layer: looked.append(layer) or real(self, layer)  # pyright: ignore
    peak_from(0)
    before, (y, clips) = memory("VmRSS"), labels(args.items[0], args.classes)
    residuals = read_observations(args.child).residuals
    opened = peak_from(before)
    residuals[1]
    layer = peak_from(before)
    looked.clear()
    start, busy = time.perf_counter(), time.process_time()
    choice = choose_probe(residuals, y, clips, concepts, config, layers=list(residuals), **given)
    seconds, used = time.perf_counter() - start, time.process_time() - busy
    facts = {"opened_mb": opened, "layer_mb": layer, "peak_mb": peak_from(before), "seconds": seconds, "cpu_seconds": used}
    chosen = [list(choice.probe.layers), choice.probe.family, choice.probe.strength, round(max(r["accuracy"] for r in choice.table), 4)]
    print(json.dumps({k: round(v, 2) for k, v in facts.items()} | {"layers_read": len(looked), "chosen": chosen}))


def measured(args: argparse.Namespace, n: int, layers: int, width: int, processes: int) -> dict[str, Any]:
    """One size: the most that a rank took, and what the observation takes on disk."""
    directory = Path(tempfile.mkdtemp(dir=args.directory))
    disk = write(directory, n, layers, width, args.classes)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(s.getsockname()[1]), "WORLD_SIZE": str(processes)}
    threads = str(max(1, (os.cpu_count() or 1) // args.processes))
    path = os.pathsep.join([str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    given = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    words = f"--child {directory} --items {n} --classes {args.classes} --families {' '.join(args.families)}".split()
    members = []
    for rank in range(processes):
        place = meet | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        command = [sys.executable, __file__, *words]
        members.append(subprocess.Popen(command, env=os.environ | given | place, stdout=subprocess.PIPE, text=True))
    try:
        found = [json.loads(member.communicate()[0].splitlines()[-1]) for member in members]
    finally:
        for member in members:
            member.kill()  # those that wait for one that failed
        shutil.rmtree(directory)
    assert all(of["chosen"] == found[0]["chosen"] for of in found), found
    worst = {key: max(of[key] for of in found) for key in found[0] if key != "chosen"}
    size = {"items": n, "layers": layers, "width": width, "processes": processes, "disk_mb": round(disk / MB, 2)} | worst
    print(", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in size.items()), flush=True)
    return size | {"chosen": found[0]["chosen"]}


def carried_over(rows: list[dict[str, Any]], width: int, layers: int) -> dict[str, Any]:
    """The line of peak memory over N at one width: tried on its largest N, which it has not seen, then carried over to the target."""
    here = [(row["items"], row["peak_mb"]) for row in rows if (row["width"], row["layers"], row["processes"]) == (width, layers, 1)]
    items, peaks = (np.array(of, dtype=float) for of in zip(*here, strict=True))
    slope, constant = np.polyfit(items[:-1], peaks[:-1], 1)
    predicted = slope * items[-1] + constant
    print(
        f"width {width}: by the line of the smaller sizes {items[-1]:,.0f} items take {predicted:,.0f} MB, and they took {peaks[-1]:,.0f} MB"
    )
    slope, constant = np.polyfit(items, peaks, 1)
    each, (n, target_layers, target_width) = slope * MB / width, TARGET
    grown = max(0.0, constant) * (target_width / width) ** 2
    print(f"{each:.1f} bytes an item and unit of width, and {constant:,.0f} MB whatever the items")
    print(
        f"{n:,} items x {target_layers} layers x {target_width:,}: on disk x 2 bytes = {2 * n * target_layers * target_width / GB:.1f} GB; of a process, whatever"
    )
    print(
        f"the layers, {each:.1f} x {n:,} x {target_width:,} = {each * n * target_width / GB:.1f} GB, and {grown / 1e3:.1f} GB at most that grow with the width alone"
    )
    facts = {"predicted_mb": predicted, "measured_mb": peaks[-1], "bytes_an_item_and_width": each, "constant_mb": constant}
    return {name: round(float(value), 2) for name, value in facts.items()} | {
        "target_gb": round((each * n * target_width / GB + grown / 1e3), 2)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[1000, 2000, 4000])
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument(
        "--processes", type=int, default=1, help="more than 1: the last items and layers at the first width by so many as well"
    )
    parser.add_argument("--directory", type=Path, help="where observations lie for the time being (default: the system's own)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args)
    setting = {k: v for k, v in vars(args).items() if k not in ("child", "directory")} | {
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    print(", ".join(f"{name} {value}" for name, value in setting.items()), flush=True)
    first, most = (args.items[0], args.layers[0], args.widths[0]), (args.items[-1], args.layers[-1], args.widths[0])
    sizes = [(n, args.layers[0], width, 1) for width in args.widths for n in args.items]
    sizes += [(first[0], layers, first[2], 1) for layers in args.layers[1:]]
    sizes += [(*most, processes) for processes in (1, args.processes)] if args.processes > 1 else []
    rows = [measured(args, *size) for size in dict.fromkeys(sizes)]
    keys = [key for key in rows[0] if key != "chosen"]
    table = Table(*(key.replace("_", " ") for key in keys))
    for row in rows:
        table.add_row(*(f"{row[key]:g}" for key in keys))
    Console(width=140).print(table)
    result: dict[str, Any] = {"setting": setting, "sizes": rows}
    if len(args.items) > 2:
        result |= carried_over(rows, args.widths[-1], args.layers[0])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
