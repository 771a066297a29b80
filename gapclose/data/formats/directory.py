"""Find the tables of a data directory, the files of each, and the files that are not read.

Tables lie in the directory itself and in its folder ``data``; their suffix may be in capitals. A
table's name is the file's name without shard numbers and the hub's hash:
``data/test-00000-of-00002.parquet`` and ``data/test-00000-of-00001-b42a775f407cee45.parquet``
belong to ``test``. Hidden files are not read.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from gapclose.core.errors import ErrorCollector, ItemError
from gapclose.core.parsing import parse_json, read_text
from gapclose.data.splits import OFFICIAL

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
FOREIGN = (
    ".tsv", ".tab", ".ndjson", ".jsonlines", ".xlsx", ".xls", ".ods", ".feather", ".arrow", ".ipc", ".orc", ".avro", ".pq", ".parq", ".pkl",
    ".pickle", ".db", ".sqlite", ".sqlite3", ".duckdb", ".dta", ".sav", ".rds",
)  # fmt: skip
"""tables that no reader supports"""
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".lz4", ".br", ".7z")
OTHER = ("dataset_info.json", "dataset_dict.json", "state.json", "dataset_infos.json")
"""JSON files without rows"""
OWN = ("set.json", "items.jsonl")
SHARD = re.compile(r"-(\d+)-of-(\d+)(-[0-9a-f]{8,})?$")
"""suffix of a shard's name, after the table's name"""
PARTS = (*OFFICIAL, "fit", "train")
LAYOUTS = ("standard_vision", "misleading_vision", "standard_audio", "misleading_audio")
"""tables of IMAVB"""
RUN = ("gap.jsonl", "environment.json", "items.json")
"""files of a run; a directory with a ``config.yaml`` and one of them belongs to a run, and its
files are not data"""


def table_files(directory: Path) -> dict[str, list[Path]]:
    """Return table -> its files, in ``directory`` and in its folder ``data``."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in _direct(directory):
        if _is_table(path.name):
            found[_called(SHARD.sub("", path.stem))].append(path)
    return dict(found)


def _called(name: str) -> str:
    """Return the name of a table, in lower case if it is a split or a table of IMAVB."""
    return name.casefold() if name.casefold() in (*PARTS, *LAYOUTS) else name


def _direct(directory: Path) -> Iterator[Path]:
    for folder in (directory, directory / "data"):
        for path in sorted(folder.glob("*")) if folder.is_dir() else ():
            if not path.name.startswith(".") and path.is_file():
                yield path


def _is_table(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES and name.lower() not in OTHER


def _is_foreign(name: str) -> bool:
    *_, before, last = ("", "", *(suffix.lower() for suffix in Path(name).suffixes))
    return last in FOREIGN or (last in PACKED and before in (*SUFFIXES, *FOREIGN))


def saved_datasets(directory: Path) -> dict[str, Path]:
    """Return table -> folder that ``datasets`` saved it to; a single saved table is named ``all``."""
    if (directory / "state.json").is_file():
        return {"all": directory}
    return {_called(p.parent.name): p.parent for p in sorted(directory.glob("*/state.json"))}


def table_names(directory: Path) -> list[str]:
    return sorted(saved_datasets(directory) or table_files(directory))


def whole_tables(directory: Path, problems: ErrorCollector, only: Collection[str] | None = None) -> dict[str, list[Path]]:
    """As :func:`table_files`, with each table once.

    Duplicate or incomplete tables go to ``problems``.

    Args:
        only: names of the wanted tables; None: all.
    """
    whole: dict[str, list[Path]] = {}
    spelled: dict[str, str] = {}
    for name, paths in table_files(directory).items():
        if only is not None and name not in only:
            continue
        first = whole.get(spelled.setdefault(name.casefold(), name))
        if first is not None:
            problems.add(f"{paths[0]} and {first[0]}: two tables whose names differ in capitals alone; keep one of them, or rename one")
        else:
            whole[name] = _one_form(name, paths, problems)
    return whole


def _one_form(name: str, paths: list[Path], problems: ErrorCollector) -> list[Path]:
    """Return the files of one form of a table: one file, or shards in one format and folder."""
    forms: dict[tuple[Path, str, int | None], dict[int, Path]] = defaultdict(dict)
    for path in paths:
        shard = SHARD.search(path.stem)
        number, count = (int(shard[1]), int(shard[2])) if shard else (0, None)
        first = forms[path.parent, path.suffix.lower(), count].setdefault(number, path)
        if first is not path:
            problems.add(f"{first} and {path}: the same part of the table {name!r}, whose rows would count twice; keep one of them")
    (_, _, count), files = next(iter(forms.items()))
    if len(forms) > 1:
        named = " and ".join(str(next(iter(of.values()))) for of in forms.values())
        problems.add(f"{named}: the table {name!r} is there {len(forms)} times, and its rows would count as often; keep one of them")
    if count is not None and (lacking := sorted(set(range(count)) - set(files))):
        problems.add(f"{next(iter(files.values()))}: of {count} shards, those with the numbers {lacking[:10]} are not there; fetch them")
    return list(files.values())


def whole_saved(directory: Path, problems: ErrorCollector) -> dict[str, Path]:
    """As :func:`saved_datasets`.

    Other tables in the directory, and missing parts, go to ``problems``.

    Such tables would not be read. The missing parts are named in ``dataset_dict.json``.
    """
    saved = saved_datasets(directory)
    if saved:
        for paths in table_files(directory).values():
            problems.add(f"{paths[0]}: a table beside a data set saved by `datasets`, of which one alone is read; take one of them away")
    named = directory / "dataset_dict.json"
    if named.is_file():
        try:
            content = parse_json(read_text(named))
        except ItemError as fault:
            problems.add(f"{named}: {fault}")
            return saved
        parts = content.get("splits") if isinstance(content, dict) else None
        for part in parts if isinstance(parts, list) else ():
            if part not in saved:
                problems.add(f"{named}: names the part {part!r}, and {directory / str(part)} holds no saved data set; fetch it")
    return saved


def check_all_read(directory: Path, read: Iterable[Path], problems: ErrorCollector, *, every: bool) -> tuple[str, ...]:
    """Report files in a data directory that look like a table and are not read.

    A file that may be a part of the data is refused; the others become notes. Refused, in any
    format, are unread tables beside the read ones with the name of a split, of a table of IMAVB, or
    ``items``. With ``every``, all packed and foreign tables there are refused, and tables in deeper
    folders if the table or a folder has the name of a split. The exception is JSON of another name
    in such a folder, which may describe one recording. Folders of runs and links to folders are
    skipped.

    Args:
        read: the files and folders that are read.
        every: whether all tables of the directory are its data.
    """
    known = {path.absolute() for path in read}
    folders: dict[str, list[str]] = defaultdict(list)
    for path in _unread(directory, known):
        inside = path.relative_to(directory)
        beside, foreign = inside.parent in (Path(), Path("data")), _is_foreign(inside.name)
        stem = SHARD.sub("", inside.name.partition(".")[0]).casefold()
        within = inside.suffix.lower() != ".json" and not {p.casefold() for p in inside.parts[:-1]}.isdisjoint(PARTS)
        refused = stem in (*PARTS, *LAYOUTS, "items") if beside else every and (stem in PARTS or within)
        if inside.name.startswith(".") or not (refused or (every and beside and foreign)):
            folders[str(inside.parent)].append(inside.name)
        elif foreign:
            problems.add(f"{path}: a table in a form that is not read; unpack it or write it as {', '.join(SUFFIXES)}, or take it away")
        else:
            problems.add(f"{path}: a table that is not read there; put it among those that are, or take it away")
    notes = []
    for folder, names in folders.items():
        few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        notes.append(f"{directory / folder}: not read: {few}")
    return tuple(notes)


def _unread(directory: Path, known: set[Path]) -> Iterator[Path]:
    for place, folders, names in os.walk(directory):
        here = Path(place)
        if "config.yaml" in names and not set(RUN).isdisjoint(names):
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if not f.startswith(".") and (here / f).absolute() not in known)
        saved = here.absolute() in known  # `datasets` reads its files
        for name in sorted(n for n in names if not (saved and n.endswith(".arrow"))):
            looks = _is_table(name.lstrip(".")) or _is_foreign(name)
            if looks and name.lower() not in OTHER and (here / name).absolute() not in known:
                yield here / name
