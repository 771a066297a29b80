"""The column map in YAML: columns of a table, concepts, and the options that express them.

    name: breath
    concepts: [normal, crackle]
    alarm: [crackle]                                  # omitted or []: nothing is to be rejected
    columns: {clip: patient, audio: file, gold: label}
    question: What is heard on breathing in?          # or columns: {question: ...}
    modality: audio                                   # or columns: {modality: ...}
    options: {clear: normal, crackles: crackle}       # text -> concept, the same for every row
    # option_columns: {a: normal, b: crackle}         # or: column with an option's text -> concept
    # letters: true                                   # list the options; a letter answers
    # gold_values: {0: clear, 1: crackles}            # value of the gold column -> option

Possible ``columns`` are ``id``, ``clip``, ``split``, ``modality``, ``question``, ``gold``,
``twin``, and media in the order of the prompt: ``image``, ``video``, ``audio``. A media column
holds a path relative to the data, or bytes as ``datasets`` stores them. ``gold_values`` is needed
if the gold column does not hold the options' texts.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from gapclose.core.errors import ErrorCollector, ItemError, shown
from gapclose.core.parsing import parse_yaml, read_text
from gapclose.data.keys import fold

KEYS = ("name", "concepts", "alarm", "columns", "question", "modality", "options", "option_columns", "letters", "gold_values", "tags")
FIELDS = ("id", "clip", "split", "modality", "question", "gold", "twin")
MEDIA = ("image", "video", "audio")


@dataclass(frozen=True, kw_only=True)
class ColumnMap:
    """The content of ``columns.yaml``."""

    concepts: tuple[str, ...]
    alarm: tuple[str, ...]
    columns: dict[str, str]
    """field -> column, in the file's order, which for media is the order of the prompt"""
    options: dict[str, str]
    """option, or with ``from_columns`` its column -> concept"""
    from_columns: bool
    name: str | None = None
    question: str | None = None
    modality: str | None = None
    letters: bool = False
    gold_values: dict[str, str]
    tags: tuple[str, ...] = ()
    """columns that become tags"""


def read_map(path: Path, problems: ErrorCollector) -> ColumnMap | None:
    """Return the column map; None if it cannot be used, with errors in ``problems``."""
    before = len(problems)
    try:
        raw = parse_yaml(read_text(path))
    except (OSError, ItemError) as error:
        problems.add(f"{path}: the column map cannot be read ({error}); write it in YAML (docs/how-to/data-formats.md shows one)")
        return None
    if not isinstance(raw, dict):
        problems.add(f"{path}: holds {type(raw).__name__}, not keys and values; write a column map (docs/how-to/data-formats.md shows one)")
        return None
    _refuse_unknown(raw, KEYS, path, problems)
    concepts, alarm = (_names(raw, key, path, problems) for key in ("concepts", "alarm"))
    columns = _mapping(raw, "columns", path, problems)
    _refuse_unknown(columns, (*FIELDS, *MEDIA), f"{path}: columns", problems)
    both = [key for key in ("options", "option_columns") if raw.get(key) not in (None, {})]
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
                f"{path}: {kind} names the concept {name!r}, which is not among the concepts {list(concepts)}; add it or fix the name"
            )
    for key in ("question", "modality"):
        if _stated(raw, key) == (key in columns):
            problems.add(f"{path}: {key} must be given once, as a text or as a column (columns: {{{key}: ...}})")
    letters = raw.get("letters", False)
    if not isinstance(letters, bool):
        problems.add(f"{path}: letters is {shown(letters)}; it must be true or false, without quotes")
    gold_values, tags = _gold_values(raw, path, problems), _names(raw, "tags", path, problems)
    for key in ("name", "question", "modality"):
        _refuse_others([raw[key]] if raw.get(key) is not None else [], f"{path}: {key}", problems)
    try:
        modality = fold(raw.get("modality")) or None
    except ItemError as fault:
        problems.add(f"{path}: modality {fault}")
    if len(problems) > before:
        return None
    return ColumnMap(
        concepts=concepts,
        alarm=alarm,
        columns=columns,
        options=options,
        from_columns=both == ["option_columns"],
        name=None if raw.get("name") is None else str(raw["name"]),
        modality=modality,
        question=str(raw["question"]) if _stated(raw, "question") else None,
        letters=letters,
        gold_values=gold_values,
        tags=tags,
    )


def _stated(raw: dict[str, Any], key: str) -> bool:
    """Whether the key has a text, or a number such as 0."""
    return raw.get(key) is not None and bool(str(raw[key]).strip())


def _refuse_unknown(given: dict[str, Any], known: tuple[str, ...], where: Any, problems: ErrorCollector) -> None:
    for key in given:
        if key not in known:
            problems.add(
                f"{where}: unknown key {shown(key)}{meant(difflib.get_close_matches(str(key), known, n=1)) or f'; known are {list(known)}'}"
            )


def meant(near: list[str]) -> str:
    """Suggest the nearest of the known names, for a message."""
    return f"; did you mean {near[0]!r}?" if near else ""


def _names(raw: dict[str, Any], key: str, path: Path, problems: ErrorCollector) -> tuple[str, ...]:
    value = [] if raw.get(key) is None else raw[key]
    if not isinstance(value, list):
        problems.add(f"{path}: {key} is {shown(value)}; it must be a list of names")
        return ()
    _refuse_others(value, f"{path}: {key}", problems)
    return tuple(map(_word, value))


def _refuse_others(words: Iterable[Any], where: str, problems: ErrorCollector) -> None:
    """Refuse values that are not names: words that YAML converts, lists, control characters.

    YAML converts yes, no, on, off and null.
    """
    for word in words:
        if word is None or isinstance(word, bool):
            problems.add(f'{where}: YAML reads an unquoted word there as {word}; quote it, e.g. "yes"')
        elif isinstance(word, dict | list | set | tuple | bytes):
            problems.add(f"{where}: {shown(word)} is a {type(word).__name__}, not a name; write one text")
        else:
            try:
                fold(word)
            except ItemError as fault:
                problems.add(f"{where}: a name {fault}")


def _word(value: Any) -> str:
    """Return a name as the file spells it, or a number as a table does (1.0 is 1)."""
    try:
        return value if isinstance(value, str) else fold(value) if isinstance(value, int | float | date) else str(value)
    except ItemError:  # already reported
        return str(value)


def _mapping(raw: dict[str, Any], key: str, path: Path, problems: ErrorCollector) -> dict[str, str]:
    value = {} if raw.get(key) is None else raw[key]
    if not isinstance(value, dict):
        problems.add(f"{path}: {key} is {shown(value)}; it must be a mapping, a name to a name")
        return {}
    _refuse_others((word for entry in value.items() for word in entry), f"{path}: {key}", problems)
    found: dict[str, str] = {}
    for name, meaning in value.items():
        known = found.setdefault(_word(name), _word(meaning))
        if known != _word(meaning):
            problems.add(
                f"{path}: {key} {shown(name)} is the same as another entry, {_word(name)!r}, and means {shown(meaning)} rather than {known!r}; "
                "keep one"
            )
    return found


def _gold_values(raw: dict[str, Any], path: Path, problems: ErrorCollector) -> dict[str, str]:
    """Return value of the gold column, in the form of its cells -> option."""
    given = _mapping(raw, "gold_values", path, problems)
    found: dict[str, str] = {}
    for name, option in given.items():
        try:
            known = fold(name)
        except ItemError as fault:
            problems.add(f"{path}: gold_values {fault}")
            continue
        if found.setdefault(known, option) != option:
            problems.add(f"{path}: gold_values {shown(name)} is the same as another entry, {known!r}, and means something else; keep one")
    return found
