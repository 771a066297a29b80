"""Whether the files that a run goes on from can be read: all of them are tried at the start, and all that is damaged is told at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

from gapclose.core.files import read_json
from gapclose.core.tensor_files import reading
from gapclose.evaluation.run_records import read_records

NEEDED: dict[str, tuple[str, ...]] = {
    "items.json": ("fingerprint",),
    "measurement.json": ("verdicts",),
    "gate.json": ("verdicts",),
    "wandb.json": ("id",),
}
"""file of a run -> keys that it must have"""
OTHERS = ("environment.json", "stopped.json")
OBSERVED: dict[str, tuple[str, ...]] = {"request.json": ("fingerprint",), "manifest.json": ("fingerprint", "shards")}


def refuse_damaged_files(directory: Path) -> None:
    """Try records, manifests and shards of a run; checksums of the shards, which take a pass over them, are compared when they are read.

    Frozen probes, targets, figures and exports are written anew at every start, and checkpoints are tried when one is gone on from.

    Raises:
        ValueError: naming every damaged file and what to do about it.
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
