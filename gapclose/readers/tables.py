"""Rows of a table, whatever file holds them: JSON lines, JSON, CSV, Parquet, or what ``datasets`` saved to disk.

A table's name is its file's, without the numbers of shards: ``data/test-00000-of-00002.parquet`` belongs to ``test``.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapclose.errors import Problems

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
OTHER = ("dataset_info.json", "dataset_dict.json", "state.json", "dataset_infos.json")
"""files of JSON that hold no rows"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row and where it stands."""

    table: str
    place: str
    """file and line or row, for complaints"""
    values: dict[str, Any]


def table_files(directory: Path) -> dict[str, list[Path]]:
    """Table -> its files, in ``directory`` and in its folder ``data``."""
    found: dict[str, list[Path]] = defaultdict(list)
    for folder in (directory, directory / "data"):
        for path in sorted(folder.glob("*")) if folder.is_dir() else ():
            if path.suffix in SUFFIXES and path.name not in OTHER and path.is_file():
                found[re.sub(r"-\d+-of-\d+$", "", path.stem)].append(path)
    return dict(found)


def saved_datasets(directory: Path) -> dict[str, Path]:
    """Table -> folder that ``datasets`` saved it to; one that was saved alone is called ``all``."""
    if (directory / "state.json").is_file():
        return {"all": directory}
    return {p.parent.name: p.parent for p in sorted(directory.glob("*/state.json"))}


def table_names(directory: Path) -> list[str]:
    return sorted(saved_datasets(directory) or table_files(directory))


def read_tables(directory: Path, problems: Problems) -> list[Row]:
    """All rows of all tables, in the order of their names. Files that cannot be read go to ``problems``."""
    rows: list[Row] = []
    saved = saved_datasets(directory)
    if saved:
        for name, folder in sorted(saved.items()):
            rows += read_into(problems, name, folder, _saved)
        return rows
    readers = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    for name, files in sorted(table_files(directory).items()):
        for path in files:
            rows += read_into(problems, name, path, readers[path.suffix])
    return rows


def read_into(problems: Problems, table: str, path: Path, reader: Any = None) -> list[Row]:
    """The rows of one file, read by ``reader`` (default: as JSON)."""
    try:
        found = (reader or _json)(path)
    except (ValueError, OSError, KeyError, csv.Error) as error:  # JSON, UTF-8 and Arrow complain with ValueErrors
        problems.add(f"{path}: cannot be read ({str(error).splitlines()[0]}); write it again")
        return []
    if not found:
        problems.add(f"{path}: holds no rows; fill it or take it away")
    rows = []
    for place, values in found:
        if isinstance(values, dict):
            rows.append(Row(table=table, place=f"{path}:{place}", values=values))
        else:
            problems.add(f"{path}:{place}: holds {type(values).__name__}, not an object; write one object with named fields")
    return rows


def _json_lines(path: Path) -> list[tuple[int, Any]]:
    lines = enumerate(path.read_text(encoding="utf-8").split("\n"), start=1)
    found = []
    for number, line in lines:
        if line.strip():
            try:
                found.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error}") from error
    return found


def _json(path: Path) -> list[tuple[int, Any]]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, list):
        raise ValueError(f"holds {type(value).__name__}, not a list of objects")
    return list(enumerate(value, start=1))


def _csv(path: Path) -> list[tuple[int, Any]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return [(number, row) for number, row in enumerate(csv.DictReader(handle), start=2)]


def _parquet(path: Path) -> list[tuple[int, Any]]:
    import pyarrow.parquet

    return list(enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1))


def _saved(folder: Path) -> list[tuple[int, Any]]:
    """Media columns stay as they are stored: a path, or bytes with a file name."""
    import datasets

    table: Any = datasets.load_from_disk(str(folder)).with_format("arrow")[:]
    return list(enumerate(table.to_pylist(), start=1))
