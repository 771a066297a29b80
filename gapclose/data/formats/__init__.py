"""Readers of data sets in foreign layouts: functions directory -> :class:`ItemSet`.

``directory`` finds the tables, ``tables`` reads their rows in any format, and
:mod:`gapclose.data.splits` assigns clips to splits. ``imavb``, ``avhbench`` and ``generic_table``
(by a ``column_map``) make items of the rows. :func:`read_set` chooses the reader by the files in
the directory. Users add their own with :func:`gapclose.data.config.register_reader`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gapclose.core.errors import ErrorCollector
from gapclose.data.config import READERS
from gapclose.data.formats.avhbench import is_yes_no, json_files, read_yes_no
from gapclose.data.formats.directory import LAYOUTS, OWN, check_all_read, saved_datasets, table_files, table_names
from gapclose.data.formats.generic_table import read_columns
from gapclose.data.formats.imavb import read_imavb
from gapclose.data.item_set import ItemSet
from gapclose.data.jsonl import read_items
from gapclose.data.splits import SplitAssignment, by_clip, check_apart
from gapclose.data.twins import find_twins

KNOWN = (
    "name a directory with set.json and items.jsonl, one in the layout of IMAVB or AVHBench, or tables with a columns.yaml "
    "(docs/how-to/data-formats.md)"
)


def read_set(
    directory: Path,
    problems: ErrorCollector,
    dealing: SplitAssignment,
    *,
    columns: str | None = None,
    about: str | None = None,
    reader: str | None = None,
) -> ItemSet:
    """Read the item set in ``directory``.

    Args:
        dealing: how clips are assigned to splits if the set names none.
        columns: a column map in YAML; this map, or a ``columns.yaml`` in the directory, defines the
            columns.
        about: of IMAVB, only the questions about this (vision or audio).
        reader: a registered reader, or ``package.module:function``; None: decided by the files in
            the directory.

    Raises:
        ValueError: when nothing can be read; all other errors go to ``problems``.
    """
    if not directory.is_dir():
        fault = "is a file; name the directory that it lies in" if directory.is_file() else f"no such directory; {KNOWN}"
        problems.add(f"data.path {str(directory)!r}: {fault}")
        problems.raise_if_any()
    if reader is not None:
        return READERS.get(reader)(directory, problems)
    if not columns and any((directory / name).is_file() for name in OWN):
        found = read_items(directory, problems)
        _refuse_about(about, directory, problems)
        unread = check_all_read(directory, [directory / name for name in OWN], problems, every=False)
        found = replace(found, notes=(*found.notes, *unread))
        if tuple(dealing.shares) != SplitAssignment.shares:
            note = f"{directory}: its items name their splits, so data.shares deals nothing out"
            found = replace(found, notes=(*found.notes, note))
        return found
    items = _read_tables(directory, problems, dealing, columns, about)
    check_apart(items, problems)
    told = any("twin" in i.tags for i in items)
    return replace(items, items=by_clip(items.items if told else find_twins(items.items)))


def _refuse_about(about: str | None, directory: Path, problems: ErrorCollector) -> None:
    if about is not None:
        problems.add(f"data.about is {about!r}, and {str(directory)!r} is not in the layout of IMAVB; leave the key out (null)")


def _read_tables(directory: Path, problems: ErrorCollector, dealing: SplitAssignment, columns: str | None, about: str | None) -> ItemSet:
    column_map, names = Path(columns) if columns else directory / "columns.yaml", table_names(directory)
    mapped, files = bool(columns) or column_map.is_file(), table_files(directory)
    film_tables = set(names) & set(LAYOUTS)
    if mapped or not film_tables:
        _refuse_about(about, directory, problems)
    if not mapped and not film_tables and not is_yes_no(directory):
        _refuse_unreadable(directory, names, problems)
    read = [*saved_datasets(directory).values(), *(path for paths in files.values() for path in paths)]
    if not mapped:
        read = [path for name in LAYOUTS for path in files.get(name, ())] if film_tables else json_files(directory)
    unread = check_all_read(directory, read, problems, every=mapped)
    if not names:
        for note in unread:
            problems.add(note)
    if mapped:
        found = read_columns(directory, column_map, problems, dealing)
    else:
        found = read_imavb(directory, problems, dealing, about) if film_tables else read_yes_no(directory, problems, dealing)
    return replace(found, notes=(*found.notes, *unread))


def _refuse_unreadable(directory: Path, names: list[str], problems: ErrorCollector) -> None:
    """Raise ValueError with the directory's content and the readable layouts."""
    if names:
        few = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        problems.add(
            f"data.path {str(directory)!r}: tables {few}, and nothing that says what their columns mean; put a columns.yaml beside them "
            "or name one with data.columns (docs/how-to/data-formats.md shows one)"
        )
    else:
        problems.add(f"data.path {str(directory)!r}: nothing in it that can be read; {KNOWN}")
        for note in check_all_read(directory, (), problems, every=True):
            problems.add(note)
    problems.raise_if_any()
