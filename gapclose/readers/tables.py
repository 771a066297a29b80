"""Rows of a table, whatever file holds them: JSON lines, JSON, CSV, Parquet, or what ``datasets`` saved to disk.

A table's name is its file's, without the numbers of shards and the hub's mark behind them: ``data/test-00000-of-00002.parquet`` and
``data/test-00000-of-00001-b42a775f407cee45.parquet`` belong to ``test``.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapclose.errors import Fault, Problems

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
OTHER = ("dataset_info.json", "dataset_dict.json", "state.json", "dataset_infos.json")
"""files of JSON that hold no rows"""
SHARD = re.compile(r"-\d+-of-\d+(-[0-9a-f]{8,})?$")
"""what follows a table's name in that of a shard"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row and where it stands."""

    table: str
    place: str
    """file and line or row, for complaints"""
    number: int
    """unique in the table, also where that lies in several files"""
    values: dict[str, Any]


def table_files(directory: Path) -> dict[str, list[Path]]:
    """Table -> its files, in ``directory`` and in its folder ``data``."""
    found: dict[str, list[Path]] = defaultdict(list)
    for folder in (directory, directory / "data"):
        for path in sorted(folder.glob("*")) if folder.is_dir() else ():
            if path.suffix in SUFFIXES and path.name not in OTHER and path.is_file():
                found[SHARD.sub("", path.stem)].append(path)
    return dict(found)


def saved_datasets(directory: Path) -> dict[str, Path]:
    """Table -> folder that ``datasets`` saved it to; one that was saved alone is called ``all``."""
    if (directory / "state.json").is_file():
        return {"all": directory}
    return {p.parent.name: p.parent for p in sorted(directory.glob("*/state.json"))}


def table_names(directory: Path) -> list[str]:
    return sorted(saved_datasets(directory) or table_files(directory))


Content = Iterable[tuple[int, Any]]
"""number of a line or row in its file, what it holds"""
BATCH = 64
"""rows that are held at a time while their media are put aside"""


def read_tables(directory: Path, problems: Problems, each: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> list[Row]:
    """All rows of all tables, in the order of their names. Files that cannot be read go to ``problems``.

    Args:
        each: what becomes of the values of a row as it passes, so that media inside a table are not all held at once.

    Raises:
        Fault: as ``each`` does; it is none of the file's.
    """
    saved = saved_datasets(directory)
    readers = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    files = {name: [folder] for name, folder in saved.items()} or table_files(directory)
    rows: list[Row] = []
    for name, paths in sorted(files.items()):
        before = 0
        for path in paths:
            found = read_into(problems, name, path, _saved if saved else readers[path.suffix], each, before)
            before = max((r.number for r in found), default=before)
            rows += found
    return rows


def read_into(
    problems: Problems,
    table: str,
    path: Path,
    reader: Callable[[Path], Content] | None = None,
    each: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    before: int = 0,
) -> list[Row]:
    """The rows of one file, read by ``reader`` (default: as JSON), numbered from ``before`` on; ``each`` as in :func:`read_tables`.

    Raises:
        Fault: as ``each`` does.
    """
    rows: list[Row] = []
    empty = True
    try:
        for place, values in (reader or _json)(path):
            empty = False
            if isinstance(values, dict):
                rows.append(Row(table=table, place=f"{path}:{place}", number=before + place, values=each(values)))
            else:
                problems.add(f"{path}:{place}: holds {type(values).__name__}, not an object; write one object with named fields")
    except Fault:
        raise
    except (ValueError, OSError, KeyError, csv.Error) as error:  # JSON, UTF-8 and Arrow complain with ValueErrors
        problems.add(f"{path}: cannot be read ({str(error).splitlines()[0]}); write it again")
        return []
    if empty:
        problems.add(f"{path}: holds no rows; fill it or take it away")
    return rows


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error}") from error


def _json(path: Path) -> Content:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, list):
        raise ValueError(f"holds {type(value).__name__}, not a list of objects")
    return enumerate(value, start=1)


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as handle:  # spreadsheets put a mark in front
        for number, row in enumerate(csv.DictReader(handle), start=2):
            if None in row or None in row.values():
                raise ValueError(f"line {number} has {'more' if None in row else 'fewer'} cells than the first line names columns")
            yield number, row


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        yield from enumerate((row for batch in file.iter_batches(batch_size=BATCH) for row in batch.to_pylist()), start=1)


def _saved(folder: Path) -> Iterator[tuple[int, Any]]:
    """Media columns stay as they are stored: a path, or bytes with a file name."""
    import datasets

    tables: Any = datasets.load_from_disk(str(folder)).with_format("arrow")
    yield from enumerate((row for batch in tables.iter(batch_size=BATCH) for row in batch.to_pylist()), start=1)
