"""Any table by a column map (:mod:`gapclose.data.formats.column_map`); embedded media become files."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from gapclose.core.errors import ErrorCollector, ItemError, shown
from gapclose.core.files import write_bytes
from gapclose.data.formats.column_map import MEDIA, ColumnMap, meant, read_map
from gapclose.data.formats.directory import table_names
from gapclose.data.formats.tables import Row, read_tables
from gapclose.data.item_set import ItemSet
from gapclose.data.items import EVERYTHING, SPLITS, Item, Option, leaves, path_fault
from gapclose.data.keys import Spellings, fold, key, text_of
from gapclose.data.question_text import LETTERS, letters_prompt
from gapclose.data.splits import SplitAssignment, deal_tables

ASIDE = ".media"
"""folder beside the tables for media that the tables hold as bytes"""
MOST = 80
"""characters of a text that names its clip"""


def read_columns(directory: Path, path: Path, problems: ErrorCollector, dealing: SplitAssignment) -> ItemSet:
    """Return the items of every row of every table in ``directory``, by the map at ``path``.

    Media stored as bytes are written once to the folder ``.media`` beside the tables, under the
    digest of their content.

    Raises:
        ValueError: when the map cannot be used, no table is there, or media cannot be written.
    """
    known = read_map(path, problems)
    problems.raise_if_any()
    assert known is not None
    media = {column: kind for kind, column in known.columns.items() if kind in MEDIA}
    rows: list[Row] = []
    try:
        rows = read_tables(directory, problems, lambda values: put_aside(values, media, directory))
    except ItemError as fault:
        problems.add(f"{directory / ASIDE}: {fault}")
    else:
        if not table_names(directory):
            problems.add(f"{directory}: no table (.jsonl, .json, .csv, .parquet, or a data set saved by `datasets`); put one there")
    wanted = {**known.columns, **{c: c for c in (*known.tags, *(known.options if known.from_columns else ()))}}
    for column in wanted.values():
        lacking = next((r for r in rows if column not in r.values), None)
        if lacking is not None:
            near = difflib.get_close_matches(column, lacking.values, n=1)
            problems.add(f"{lacking.place}: no column {column!r}, which {path} names; there are {sorted(lacking.values)}" + meant(near))
    problems.raise_if_any()
    spelled = Spellings()
    told = {id(r): _names(r, known, spelled, problems) for r in rows}
    for padded, bare in spelled.lost_zeros("clip"):
        problems.add(
            f"{directory}: clip {padded!r} is a text and clip {bare!r} a number, as if a table had lost the zeros in front; store both as texts"
        )
    problems.raise_if_any()
    named = {ident: names for ident, names in told.items() if names is not None}
    notes: tuple[str, ...] = ()
    splits = {ident: names.split for ident, names in named.items()}
    if "split" not in known.columns:
        by_row, notes = deal_tables([(r.table, named[id(r)].clip) for r in rows], dealing, directory, problems)
        splits = dict(zip(map(id, rows), by_row, strict=True))
    made = [_item(row, known, named[id(row)], splits[id(row)], problems, directory) for row in rows]
    items = tuple(i for i in made if i is not None)
    notes += tuple(f"{directory}: {line}" for line in (*spelled.taken_for_one(), *spelled.taken_for_two()))
    notes += tell_repeated(rows, set(wanted.values()) - {known.columns.get(f) for f in ("id", "split", "twin")}, problems)
    return ItemSet(root=directory, name=known.name or directory.name, concepts=known.concepts, alarm=known.alarm, items=items, notes=notes)


def tell_repeated(rows: list[Row], columns: set[str], problems: ErrorCollector) -> tuple[str, ...]:
    """Add to ``problems`` every table whose rows another one contains, in these columns.

    Return notes about tables that share some rows.
    """
    said: dict[str, set[str]] = {}
    place = {row.table: row.file for row in reversed(rows)}
    for row in rows:
        said.setdefault(row.table, set()).add(repr([_plain(row.values[c]) for c in sorted(columns)]))
    notes, gone = [], set[str]()
    for one, other in permutations(said, 2):
        if gone & {one, other} or not (shared := said[one] & said[other]):
            continue
        if len(shared) == len(said[one]):
            gone.add(one)
            problems.add(
                f"{place[one]} and {place[other]}: the second holds every row of the first, which would count twice; keep one of them"
            )
        elif one < other:
            notes.append(f"{place[one]} and {place[other]}: {len(shared)} rows are in both")
    return tuple(notes)


def _plain(value: Any) -> str:
    """Return a cell in a form that compares across tables with different types."""
    try:
        return text_of(value)
    except ItemError:
        return repr(value)


def put_aside(values: dict[str, Any], media: dict[str, str], directory: Path) -> dict[str, Any]:
    """Write a row's media bytes to ``.media`` and return its values with their paths there instead.

    Bytes of other columns are dropped.

    Args:
        media: column -> kind.

    Raises:
        ItemError: when that folder cannot be written.
    """
    return {column: _stored(value, media.get(column), directory) for column, value in values.items()}


def _stored(value: Any, kind: str | None, directory: Path) -> Any:
    if not isinstance(value, dict) or not {"bytes", "path"} & set(value):
        return value
    content, path = value.get("bytes"), value.get("path")
    if not isinstance(content, bytes) or kind is None:
        return path
    stated = re.search(r"\.\w{1,8}$", path, re.ASCII) if isinstance(path, str) else None
    suffix = stated[0] if stated else {"image": ".png", "audio": ".wav", "video": ".mp4"}[kind]
    path = f"{ASIDE}/{hashlib.sha256(content).hexdigest()[:24]}{suffix}"
    try:
        if not (directory / path).is_file():
            write_bytes(directory / path, content)
    except OSError as error:
        raise ItemError(
            f"media inside the tables are written there, and it cannot be written ({error.strerror or error}); copy the tables, or link "
            "them, into a directory that can be written, and name that one"
        ) from error
    return path


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """The keys of a row; keys without a column are empty."""

    id: str
    clip: str
    split: str
    modality: str
    twin: str
    tags: dict[str, str]


def _names(row: Row, known: ColumnMap, spelled: Spellings, problems: ErrorCollector) -> Names | None:
    """Return the keys of a row; None if one is missing or invalid, with errors in ``problems``."""
    at, before = known.columns, len(problems)
    label = f"{row.place}: item {_shown_id(row, known)!r}"

    def read(name: str, column: str | None, *, needed: bool = True) -> str:
        if column is None:
            return ""
        value = row.values[column]
        try:
            found = key(value)
        except ItemError as fault:
            problems.add(f"{label}: {name} ({column}) {fault}")
            return ""
        if needed and not found:
            problems.add(f"{label}: {name} ({column}) is {shown(value)}; fill it in")
        if name not in ("id", "twin"):
            spelled.add(name, value, found)
        return found

    ident, clip, split, modality = (read(name, at.get(name)) for name in ("id", "clip", "split", "modality"))
    twin = read("twin", at.get("twin"), needed=False)
    tags = {column: read("tag", column) for column in known.tags}
    if (modality or known.modality) == EVERYTHING:
        problems.add(f"{label}: modality {EVERYTHING!r} is kept for figures over every modality; use another name")
    if "clip" not in at:
        try:
            clip = _clip(row, known)
        except ItemError as fault:
            problems.add(f"{label}: the question {fault}")
    if len(problems) > before:
        return None
    ident = ident if "id" in at else f"{row.table}/{row.number}"
    return Names(id=ident, clip=clip, split=split, modality=modality or known.modality or "", twin=twin, tags=tags)


def _shown_id(row: Row, known: ColumnMap) -> str:
    """Return the id of a row for messages, for any value of its column."""
    if "id" not in known.columns:
        return f"{row.table}/{row.number}"
    return _short(_plain(row.values[known.columns["id"]]))


def _clip(row: Row, known: ColumnMap) -> str:
    """Return the clip of a row when no column names it.

    It is the first media file, or else the prompt's text, so that rows about the same one stay
    together.
    """
    paths = [row.values[column] for field, column in known.columns.items() if field in MEDIA]
    if files := [p for p in paths if isinstance(p, str) and p]:
        return files[0]
    columns = [known.columns["question"]] if "question" in known.columns else []
    # one question for all rows does not distinguish them, but the options do
    if known.from_columns and (known.letters or not columns):
        columns += known.options
    return _short(" / ".join(text_of(row.values[column]) for column in columns)) or f"{row.table}/{row.number}"


def _short(text: str) -> str:
    """Return a name for a text: the text, or its start and a digest."""
    return text if len(text) <= MOST else f"{text[: MOST - 20]}... {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _item(row: Row, known: ColumnMap, names: Names, split: str, problems: ErrorCollector, directory: Path) -> Item | None:
    values, at, before = row.values, known.columns, len(problems)
    label = f"{row.place}: item {names.id!r}"

    def text(column: str, check: Callable[[Any], str] = text_of) -> str:
        try:
            check(values[column])
            return text_of(values[column])
        except ItemError as fault:
            problems.add(f"{label}: {column} {fault}")
            return ""

    texts = [text(column, fold) for column in known.options] if known.from_columns else list(known.options)
    question = known.question or text(at["question"])
    if len(problems) > before:
        return None
    if not all(t.strip() for t in texts) or len({fold(t) for t in texts}) < len(texts):
        problems.add(f"{label}: options {texts} must be texts that differ; fill in {list(known.options)}")
    if not question.strip():
        problems.add(f"{label}: the question ({at['question']}) is empty; fill it in")
    said = texts if not known.letters else list(LETTERS[: len(texts)])
    gold = _gold(values[at["gold"]] if "gold" in at else None, known, texts, said, label, problems)
    if split not in SPLITS:
        problems.add(
            f"{label}: split {split!r} is not one of {list(SPLITS)}; fix it, or leave the split column out to have clips dealt out"
        )
    content = []
    for kind in (k for k in at if k in MEDIA):
        path = values[at[kind]]
        if not isinstance(path, str) or not path:
            problems.add(
                f"{label}: {at[kind]} is {shown(path)}, no {kind}; give a path relative to {directory}, or bytes as `datasets` stores them"
            )
        elif fault := path_fault(path):
            problems.add(f"{label}: {at[kind]} is {shown(path)}, {fault}")
        elif leaves(path):
            problems.add(
                f"{label}: {at[kind]} is {path!r}, which leaves {directory}; move or link the file into it, and name it from there"
            )
        else:
            content.append({"type": kind, "path": path})
    if len(problems) > before:
        return None
    content.append({"type": "text", "text": letters_prompt(question, texts) if known.letters else question})
    return Item(
        id=names.id,
        clip=names.clip,
        split=split,
        modality=names.modality,
        messages=[{"role": "user", "content": content}],
        options=[
            Option(text=t, concept=c, meaning=w if known.letters else None)
            for t, c, w in zip(said, known.options.values(), texts, strict=True)
        ],
        gold=gold,
        tags=names.tags | ({"twin": names.twin} if names.twin else {}),
        stem=question,
    )


def _gold(value: Any, known: ColumnMap, texts: list[str], said: list[str], label: str, problems: ErrorCollector) -> int | None:
    """Return the index of the right option; None if the row names none."""
    try:
        written, folded = text_of(value), fold(value)
    except ItemError as fault:
        problems.add(f"{label}: gold {fault}")
        return None
    if not written:
        return None
    named = known.gold_values.get(folded, written).strip()
    for choices in ([t.strip() for t in texts], said, [fold(t) for t in texts]):
        for name in (named, folded if named == written else fold(named)):
            if name in choices:
                return choices.index(name)
    problems.add(f"{label}: gold {shown(value)} is not among the options {texts}; fix it, or translate it with gold_values")
    return None
