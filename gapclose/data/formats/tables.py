"""Rows of a table in any format: JSON lines, JSON, CSV, Parquet, or saved by ``datasets``."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapclose.core.errors import ErrorCollector, ItemError, shown
from gapclose.core.imports import MissingPackage, require
from gapclose.core.parsing import parse_json, read_text
from gapclose.data.formats.directory import whole_saved, whole_tables


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row and its place."""

    table: str
    place: str
    """file and line or row, for messages"""
    number: int
    """unique in the table, even if the table has several files"""
    values: dict[str, Any]

    @property
    def file(self) -> str:
        return self.place.rpartition(":")[0]


Content = Iterable[tuple[int, int, Any]]
"""number of a row in its file, its last line (or its number again), its content"""
BATCH = 64
"""rows held in memory at a time while their media are written to files"""
CELL = 10_000_000
"""largest number of characters in a CSV cell"""


def read_tables(
    directory: Path,
    problems: ErrorCollector,
    each: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    only: Collection[str] | None = None,
) -> list[Row]:
    """Return all rows of all tables, in the order of their names.

    Unreadable files go to ``problems``.

    Args:
        each: applied to the values of a row as it is read, so that not all media of a table are in
            memory.
        only: names of the wanted tables; None: all.

    Raises:
        ItemError: as ``each`` does; such an error does not concern the file.
    """
    saved = whole_saved(directory, problems)
    files = {name: [folder] for name, folder in saved.items()} or whole_tables(directory, problems, only)
    rows: list[Row] = []
    for name, paths in sorted(files.items()):
        before = 0
        for path in paths:
            found = read_into(problems, name, path, _saved if saved else READERS[path.suffix.lower()], each, before)
            before = max((r.number for r in found), default=before)
            rows += found
    return rows


def read_into(
    problems: ErrorCollector,
    table: str,
    path: Path,
    reader: Callable[[Path], Content] | None = None,
    each: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    before: int = 0,
) -> list[Row]:
    """Return the rows of one file, numbered after ``before``.

    Args:
        reader: of the file; None: JSON. each: as in :func:`read_tables`.

    Raises:
        ItemError: as ``each`` does.
    """
    rows: list[Row] = []
    empty = True
    try:
        content = iter((reader or _json)(path))
    except (ValueError, OSError) as error:
        problems.add(_unreadable(path, error))
        return []
    while True:
        try:
            number, line, values = next(content)
        except StopIteration:
            break
        except (ValueError, OSError, KeyError, csv.Error) as error:  # JSON, UTF-8 and Arrow raise ValueErrors
            problems.add(_unreadable(path, error))
            return []
        empty = False
        if isinstance(values, dict):
            rows.append(Row(table=table, place=f"{path}:{line}", number=before + number, values=each(values)))
        else:
            problems.add(f"{path}:{line}: holds {type(values).__name__}, not an object; write one object with named fields")
    if empty:
        problems.add(f"{path}: holds no rows; fill it or take it away")
    return rows


def _unreadable(path: Path, error: Exception) -> str:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return f"{path}: cannot be read ({first})" + ("" if isinstance(error, ItemError) else "; write it again")


def _json_lines(path: Path) -> Iterator[tuple[int, int, Any]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # splitlines() would also cut at U+2028 inside a text
        if line.strip():
            try:
                yield number, number, parse_json(line, "write one JSON object per line")
            except ItemError as fault:
                raise ItemError(f"line {number}: {fault}") from fault


def _json(path: Path) -> Content:
    value = parse_json(read_text(path))
    if not isinstance(value, list):
        raise ValueError(f"holds {type(value).__name__}, not a list of objects")
    return ((number, number, entry) for number, entry in enumerate(value, start=1))


def _csv(path: Path) -> Iterator[tuple[int, int, Any]]:
    """Read strictly: a quote that is never closed would swallow the following rows."""
    before = csv.field_size_limit(CELL)
    try:
        rows = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
        names = next(_numbered(rows), [])
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ItemError(f"line 1 names the column {shown(twice[0])} twice; rename one of them")
        number = 1
        for cells in _numbered(rows):
            if not cells:
                continue
            number += 1
            line = rows.line_num
            if len(cells) != len(names):
                raise ItemError(
                    f"line {line} has {'more' if len(cells) > len(names) else 'fewer'} cells than the first line names columns; write it again"
                )
            if torn := [name for name, cell in zip(names, cells, strict=True) if "\0" in cell]:
                raise ItemError(f"line {line} holds a NUL character in the column {shown(torn[0])}; write the file again")
            yield number, line, dict(zip(names, cells, strict=True))
    finally:
        csv.field_size_limit(before)


def _numbered(rows: Any) -> Iterator[list[str]]:
    """Yield the rows of a reader; its errors name their line."""
    while True:
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise ItemError(f"line {rows.line_num}: {error}; correct it (a quote that is not closed goes on to the next one)") from error
        if cells is None:
            return
        yield cells


def _require(module: str, user: str) -> None:
    """Import what reads a file.

    Raises:
        ItemError: when it is not installed.
    """
    try:
        require(module, "datasets", user)
    except MissingPackage as error:
        raise ItemError(str(error)) from error


def _parquet(path: Path) -> Iterator[tuple[int, int, Any]]:
    _require("pyarrow", "a Parquet table")
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from _from_arrow(file.iter_batches(batch_size=BATCH))
    except (pyarrow.ArrowException, OverflowError) as error:  # not all are ValueErrors
        raise ValueError(str(error)) from error


def _saved(folder: Path) -> Iterator[tuple[int, int, Any]]:
    """Yield rows; media columns stay as stored: a path, or bytes with a file name."""
    _require("datasets", "what `save_to_disk` wrote")
    import datasets
    import pyarrow

    try:
        tables: Any = datasets.load_from_disk(str(folder)).with_format("arrow")
        yield from _from_arrow(tables.iter(batch_size=BATCH))
    except (pyarrow.ArrowException, OverflowError) as error:
        raise ValueError(str(error)) from error


def _from_arrow(batches: Iterable[Any]) -> Iterator[tuple[int, int, Any]]:
    """Yield rows of batches of an Arrow table.

    Raises:
        ItemError: when two columns have one name, because a row can keep only one.
    """
    import numpy as np
    import pyarrow

    number = 0
    for batch in batches:
        names = batch.schema.names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ItemError(f"two columns are called {shown(twice[0])}; rename one of them")
        short = [f.name for f in batch.schema if pyarrow.types.is_float16(f.type) or pyarrow.types.is_float32(f.type)]
        for row in batch.to_pylist():
            # 0.1 as it was written, not the float64 of that float32
            for name in short:
                row[name] = None if row[name] is None else float(str(np.float32(row[name])))
            number += 1
            yield number, number, row


READERS = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".parquet": _parquet}
