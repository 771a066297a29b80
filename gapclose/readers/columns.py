"""Any table through a column map (:mod:`gapclose.readers.column_map`): rows become items, media inside the tables become files."""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path
from typing import Any

from gapclose.errors import Fault, Problems
from gapclose.files import write_bytes
from gapclose.items import SPLITS, Item, ItemSet, Option, leaves
from gapclose.readers.column_map import MEDIA, ColumnMap, meant, read_map
from gapclose.readers.splits import Dealing, deal_tables
from gapclose.readers.tables import Row, read_tables
from gapclose.stems import LETTERS, letters_prompt

ASIDE = ".media"
"""folder beside the tables, for media that they hold as bytes"""
MOST = 80
"""characters of a text that names its clip"""


def read_columns(directory: Path, path: Path, problems: Problems, dealing: Dealing) -> ItemSet:
    """Items of every row of every table in ``directory``, as the map at ``path`` says.

    Media that are stored as bytes are written to the folder ``.media`` beside the tables, once, under the digest of their content.

    Raises:
        ValueError: when the map cannot be used, no table is there, or media cannot be written beside them.
    """
    known = read_map(path, problems)
    problems.raise_if_any()
    assert known is not None
    media = {column: kind for kind, column in known.columns.items() if kind in MEDIA}
    rows: list[Row] = []
    try:
        rows = read_tables(directory, problems, lambda values: put_aside(values, media, directory))
    except Fault as fault:
        problems.add(f"{directory / ASIDE}: {fault}")
    else:
        if not rows:
            problems.add(f"{directory}: no table (.jsonl, .json, .csv, .parquet, or a data set saved by `datasets`); put one there")
    wanted = {**known.columns, **{c: c for c in (*known.tags, *(known.options if known.from_columns else ()))}}
    for column in wanted.values():
        lacking = next((r for r in rows if column not in r.values), None)
        if lacking is not None:
            near = difflib.get_close_matches(column, lacking.values, n=1)
            problems.add(f"{lacking.place}: no column {column!r}, which {path} names; there are {sorted(lacking.values)}" + meant(near))
    problems.raise_if_any()
    clips = {id(r): _clip(r, known) for r in rows}
    if "split" in known.columns:
        splits, notes = {id(r): _text(r.values[known.columns["split"]]) for r in rows}, ()
    else:
        by_row, notes = deal_tables([(r.table, clips[id(r)]) for r in rows], dealing, directory, problems)
        splits = dict(zip(map(id, rows), by_row, strict=True))
    made = [_item(row, known, clips[id(row)], splits[id(row)], problems, directory) for row in rows]
    items = tuple(i for i in made if i is not None)
    return ItemSet(root=directory, name=known.name or directory.name, concepts=known.concepts, alarm=known.alarm, items=items, notes=notes)


def put_aside(values: dict[str, Any], media: dict[str, str], directory: Path) -> dict[str, Any]:
    """A row's values, with bytes of media written to ``.media`` and named by their path there; other columns' bytes are let go.

    Args:
        media: column -> kind.

    Raises:
        Fault: when that folder cannot be written.
    """
    return {column: _stored(value, media.get(column), directory) for column, value in values.items()}


def _stored(value: Any, kind: str | None, directory: Path) -> Any:
    if not isinstance(value, dict) or not {"bytes", "path"} & set(value):
        return value
    content, path = value.get("bytes"), value.get("path")
    if not isinstance(content, bytes) or kind is None:
        return path
    suffix = Path(path or "").suffix or {"image": ".png", "audio": ".wav", "video": ".mp4"}[kind]
    path = f"{ASIDE}/{hashlib.sha256(content).hexdigest()[:24]}{suffix}"
    try:
        if not (directory / path).is_file():
            write_bytes(directory / path, content)
    except OSError as error:
        raise Fault(
            f"media inside the tables are written there, and it cannot be written ({error.strerror or error}); copy the tables, or link "
            "them, into a directory that can be written, and name that one"
        ) from error
    return path


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _clip(row: Row, known: ColumnMap) -> str:
    """What the map says, else the first media file, else what the prompt says: rows about the same one stay together."""
    if "clip" in known.columns:
        return _text(row.values[known.columns["clip"]])
    paths = [row.values[column] for field, column in known.columns.items() if field in MEDIA]
    if shown := [p for p in paths if isinstance(p, str) and p]:
        return shown[0]
    columns = [known.columns["question"]] if "question" in known.columns else []
    if known.from_columns and (known.letters or not columns):  # one question for all tells no row from another: its options do
        columns += known.options
    return _short(" / ".join(_text(row.values[column]) for column in columns)) or f"{row.table}/{row.number}"


def _short(text: str) -> str:
    """A name for a text: itself, or its start and a digest of the whole."""
    return text if len(text) <= MOST else f"{text[: MOST - 20]}... {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _item(row: Row, known: ColumnMap, clip: str, split: str, problems: Problems, directory: Path) -> Item | None:
    values, at, before = row.values, known.columns, len(problems)
    ident = _text(values[at["id"]]) if "id" in at else f"{row.table}/{row.number}"
    label = f"{row.place}: item {ident!r}"
    for key in (k for k in ("id", "clip", "modality", "split") if k in at):
        if not _text(values[at[key]]):
            problems.add(f"{label}: {key} ({at[key]}) is {_shown(values[at[key]])}; fill it in")
    texts = [_text(values[column]) for column in known.options] if known.from_columns else list(known.options)
    if not all(t.strip() for t in texts) or len({t.strip() for t in texts}) < len(texts):
        problems.add(f"{label}: options {texts} must be texts that differ; fill in {list(known.options)}")
    question = known.question or _text(values[at["question"]])
    if not question.strip():
        problems.add(f"{label}: the question ({at['question']}) is empty; fill it in")
    said = texts if not known.letters else list(LETTERS[: len(texts)])
    gold = _gold(values[at["gold"]] if "gold" in at else None, known, texts, said, label, problems)
    if split and split not in SPLITS:
        problems.add(
            f"{label}: split {split!r} is not one of {list(SPLITS)}; mend it, or leave the split column out to have clips dealt out"
        )
    content = []
    for kind in (k for k in at if k in MEDIA):
        path = values[at[kind]]
        if not isinstance(path, str) or not path:
            problems.add(f"{label}: {at[kind]} is {_shown(path)}, no {kind}; give a path relative to {directory}, or bytes")
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
        id=ident,
        clip=clip,
        split=split,
        modality=known.modality or _text(values[at["modality"]]),
        messages=[{"role": "user", "content": content}],
        options=[
            Option(text=t, concept=c, meaning=w if known.letters else None)
            for t, c, w in zip(said, known.options.values(), texts, strict=True)
        ],
        gold=gold,
        tags={c: _text(values[c]) for c in known.tags} | ({"twin": twin} if (twin := _text(values.get(at.get("twin", "")))) else {}),
        stem=question,
    )


def _gold(value: Any, known: ColumnMap, texts: list[str], said: list[str], label: str, problems: Problems) -> int | None:
    """Index of the right option, None where the row names none."""
    if not _text(value):
        return None
    named = known.gold_values.get(_text(value), _text(value)).strip()
    for choices in ([t.strip() for t in texts], said):
        if named in choices:
            return choices.index(named)
    problems.add(f"{label}: gold {value!r} is not among the options {texts}; mend it, or translate it with gold_values")
    return None


def _shown(value: Any) -> str:
    return repr(value)[:60]
