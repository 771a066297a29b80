"""Check at the start that the files of a run can be read, and report all damaged files together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

from gapclose.core.files import read_json
from gapclose.core.tensor_files import reading
from gapclose.evaluation.run_records import read_records
from gapclose.training.trackers.config import TRACKERS

NEEDED: dict[str, tuple[str, ...]] = {
    "items.json": ("fingerprint",),
    "measurement.json": ("verdicts",),
    "change.json": ("epoch",),
    "gate.json": ("verdicts",),
    **{f"{name}.json": ("id",) for name in TRACKERS},
}
"""file of a run -> required keys"""
OTHERS = ("auto.json", "environment.json", "stopped.json")
OBSERVED: dict[str, tuple[str, ...]] = {"request.json": ("fingerprint",), "manifest.json": ("fingerprint", "shards")}


def refuse_damaged_files(directory: Path) -> None:
    """Try to read the records, manifests and shards of a run.

    Checksums of shards need a pass over the data and are compared when the shards are read. Frozen
    probes, targets, figures and exports are rewritten at every start. Checkpoints are checked when
    training resumes.

    Raises:
        ValueError: naming every damaged file, with the remedy.
    """
    problems = list[str]()
    for try_one in _attempts(directory):
        try:
            try_one()
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(problems[0] if len(problems) == 1 else "\n".join([f"{directory}:", *(f"  - {p}" for p in problems)]))


def _attempts(directory: Path) -> Iterator[Callable[[], Any]]:
    yield lambda: read_records(directory)
    for name, needs in {**NEEDED, **dict.fromkeys(OTHERS, ())}.items():
        if (path := directory / name).is_file():
            yield lambda path=path, needs=needs: read_json(path, *needs)
    if (path := directory / "rounds.json").is_file():
        yield lambda: read_json(path, kind=list)
    for path in sorted((directory / "probes").glob("random_*.safetensors")):
        yield lambda path=path: _open(path)
    for path in sorted((directory / "observations").glob("*/*")):
        if path.name in OBSERVED:
            yield lambda path=path: read_json(path, *OBSERVED[path.name])
        elif path.suffix == ".safetensors" and not path.name.startswith("."):
            yield lambda path=path: _open(path)


def _open(path: Path) -> None:
    with reading(path), safe_open(path, framework="pt"):
        pass
