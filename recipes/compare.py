"""Compare objectives at equal label budgets: run them all, seed by seed, and write what came of it.

    python recipes/compare.py --config configs/compare_digits.yaml                     # hours; the same command goes on where it stopped
    python recipes/compare.py --config configs/compare_digits.yaml --quick             # one seed, one budget
    python recipes/compare.py --config configs/compare_digits.yaml --seeds 0 --budgets 50 200 --variants comply   # a part of it
    python recipes/compare.py --config configs/compare_digits.yaml --collect           # only write the results of what is finished
    python recipes/compare.py --config configs/compare_digits.yaml --workers 2         # so many runs at once

Every run is a directory of its own below `out`, made by recipes/close.py (objectives) or `gapclose measure` (inference-time methods), with
its output beside it. Epochs are chosen on val inside the runs; shifts of trained models and alternatives of a way are chosen on val here, and what
was chosen is judged on test.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from comparison.tables import Row, write_results

from gapclose.core.files import read_json, write_json
from gapclose.core.logging import configure_logging, get_logger, progress
from gapclose.evaluation.baselines.compare import BUDGETS
from gapclose.evaluation.run_records import record_of
from gapclose.pipeline.config import parse_config, refuse_other_run

logger = get_logger(__name__)

ROOT = Path(__file__).parents[1]
UNTRAINED = "untrained"
ONLY_BASELINES = ("labels", "residualise", "codelength", "blank", "layers", "interchange", "nested")
"""controls that are switched off where inference-time methods alone are asked for"""


@dataclass(kw_only=True)
class Comparison:
    """What is compared, as in configs/compare_digits.yaml."""

    out: str
    run: str
    seeds: list[int]
    budgets: list[int]
    objectives: list[str]
    standard_budget: float
    settings: dict[str, Any] = field(default_factory=dict)
    ways: dict[str, dict[str, Any] | list[dict[str, Any]]] = field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = field(default_factory=lambda: {"plain": {}})
    also_on: str | None = None
    quick: dict[str, Any] = field(default_factory=dict)

    def of_variant(self, variant: str) -> tuple[list[int], list[str], dict[str, Any]]:
        """Label budgets and ways of a variant, and the settings that make it."""
        settings = dict(self.variants[variant])
        budgets, ways = settings.pop("budgets", self.budgets), settings.pop("ways", [*self.objectives, UNTRAINED])
        settings.pop("also_on", None)
        return [b for b in budgets if b in self.budgets], ways, settings

    def alternatives(self, way: str) -> list[dict[str, Any]]:
        """The settings of a way; val chooses among several."""
        found = self.ways.get(way, {"objective": way})
        return [{"objective": "consistency", **settings} for settings in (found if isinstance(found, list) else [found])]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run."""

    variant: str
    budget: int
    seed: int
    way: str
    """an objective, a way of ``ways``, or ``untrained``"""
    alternative: int
    directory: Path

    @property
    def done(self) -> bool:
        if self.way == UNTRAINED:
            path = self.directory / "measurement.json"
            return path.is_file() and bool(read_json(path).get("baselines"))
        evidence = self.directory / "adapter" / "README.md"  # the last thing that an export without verification writes
        return record_of(self.directory, "adapted/test") is not None and evidence.is_file()


def read_comparison(path: Path, *, quick: bool) -> Comparison:
    """Raises: ValueError for keys that do not exist, are missing, or name no variant."""
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    known = Comparison.__dataclass_fields__
    unknown, missing = (
        sorted(set(tree) - set(known)),
        [k for k in ("out", "run", "seeds", "budgets", "objectives", "standard_budget") if k not in tree],
    )
    if unknown or missing:
        raise ValueError(f"{path}: unknown keys {unknown}, missing keys {missing}; the keys are {list(known)}")
    found = Comparison(**tree)
    if quick:
        short = dict(found.quick)
        names = short.pop("variants", list(found.variants))
        wrong = [*(n for n in names if n not in found.variants), *(k for k in short if k not in ("seeds", "budgets", "objectives"))]
        if wrong:
            raise ValueError(
                f"{path}: quick names {wrong}; it may have seeds, budgets, objectives, and variants among {list(found.variants)}"
            )
        found.variants = {name: found.variants[name] for name in names}
        found.__dict__.update(short)
    for tag in (found.also_on, *(keys.get("also_on") for keys in found.variants.values())):
        if tag is not None and "=" not in tag:
            raise ValueError(f"{path}: also_on is {tag!r}; write a tag and its value, e.g. phrasing=someone")
    known_ways = {*found.objectives, *found.ways, UNTRAINED}
    for name, keys in found.variants.items():
        wrong = [w for w in keys.get("ways", []) if w not in known_ways]
        lacking = [b for b in keys.get("budgets", []) if b not in found.budgets]
        if lacking:
            raise ValueError(f"{path}: variant {name!r} has budgets {lacking}; there are {found.budgets}")
        if wrong:
            raise ValueError(f"{path}: variant {name!r} has ways {wrong}; there are {sorted(known_ways)}")
    if found.standard_budget not in BUDGETS:
        raise ValueError(
            f"{path}: standard_budget is {found.standard_budget}; methods without training know {[b for b in BUDGETS if b is not None]}"
        )
    if not Path(found.run).is_file():
        raise ValueError(f"{path}: run {found.run!r} is no configuration file")
    return found


def narrow(
    of: Comparison, seeds: list[int] | None, budgets: list[int] | None, variants: list[str] | None, ways: list[str] | None = None
) -> None:
    """Keep these seeds, budgets, variants and ways only. Raises: ValueError for one that is not there."""
    there = sorted({way for variant in of.variants for way in of.of_variant(variant)[1]})
    for flag, asked, known in (("budgets", budgets, of.budgets), ("variants", variants, list(of.variants)), ("ways", ways, there)):
        unknown = [name for name in asked or [] if name not in known]
        if unknown:
            raise ValueError(f"--{flag} names {unknown}; there are {known}")
    of.seeds = seeds or of.seeds
    of.budgets = budgets or of.budgets
    of.variants = {name: keys for name, keys in of.variants.items() if name in (variants or of.variants)}
    if ways:
        of.variants = {name: keys | {"ways": [w for w in of.of_variant(name)[1] if w in ways]} for name, keys in of.variants.items()}


def check(of: Comparison, todo: list[Job]) -> None:
    """Parse the configuration of every run, and compare it with what its directory holds.

    Raises:
        ValueError: for a key or value that no run can have, two runs in one directory, or a run of other settings.
    """
    places = Counter(j.directory for j in todo)
    twice = [str(place) for place, count in places.items() if count > 1]
    if twice:
        raise ValueError(f"several runs would share {twice[:3]}; name the variants so that letters and digits tell them apart")
    kinds: set[tuple[str, str, int]] = set()
    for job in todo:
        kind, stored = (job.variant, job.way, job.alternative), job.directory / "config.yaml"
        if kind not in kinds or stored.is_file():  # parsing takes a tenth of a second, and seeds and budgets are numbers
            words = command(of, job)
            refuse_other_run(parse_config(words[words.index("--config") :]), stored)
        kinds.add(kind)


def jobs(of: Comparison) -> list[Job]:
    """All runs, seed by seed, so that an interrupted comparison has whole seeds."""
    found = []
    for seed in of.seeds:
        for variant in of.variants:
            name = "-".join("".join(c if c.isalnum() else " " for c in variant).split())
            budgets, ways, _ = of.of_variant(variant)
            for budget, way in product(budgets, ways):
                for n in range(1 if way == UNTRAINED else len(of.alternatives(way))):
                    place = f"{way.replace(' ', '-').replace(',', '')}-seed{seed}" + (f"-alternative{n}" if n else "")
                    directory = Path(of.out) / name / f"{budget}-labels" / place
                    found.append(Job(variant=variant, budget=budget, seed=seed, way=way, alternative=n, directory=directory))
    return found


def command(of: Comparison, job: Job) -> list[str]:
    """The command line of a run."""
    settings = {**of.settings, "gap.standard_budget": of.standard_budget, "gap.choose": "shifted", **of.of_variant(job.variant)[2]}
    settings |= {"labelling.budget": job.budget, "seed": job.seed, "run_dir": job.directory}
    settings |= {"export.unimproved": True}  # the adapted model's figures are wanted whatever they are
    settings |= {"observe.shared": Path(of.out) / "base"}  # its runs see the same items under the same base
    if job.way == UNTRAINED:
        settings |= {f"controls.{name}": False for name in ONLY_BASELINES} | {"controls.protocol": None}
        start = [sys.executable, "-m", "gapclose.pipeline.cli", "measure"]
    else:
        # a reading from few labels may not be shown to be real; what it is worth then is the question here
        settings |= {**of.alternatives(job.way)[job.alternative], "force": True}
        start = [sys.executable, str(ROOT / "recipes" / "close.py")]
    return [*start, "--config", of.run, *(f"--{key}={_word(value)}" for key, value in settings.items())]


def _word(value: Any) -> str:
    """A value as the command line takes it: YAML, in which a float may be ``.inf``."""
    return str(value) if isinstance(value, (str, Path)) else yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def run(of: Comparison, job: Job) -> Job | None:
    """Run a job unless it is done; returns it when it failed."""
    if job.done:
        return None
    job.directory.mkdir(parents=True, exist_ok=True)
    with (job.directory / "output.txt").open("a") as output:
        child = subprocess.Popen(command(of, job), stdout=output, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    path = job.directory / "cost.json"
    before = read_json(path)["cpu_seconds"] if path.is_file() else 0.0
    observed = [read_json(p) for p in job.directory.glob("observations/*/manifest.json")]
    taken = sum(m["cpu_seconds"] for m in observed if "taken_from" in m)  # a run that stood alone would have spent it too
    write_json(path, {"cpu_seconds": round(before + used.ru_utime + used.ru_stime, 1), "cpu_seconds_of_others": round(taken, 1)})
    return None if child.returncode == 0 and job.done else job


def gather_rows(every: list[Job]) -> list[Row]:
    """The ways that are finished, with all their alternatives: val chooses among all of them or not at all."""
    together: dict[tuple[str, int, int, str], list[Job]] = {}
    for job in every:
        together.setdefault((job.variant, job.budget, job.seed, job.way), []).append(job)
    return [
        Row(variant=variant, labels=labels, seed=seed, way=way, directories=[j.directory for j in jobs])
        for (variant, labels, seed, way), jobs in together.items()
        if all(j.done for j in jobs)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="what the file's `quick` names")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these")
    parser.add_argument("--budgets", type=int, nargs="+", help="only these")
    parser.add_argument("--variants", nargs="+", help="only these")
    parser.add_argument("--ways", nargs="+", help="only these")
    parser.add_argument("--collect", action="store_true", help="run nothing")
    parser.add_argument("--workers", type=int, default=1, help="runs at once, one thread each")
    parser.add_argument(
        "--out",
        type=Path,
        help="write the results here (default: results.md in the comparison's directory; of a part of it, results-part.md)",
    )
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    configure_logging("info")
    try:
        of = read_comparison(args.config, quick=args.quick)
        narrow(of, args.seeds, args.budgets, args.variants, args.ways)
        todo = jobs(of)
        check(of, todo)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = []
    if not args.collect:
        waiting = [j for j in todo if not j.done]
        logger.info(f"{len(todo)} runs, {len(todo) - len(waiting)} of them finished before")
        with ThreadPoolExecutor(args.workers) as pool:
            failed = [j for j in progress(pool.map(lambda j: run(of, j), waiting), len(waiting), "runs") if j is not None]
    for job in failed:
        print(f"failed: {job.directory}; its output is in {job.directory / 'output.txt'}", file=sys.stderr)
    part = args.quick or args.seeds or args.budgets or args.variants or args.ways
    rows, path = gather_rows(todo), args.out or Path(of.out) / ("results-part.md" if part else "results.md")
    if not rows:
        print(f"error: no run below {of.out} is finished (of a way with alternatives, all); start without --collect", file=sys.stderr)
        return 2
    try:
        also_on = {name: keys.get("also_on", of.also_on) for name, keys in of.variants.items()}
        write_results(rows, path, of.standard_budget, len(todo), objectives=of.objectives, also_on=also_on)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    logger.info(f"{len({d for row in rows for d in row.directories})} of {len(todo)} runs: {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
