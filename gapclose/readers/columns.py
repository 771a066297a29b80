"""Any table through a column map in YAML: what the columns mean, which concepts there are, and which option expresses which.

    name: breath
    concepts: [normal, crackle]
    alarm: [crackle]                                  # left out or []: nothing is to be rejected
    columns: {clip: patient, audio: file, gold: label}
    question: What is heard on breathing in?          # or columns: {question: ...}
    modality: audio                                   # or columns: {modality: ...}
    options: {clear: normal, crackles: crackle}       # text -> concept, the same for every row
    # option_columns: {a: normal, b: crackle}         # or: column with an option's text -> concept
    # letters: true                                   # list the options in the prompt and have a letter answered
    # gold_values: {0: clear, 1: crackles}            # what the gold column holds -> option, where it is no option's text

Columns may stand for: ``id``, ``clip``, ``split``, ``modality``, ``question``, ``gold``, ``twin``, and media in the order of the prompt: ``image``, ``video``,
``audio``. A media column holds a path relative to the data, or bytes as ``datasets`` stores them.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gapclose.errors import Fault, Problems
from gapclose.files import write_bytes
from gapclose.items import SPLITS, Item, ItemSet, Option, leaves
from gapclose.readers.splits import Dealing, deal_tables
from gapclose.readers.tables import Row, read_tables
from gapclose.stems import LETTERS, letters_prompt

KEYS = ("name", "concepts", "alarm", "columns", "question", "modality", "options", "option_columns", "letters", "gold_values", "tags")
FIELDS = ("id", "clip", "split", "modality", "question", "gold", "twin")
MEDIA = ("image", "video", "audio")
ASIDE = ".media"
"""folder beside the tables, for media that they hold as bytes"""
MOST = 80
"""characters of a text that names its clip"""


@dataclass(frozen=True, kw_only=True)
class ColumnMap:
    """What ``columns.yaml`` says."""

    concepts: tuple[str, ...]
    alarm: tuple[str, ...]
    columns: dict[str, str]
    """in the file's order, which for media is that of the prompt"""
    options: dict[str, str]
    """option, or with ``from_columns`` the column that holds it -> concept"""
    from_columns: bool
    name: str | None = None
    question: str | None = None
    modality: str | None = None
    letters: bool = False
    gold_values: dict[str, str]
    tags: tuple[str, ...] = ()
    """columns that become tags"""


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
            problems.add(f"{lacking.place}: no column {column!r}, which {path} names; there are {sorted(lacking.values)}" + _meant(near))
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


def read_map(path: Path, problems: Problems) -> ColumnMap | None:
    """The column map; None when it cannot be used, and ``problems`` says why."""
    before = len(problems)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problems.add(
            f"{path}: the column map cannot be read ({str(error).splitlines()[0]}); write it in YAML (docs/your-data.md shows one)"
        )
        return None
    if not isinstance(raw, dict):
        problems.add(f"{path}: holds {type(raw).__name__}, not keys and values; write a column map (docs/your-data.md shows one)")
        return None
    _refuse_unknown(raw, KEYS, path, problems)
    concepts, alarm = (_names(raw, key, path, problems) for key in ("concepts", "alarm"))
    columns = _mapping(raw, "columns", path, problems)
    _refuse_unknown(columns, (*FIELDS, *MEDIA), f"{path}: columns", problems)
    both = [key for key in ("options", "option_columns") if raw.get(key)]
    options = _mapping(raw, both[0], path, problems) if len(both) == 1 else {}
    if len(both) != 1:
        problems.add(f"{path}: give one of `options` (text: concept) and `option_columns` (column: concept), not {both or 'neither'}")
    elif len(options) < 2:
        problems.add(f"{path}: {both[0]} has {len(options)} entries; there must be two options or more")
    if len(concepts) < 2 or len(set(concepts)) != len(concepts):
        problems.add(f"{path}: concepts {list(concepts)} must be two or more distinct names")
    if alarm and set(alarm) == set(concepts):
        problems.add(f"{path}: every concept is an alarm; leave at least one that is not")
    for kind, names in (("alarm", alarm), *((f"option {text!r}", (concept,)) for text, concept in options.items())):
        for name in set(names) - set(concepts):
            problems.add(
                f"{path}: {kind} names the concept {name!r}, which is not among the concepts {list(concepts)}; add it or mend the name"
            )
    for key in ("question", "modality"):
        if bool(raw.get(key)) == (key in columns):
            problems.add(f"{path}: {key} must be given once, as a text or as a column (columns: {{{key}: ...}})")
    gold_values, tags = _mapping(raw, "gold_values", path, problems), _names(raw, "tags", path, problems)
    for key in ("name", "question", "modality"):
        _refuse_unquoted([raw[key]] if raw.get(key) is not None else [], f"{path}: {key}", problems)
    if len(problems) > before:
        return None
    return ColumnMap(
        concepts=concepts,
        alarm=alarm,
        columns=columns,
        options=options,
        from_columns=bool(raw.get("option_columns")),
        name=raw.get("name"),
        question=raw.get("question"),
        modality=raw.get("modality"),
        letters=bool(raw.get("letters")),
        gold_values=gold_values,
        tags=tags,
    )


def _refuse_unknown(given: dict[str, Any], known: tuple[str, ...], where: Any, problems: Problems) -> None:
    for key in given:
        if key not in known:
            problems.add(
                f"{where}: unknown key {key!r}{_meant(difflib.get_close_matches(str(key), known, n=1)) or f'; known are {list(known)}'}"
            )


def _meant(near: list[str]) -> str:
    return f"; did you mean {near[0]!r}?" if near else ""


def _names(raw: dict[str, Any], key: str, path: Path, problems: Problems) -> tuple[str, ...]:
    value = raw.get(key) or []
    if not isinstance(value, list):
        problems.add(f"{path}: {key} is {value!r}; it must be a list of names")
        return ()
    _refuse_unquoted(value, f"{path}: {key}", problems)
    return tuple(map(str, value))


def _refuse_unquoted(words: Iterable[Any], where: str, problems: Problems) -> None:
    """YAML takes yes, no, on, off and null for something else than words."""
    for word in words:
        if word is None or isinstance(word, bool):
            problems.add(f'{where}: YAML reads an unquoted word there as {word}; quote it, e.g. "yes"')


def _mapping(raw: dict[str, Any], key: str, path: Path, problems: Problems) -> dict[str, str]:
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        problems.add(f"{path}: {key} is {value!r}; it must be a mapping, a name to a name")
        return {}
    _refuse_unquoted((word for entry in value.items() for word in entry), f"{path}: {key}", problems)
    return {str(k): str(v) for k, v in value.items()}


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
