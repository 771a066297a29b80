"""One line of ``items.jsonl``: an item, or everything that is wrong with it."""

from __future__ import annotations

import re
from typing import Any

from gapclose.core.errors import ErrorCollector, ItemError, shown
from gapclose.core.parsing import parse_json
from gapclose.data.items import CONTENT_TYPES, EVERYTHING, ORDER, PURPOSES, SPLITS, Item, Option, content_parts, leaves, path_fault
from gapclose.data.keys import Spellings, key

ROLES = ("system", "user", "assistant")
IDENT = re.compile(r'"id"\s*:\s*"((?:[^"\\]|\\.)*)"')
"""the id on a line that cannot be parsed"""


def read_item(line: str, where: str, concepts: tuple[str, ...], spelled: Spellings, problems: ErrorCollector) -> Item | None:
    """Return the item on one line of ``items.jsonl``; None if ``problems`` received errors.

    Args:
        where: file and line, for messages.
        spelled: records the spellings of clips, modalities and tags.
    """
    try:
        row = parse_json(line, "write one JSON object per line")
    except ItemError as fault:
        known = IDENT.search(line)
        label = "" if known is None or str(fault).startswith("not JSON") else f"item {shown(known[1])}: "
        problems.add(f"{where}: {label}{fault}")
        return None
    if not isinstance(row, dict):
        problems.add(f"{where}: holds {type(row).__name__}, not an object")
        return None
    before = len(problems)
    label = f"{where}: item {shown(row.get('id'))}"
    unknown = sorted(set(row) - set(Item.__dataclass_fields__))
    if unknown:
        problems.add(f"{label}: unknown keys {unknown}; put free labels under `tags`")
    names: dict[str, str] = {}
    for field in ("id", "clip", "split", "modality"):
        value = row.get(field)
        if not isinstance(value, str):
            problems.add(f"{label}: {field} is {shown(value)}; it must be a non-empty string")
            continue
        names[field] = _key(value, label, field, problems)
        if field in ("clip", "modality"):
            spelled.add(field, value, names[field])
    if names.get("split") and names["split"] not in SPLITS:
        problems.add(f"{label}: split {shown(row['split'])} is not one of {list(SPLITS)}")
    if names.get("modality") == EVERYTHING:
        problems.add(f"{label}: modality {EVERYTHING!r} is kept for figures over every modality; use another name")
    if row.get("purpose", "gap") not in PURPOSES:
        problems.add(f"{label}: purpose {shown(row['purpose'])} is not one of {list(PURPOSES)}")
    tags = _read_tags(row.get("tags") or {}, label, spelled, problems)
    if not (row.get("stem") is None or (isinstance(row["stem"], str) and row["stem"].strip())):
        problems.add(f"{label}: stem is {shown(row['stem'])}; write the question without its options, or leave the key out")
    check_messages(row.get("messages"), label, problems)
    options, gold = read_options(row, label, concepts, problems)
    if len(problems) > before:
        return None
    return Item(
        **names,
        messages=row["messages"],
        options=options,
        gold=gold,
        purpose=row.get("purpose", "gap"),
        tags=tags,
        stem=row.get("stem"),
    )


def _key(value: Any, label: str, name: str, problems: ErrorCollector) -> str:
    """Return the key of a value; missing and invalid ones go to ``problems``."""
    try:
        found = key(value)
    except ItemError as fault:
        problems.add(f"{label}: {name} {fault}")
        return ""
    if not found:
        problems.add(f"{label}: {name} is {shown(value)}; it must be a non-empty string")
    return found


def _read_tags(tags: Any, label: str, spelled: Spellings, problems: ErrorCollector) -> dict[str, str]:
    if not isinstance(tags, dict) or any(isinstance(v, dict | list) for v in tags.values()):
        problems.add(f"{label}: tags is {shown(tags)}; it must be an object of strings")
        return {}
    if ORDER in tags:
        problems.add(f"{label}: the tag {ORDER!r} is kept for options that are shuffled on reading; use another name")
    found = {}
    for name, value in tags.items():
        if value is None:
            problems.add(f"{label}: the tag {shown(name)} is null; give it a value, or leave it out")
            continue
        found[name] = _key(value, label, f"the tag {shown(name)}", problems)
        if name != "twin":
            spelled.add(f"tag {name}", value, found[name])
    return found


def check_messages(messages: Any, label: str, problems: ErrorCollector, *, within: bool = True) -> None:
    """Add to ``problems`` everything that is wrong with the messages of a question.

    Args:
        within: refuse media outside the directory of the set.
    """
    if not isinstance(messages, list) or not messages:
        problems.add(f"{label}: messages is {shown(messages)}; it must be a non-empty list of {{role, content}}")
        return
    for message in messages:
        if not isinstance(message, dict) or "role" not in message or not isinstance(message.get("content"), str | list):
            problems.add(f"{label}: message {shown(message)} needs `role` and `content` (a string or a list of parts)")
            continue
        if message["role"] not in ROLES:
            problems.add(f"{label}: role {shown(message['role'])} is not one of {list(ROLES)}; a chat template may pass over others")
        if unknown := sorted(set(message) - {"role", "content"}):
            problems.add(f"{label}: a message has the keys {unknown} beside `role` and `content`; nothing looks at them, take them out")
        for part in content_parts([message]):
            kind = part.get("type") if isinstance(part, dict) else None
            field = "text" if kind == "text" else "path"
            if kind not in CONTENT_TYPES or not isinstance(part.get(field), str):
                problems.add(f"{label}: content part {shown(part)} needs `type` (one of {list(CONTENT_TYPES)}) and `text` or `path`")
            elif field == "path" and (fault := path_fault(part["path"])):
                problems.add(f"{label}: {kind} is {shown(part['path'])}, {fault}")
            elif within and field == "path" and leaves(part["path"]):
                problems.add(f"{label}: {kind} is {shown(part['path'])}, which leaves the set's directory; move or link the file into it")
            elif unknown := sorted(set(part) - {"type", field}):
                problems.add(f"{label}: content part {shown(part)} has the keys {unknown}; nothing looks at them, take them out")


def read_options(row: dict, label: str, concepts: tuple[str, ...], problems: ErrorCollector) -> tuple[list[Option], int | None]:
    """Return the options of a row and the place of the right one, or None; faults go to ``problems``."""
    raw = row.get("options")
    if not isinstance(raw, list) or len(raw) < 2:
        problems.add(f"{label}: options is {shown(raw)}; it must list at least two of {{text, concept}}")
        return [], None
    options: list[Option] = []
    for entry in raw:
        text = entry.get("text") if isinstance(entry, dict) else None
        concept = entry.get("concept") if isinstance(entry, dict) else None
        meaning = entry.get("meaning") if isinstance(entry, dict) else None
        if not isinstance(text, str) or not text.strip():
            problems.add(f"{label}: option {shown(entry)} has no text")
        elif concept is None:
            problems.add(f"{label}: option {text!r} has no concept; name one of {list(concepts)}")
        # without concepts, the fault of set.json is already reported
        elif concepts and concept not in concepts:
            problems.add(f"{label}: option {text!r} expresses {shown(concept)}, which set.json does not declare ({list(concepts)})")
        elif not (meaning is None or (isinstance(meaning, str) and meaning.strip())):
            problems.add(
                f"{label}: option {text!r} has the meaning {shown(meaning)}; write what the letter stands for, or leave the key out"
            )
        else:
            options.append(Option(text=text, concept=concept, meaning=meaning))
    texts = [o.text for o in options]
    if len({t.strip() for t in texts}) != len(texts):
        problems.add(f"{label}: options {texts} repeat a text; a generated answer could not be told apart")
    gold = row.get("gold")
    if gold is None:
        return options, None
    if gold not in texts:
        if len(texts) == len(raw):
            problems.add(f"{label}: gold {shown(gold)} is not among the options {texts}; copy one of them letter for letter")
        return options, None
    return options, texts.index(gold)
