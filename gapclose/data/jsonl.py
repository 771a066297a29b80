"""Item sets on disk: ``set.json`` and ``items.jsonl``, read in one pass that reports every error.

- ``set.json`` declares the concepts; ``alarm`` may be empty:
  ``{"name": "digits", "concepts": ["standard", "false_vision", "false_audio"],
  "alarm": ["false_vision", "false_audio"]}``.
- ``items.jsonl`` holds one item per line; media paths are relative to the directory.

This module opens no media file and no model: :mod:`gapclose.data.media` checks the media,
:mod:`gapclose.models.loading` the tokens.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gapclose.core.errors import ErrorCollector, ItemError, shown
from gapclose.core.files import write_text
from gapclose.core.parsing import parse_json, read_text
from gapclose.data.item_rows import read_item
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item
from gapclose.data.keys import Spellings, key


def write_items(items: ItemSet, directory: str | Path) -> None:
    """Write ``items.jsonl`` and, last, ``set.json``."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_to_json(i), ensure_ascii=False) for i in items.items]
    write_text(directory / "items.jsonl", "\n".join(lines) + "\n")
    header = {"name": items.name, "concepts": list(items.concepts), "alarm": list(items.alarm)}
    write_text(directory / "set.json", json.dumps(header, indent=1) + "\n")


def _to_json(item: Item) -> dict[str, Any]:
    row = asdict(item)
    row["options"] = [{k: v for k, v in o.items() if k != "meaning" or v is not None} for o in row["options"]]
    if item.stem is None:
        del row["stem"]
    if item.gold is not None:
        row["gold"] = item.options[item.gold].text
    return row


def read_items(directory: str | Path, problems: ErrorCollector | None = None) -> ItemSet:
    """Read and check an item set.

    Args:
        problems: receives the errors, so that other checks can add theirs; the readable items are
            returned.

    Raises:
        ValueError: all errors of the set at once, each with file, line, item and remedy. With
            ``problems``, only when a file is missing.
    """
    directory = Path(directory)
    collect = problems is not None
    problems = ErrorCollector(f"the item set {directory}") if problems is None else problems
    header_file, items_file = directory / "set.json", directory / "items.jsonl"
    for path, remedy in ((header_file, "declare the concepts there"), (items_file, "put one item per line there")):
        if not path.is_file():
            problems.add(f"{path}: no such file; {remedy} (docs/how-to/data.md shows the format)")
    problems.raise_if_any()

    concepts, alarm, name = _read_header(header_file, problems)
    items: list[Item] = []
    line_of: dict[str, int] = {}
    spelled = Spellings()
    try:
        lines = read_text(items_file).split("\n")  # splitlines() would also cut at U+2028 inside a text
    except ItemError as fault:
        problems.add(f"{items_file}: {fault}")
        lines = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        item = read_item(line, f"{items_file}:{number}", concepts, spelled, problems)
        if item is None:
            continue
        if item.id in line_of:
            problems.add(
                f"{items_file}:{number}: item id {item.id!r} was already used on line {line_of[item.id]}; give every item its own id"
            )
        line_of.setdefault(item.id, number)
        items.append(item)
    _check_splits(items, items_file, line_of, problems)
    if not collect:
        problems.raise_if_any()
    notes = tuple(f"{items_file}: {line}" for line in (*spelled.taken_for_one(), *spelled.taken_for_two()))
    return ItemSet(root=directory, name=name, concepts=concepts, alarm=alarm, items=tuple(items), notes=notes)


def _read_header(path: Path, problems: ErrorCollector) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    try:
        header = parse_json(read_text(path), "fix the syntax")
    except ItemError as fault:
        problems.add(f"{path}: {fault}")
        return (), (), path.parent.name
    if not isinstance(header, dict):
        problems.add(f"{path}: holds {type(header).__name__}, not an object with `concepts` and `alarm`")
        return (), (), path.parent.name
    if "alarm" not in header:
        problems.add(f"{path}: alarm is missing; name the concepts that call for action when they are seen, or write [] where none does")
    for field in ("concepts", "alarm"):
        names = header.get(field) or []
        if not isinstance(names, list) or not all(isinstance(n, str) and n.strip() for n in names):
            problems.add(f"{path}: {field} is {shown(names)}; it must be a list of names")
            return (), (), path.parent.name
    if not isinstance(header.get("name") or "", str):
        problems.add(f"{path}: name is {shown(header['name'])}; write a text, or leave the key out")
        return (), (), path.parent.name
    concepts, alarm = tuple(header.get("concepts") or ()), tuple(header.get("alarm") or ())
    if len(concepts) < 2 or len(set(concepts)) != len(concepts):
        problems.add(f"{path}: concepts {list(concepts)} must be two or more distinct names")
    for concept in alarm:
        if concept not in concepts:
            problems.add(f"{path}: alarm concept {concept!r} is not among the concepts {list(concepts)}")
    if concepts and set(alarm) == set(concepts):
        problems.add(f"{path}: every concept is an alarm; leave at least one that is not")
    return concepts, alarm, header.get("name") or path.parent.name


def line_of(items_file: Path, ident: str) -> int | None:
    """Return the number of an item's line, from 1; None if the file or the item is missing."""
    if not items_file.is_file():
        return None
    for number, line in enumerate(read_text(items_file).split("\n"), start=1):
        with suppress(ItemError):  # a broken line, reported when the set was read
            row = parse_json(line)
            if isinstance(row, dict) and key(row.get("id")) == ident:
                return number
    return None


def _check_splits(items: Sequence[Item], path: Path, line_of: dict[str, int], problems: ErrorCollector) -> None:
    splits: dict[str, dict[str, str]] = defaultdict(dict)
    for item in items:
        splits[item.clip].setdefault(item.split, item.id)
    for clip, where in splits.items():
        if len(where) > 1:
            named = ", ".join(f"{split} (item {ident!r}, line {line_of[ident]})" for split, ident in where.items())
            problems.add(f"{path}: clip {clip!r} is in several splits: {named}; keep all questions of a clip in one split")
