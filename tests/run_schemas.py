"""The JSON Schemas of a run's files that ship with the package, and what of a run directory does not fit them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gapclose

FOLDER = Path(gapclose.__file__).parent / "pipeline" / "schemas"
EXPORTS = ("adapter", "merged", "omni")
PLACES = {
    "gap": ["gap.jsonl"],
    **{name: [f"{name}.json"] for name in ("auto", "change", "environment", "gate", "items", "measurement", "rounds")},
    "probe": ["probes/*.json"],
    **{name: [f"{folder}/{name}.json" for folder in EXPORTS] for name in ("evidence", "left_out", "serving")},
    "verified": ["adapter/verified.json"],
    "monitor": ["adapter/monitor/monitor.json"],
}
"""schema -> where its files lie in a run directory"""
OTHERS = (
    "observations/*/*.json",
    "checkpoints/**/*.json",
    "stopped.json",
    "callback.json",
    "wandb.json",
    "tensorboard.json",
    "trackio.json",
    "mlflow.json",
    "data-seed*/*.json*",
    *(f"{e}/**/*.json" for e in EXPORTS),
)
"""JSON without a schema of the run: internal files, the item set (gapclose/data/schemas), and what PEFT and transformers write"""


def read(path: Path) -> list[Any]:
    """The values in a file: its lines, or the whole of it."""
    content = path.read_text()
    return [json.loads(line) for line in content.splitlines()] if path.suffix == ".jsonl" else [json.loads(content)]


def files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Name of the schema and path of every file in a run directory that has one."""
    for name, patterns in PLACES.items():
        yield from ((name, path) for pattern in patterns for path in sorted(directory.glob(pattern)))


def misfit(name: str, value: Any) -> str:
    """What of a value does not fit a schema; empty where it fits."""
    jsonschema = pytest.importorskip("jsonschema", reason="the schemas are checked with jsonschema (the extra `dev`)")
    validator = jsonschema.Draft202012Validator(json.loads((FOLDER / f"{name}.json").read_text()))
    error = jsonschema.exceptions.best_match(validator.iter_errors(value))
    return f"{error.json_path}: {error.message}" if error else ""


def misfits(directory: Path) -> dict[str, str]:
    """File of a run -> what does not fit its schema, or that there is none."""
    found = {str(path): fault for name, path in files(directory) for value in read(path) if (fault := misfit(name, value))}
    known = {path for _, path in files(directory)} | {path for pattern in OTHERS for path in directory.glob(pattern)}
    return found | {str(path): "has no schema" for path in directory.rglob("*.json*") if path not in known}
