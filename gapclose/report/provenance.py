"""Settings, environment and fingerprints of a run, as rows of the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gapclose.core.files import read_json
from gapclose.core.settings import read_settings


def _rows(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Flatten a nested dict to (dotted key, value); an interval is one value."""
    rows: list[tuple[str, Any]] = []
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and set(value) != {"value", "lower", "upper"}
        rows += _rows(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", value)]
    return rows


def settings(directory: Path) -> list[tuple[str, str]]:
    """Return every setting of a run.

    Absolute paths are cut to their last part, because pages are shared.
    """
    return [(key, _shown(value)) for key, value in read_settings(directory).items() if key != "run_dir"]


def _shown(value: Any) -> str:
    if isinstance(value, str) and value.startswith("/"):
        return f"…/{Path(value).name}"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def environment(directory: Path) -> list[tuple[str, str]]:
    """Return versions, device, seed and code revision, and the different ones of earlier starts."""
    path = directory / "environment.json"
    tree = read_json(path) if path.is_file() else {}
    several = (tree, *tree.pop("earlier", []))
    now, *starts = ({key.removeprefix("versions."): _shown(value) for key, value in _rows(one)} for one in several)
    others = [", ".join(f"{key} {value}" for key, value in start.items() if now.get(key) != value) for start in starts]
    return [*now.items(), *(("an earlier start", words) for words in others)]


def fingerprints(directory: Path) -> list[tuple[str, str]]:
    """Return the fingerprints of items, model and adapter."""
    found = []
    if (directory / "items.json").is_file():
        found.append(("items, media and labels", read_json(directory / "items.json")["fingerprint"]))
    for stage, label in (("base-test", "base model"), ("adapted-test", "adapted model")):
        path = directory / "observations" / stage / "manifest.json"
        if path.is_file():
            manifest = read_json(path)
            found += [(f"{label}, {key}", manifest[key]) for key in ("model", "adapter", "fingerprint") if manifest.get(key)]
    return found
