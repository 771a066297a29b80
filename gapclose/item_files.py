"""Item sets on disk: ``set.json`` and ``items.jsonl``, read with every error told in one pass.

- ``set.json`` declares the concepts, e.g. ``{"name": "digits", "concepts": ["standard", "false_vision", "false_audio"],
  "alarm": ["false_vision", "false_audio"]}``. ``alarm`` may be empty.
- ``items.jsonl`` holds one item a line; media paths are relative to the directory.

Nothing here opens a media file or a model: :mod:`gapclose.media` checks the media, :mod:`gapclose.models` the tokens.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gapclose.errors import Problems
from gapclose.files import write_text
from gapclose.items import CONTENT_TYPES, ORDER, PURPOSES, SPLITS, Item, ItemSet, Option, content_parts, leaves

ROLES = ("system", "user", "assistant")


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


def read_items(directory: str | Path, problems: Problems | None = None) -> ItemSet:
    """Read and check an item set.

    Args:
        problems: collect what is wrong here and return the items that could be read, so that other checks can add to it.

    Raises:
        ValueError: everything that is wrong with the set, all at once, each with file, line, item and remedy. With ``problems``, only
            when a file is missing.
    """
    directory = Path(directory)
    collect = problems is not None
    problems = Problems(f"the item set {directory}") if problems is None else problems
    header_file, items_file = directory / "set.json", directory / "items.jsonl"
    for path, remedy in ((header_file, "declare the concepts there"), (items_file, "put one item per line there")):
        if not path.is_file():
            problems.add(f"{path}: no such file; {remedy} (docs/your-data.md shows the format)")
    problems.raise_if_any()

    concepts, alarm, name = _read_header(header_file, problems)
    items: list[Item] = []
    line_of: dict[str, int] = {}
    try:
        lines = items_file.read_text(encoding="utf-8").split("\n")  # splitlines() would also cut at U+2028 inside a text
    except UnicodeDecodeError as error:
        problems.add(f"{items_file}: not UTF-8 ({error}); write it again in that encoding")
        lines = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        item = _read_item(line, f"{items_file}:{number}", concepts, problems)
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
    return ItemSet(root=directory, name=name, concepts=concepts, alarm=alarm, items=tuple(items))


def _read_header(path: Path, problems: Problems) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        problems.add(f"{path}: not JSON ({error}); mend the syntax")
        return (), (), path.parent.name
    if not isinstance(header, dict):
        problems.add(f"{path}: holds {type(header).__name__}, not an object with `concepts` and `alarm`")
        return (), (), path.parent.name
    if "alarm" not in header:
        problems.add(f"{path}: alarm is missing; name the concepts that call for action when they are seen, or write [] where none does")
    for key in ("concepts", "alarm"):
        names = header.get(key) or []
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            problems.add(f"{path}: {key} is {names!r}; it must be a list of names")
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
    """Number of the line that holds an item, from 1; None when there is none, or no such file."""
    if not items_file.is_file():
        return None
    for number, line in enumerate(items_file.read_text(encoding="utf-8").split("\n"), start=1):
        with suppress(ValueError, AttributeError):  # a broken line, or one that holds no object
            if json.loads(line).get("id") == ident:
                return number
    return None


def _read_item(line: str, where: str, concepts: tuple[str, ...], problems: Problems) -> Item | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        problems.add(f"{where}: not JSON ({error}); write one JSON object per line")
        return None
    if not isinstance(row, dict):
        problems.add(f"{where}: holds {type(row).__name__}, not an object")
        return None
    before = len(problems)
    label = f"{where}: item {row.get('id')!r}"
    unknown = sorted(set(row) - set(Item.__dataclass_fields__))
    if unknown:
        problems.add(f"{label}: unknown keys {unknown}; put free labels under `tags`")
    for key in ("id", "clip", "split", "modality"):
        if not isinstance(row.get(key), str) or not row.get(key):
            problems.add(f"{label}: {key} is {row.get(key)!r}; it must be a non-empty string")
    if isinstance(row.get("split"), str) and row["split"] not in SPLITS:
        problems.add(f"{label}: split {row['split']!r} is not one of {list(SPLITS)}")
    if row.get("purpose", "gap") not in PURPOSES:
        problems.add(f"{label}: purpose {row['purpose']!r} is not one of {list(PURPOSES)}")
    tags = row.get("tags") or {}
    if not isinstance(tags, dict) or any(isinstance(v, dict | list) for v in tags.values()):
        problems.add(f"{label}: tags is {tags!r}; it must be an object of strings")
    elif ORDER in tags:
        problems.add(f"{label}: the tag {ORDER!r} is kept for options that are shuffled on reading; use another name")
    if not (row.get("stem") is None or (isinstance(row["stem"], str) and row["stem"].strip())):
        problems.add(f"{label}: stem is {row['stem']!r}; write the question without its options, or leave the key out")
    _check_messages(row.get("messages"), label, problems)
    options, gold = _read_options(row, label, concepts, problems)
    if len(problems) > before:
        return None
    return Item(
        id=row["id"],
        clip=row["clip"],
        split=row["split"],
        modality=row["modality"],
        messages=row["messages"],
        options=options,
        gold=gold,
        purpose=row.get("purpose", "gap"),
        tags={str(k): str(v) for k, v in tags.items()},
        stem=row.get("stem"),
    )


def _check_messages(messages: Any, label: str, problems: Problems) -> None:
    if not isinstance(messages, list) or not messages:
        problems.add(f"{label}: messages is {messages!r}; it must be a non-empty list of {{role, content}}")
        return
    for message in messages:
        if not isinstance(message, dict) or "role" not in message or not isinstance(message.get("content"), str | list):
            problems.add(f"{label}: message {message!r} needs `role` and `content` (a string or a list of parts)")
            continue
        if message["role"] not in ROLES:
            problems.add(f"{label}: role {message['role']!r} is not one of {list(ROLES)}; a chat template may pass over others")
        if unknown := sorted(set(message) - {"role", "content"}):
            problems.add(f"{label}: a message has the keys {unknown} beside `role` and `content`; nothing looks at them, take them out")
        for part in content_parts([message]):
            kind = part.get("type") if isinstance(part, dict) else None
            key = "text" if kind == "text" else "path"
            if kind not in CONTENT_TYPES or not isinstance(part.get(key), str):
                problems.add(f"{label}: content part {part!r} needs `type` (one of {list(CONTENT_TYPES)}) and `text` or `path`")
            elif key == "path" and leaves(part["path"]):
                problems.add(f"{label}: {kind} is {part['path']!r}, which leaves the set's directory; move or link the file into it")
            elif unknown := sorted(set(part) - {"type", key}):
                problems.add(f"{label}: content part {part!r} has the keys {unknown}; nothing looks at them, take them out")


def _read_options(row: dict, label: str, concepts: tuple[str, ...], problems: Problems) -> tuple[list[Option], int | None]:
    raw = row.get("options")
    if not isinstance(raw, list) or len(raw) < 2:
        problems.add(f"{label}: options is {raw!r}; it must list at least two of {{text, concept}}")
        return [], None
    options: list[Option] = []
    for entry in raw:
        text = entry.get("text") if isinstance(entry, dict) else None
        concept = entry.get("concept") if isinstance(entry, dict) else None
        meaning = entry.get("meaning") if isinstance(entry, dict) else None
        if not isinstance(text, str) or not text.strip():
            problems.add(f"{label}: option {entry!r} has no text")
        elif concept is None:
            problems.add(f"{label}: option {text!r} has no concept; name one of {list(concepts)}")
        elif concepts and concept not in concepts:  # without concepts, set.json has been complained about already
            problems.add(f"{label}: option {text!r} expresses {concept!r}, which set.json does not declare ({list(concepts)})")
        elif not (meaning is None or (isinstance(meaning, str) and meaning.strip())):
            problems.add(f"{label}: option {text!r} has the meaning {meaning!r}; write what the letter stands for, or leave the key out")
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
            problems.add(f"{label}: gold {gold!r} is not among the options {texts}; copy one of them letter for letter")
        return options, None
    return options, texts.index(gold)


def _check_splits(items: Sequence[Item], path: Path, line_of: dict[str, int], problems: Problems) -> None:
    splits: dict[str, dict[str, str]] = defaultdict(dict)
    for item in items:
        splits[item.clip].setdefault(item.split, item.id)
    for clip, where in splits.items():
        if len(where) > 1:
            named = ", ".join(f"{split} (item {ident!r}, line {line_of[ident]})" for split, ident in where.items())
            problems.add(f"{path}: clip {clip!r} is in several splits: {named}; keep all questions of a clip in one split")


def check_splits_filled(items: ItemSet, needs: dict[str, bool], folds: int, problems: Problems) -> None:
    """Check that every split in ``needs`` has gap items, and, where its value is True, a gold option on each and every concept,
    which occurs in at least ``folds`` clips: probes are fitted in so many folds of clips.

    Adds to ``problems`` every empty split, every unlabelled item of a labelled split (val and test measure items of every purpose, fit
    only looks at gap items), and every missing concept.
    """
    path = items.where
    remedy = "add some or change the split of others" + (" (data.shares deals clips out)" if path.is_dir() else "")
    for split, labelled in needs.items():
        chosen = items.select(split=split, purpose="gap").items
        if not chosen:
            problems.add(f"{path}: split {split!r} has no items with purpose 'gap'; {remedy}")
            continue
        if not labelled:
            continue
        looked_at = chosen if split == "fit" else items.select(split=split).items
        missing = [i.id for i in looked_at if i.gold is None]
        if missing:
            problems.add(
                f"{path}: split {split!r} needs labels, but {len(missing)} items have no gold option, "
                f"e.g. {missing[:3]}; label them or move them to split 'train'"
            )
            continue
        for concept in items.concepts:
            clips = len({i.clip for i in chosen if i.concept == concept})
            if not clips:
                problems.add(f"{path}: split {split!r} has no item whose gold expresses {concept!r}; no probe can learn or be judged on it")
            elif clips < folds:
                problems.add(
                    f"{path}: split {split!r} has items whose gold expresses {concept!r} about {clips} clips, too few for {folds} folds of "
                    "clips; add clips, lower probe.folds or, where data.shares dealt them out, give this split more"
                )
