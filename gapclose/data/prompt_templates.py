"""Prompt templates: one item set under several prompts.

A template is a function item -> item that changes text, options and gold. Clip, media, concept and
purpose stay.

- ``own``: the messages of the data.
- ``paper``: the source paper's prompt, with options lettered from A, answered by a letter.
- ``binary``: the question, and whether everything in it is true. One answer expresses the concept
  that is not an alarm, the other the alarm.
- ``binary_explained``: the same, with an explanation after the answer.
- ``free``: the question alone; an option is its words.
- ``package.module:function``: a user's function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from gapclose.core.errors import ErrorCollector, ItemError
from gapclose.core.imports import named_function
from gapclose.data.config import WORDINGS, PromptsConfig
from gapclose.data.item_set import ItemSet
from gapclose.data.items import ORDER, Item, Option
from gapclose.data.question_text import LETTERS, either_prompt, letters_prompt, stem_of, with_text


def apply_template(items: ItemSet, name: str, config: PromptsConfig, problems: ErrorCollector) -> ItemSet:
    """Return the items under a prompt; retention items (purpose ``retain``) do not change.

    Items that the prompt does not fit are left out, and ``problems`` receives a line per reason.
    """
    if name == "own":
        return items
    try:
        apply_prompt = _wording(items, name, config)
    except ValueError as error:
        problems.add(str(error) if name in str(error) else f"prompt {name!r}: {error}")
        return items
    made, faults = list[Item](), dict[str, list[str]]()
    for item in items:
        try:
            made.append(item if item.purpose == "retain" else apply_prompt(item))
        except ItemError as fault:
            faults.setdefault(str(fault), []).append(item.id)
    tell_faults(faults, f"prompt {name!r}", problems)
    return replace(items, items=tuple(made))


def tell_faults(faults: dict[str, list[str]], where: str, problems: ErrorCollector) -> None:
    """Add one line per reason, with the first item that has it and the number of others."""
    for reason, idents in faults.items():
        others = f" (and {len(idents) - 1} more items)" if len(idents) > 1 else ""
        problems.add(f"{where}: item {idents[0]!r}{others}: {reason}")


def _wording(items: ItemSet, name: str, config: PromptsConfig) -> Callable[[Item], Item]:
    if name == "paper":
        return paper
    if name == "free":
        return free
    if name not in WORDINGS:
        return _own_function(named_function(name, "the prompt"), name)
    true, denied = _sides(items)
    explained = name == "binary_explained"
    return lambda item: binary(item, true, denied, config.binary_question, config.binary_answers, explained=explained)


def paper(item: Item) -> Item:
    """Return the item with options lettered from A, whose words become their meaning."""
    if len(item.options) > len(LETTERS):
        raise ItemError(f"it has {len(item.options)} options, more than there are letters; choose another prompt")
    text = letters_prompt(stem_of(item), [o.words for o in item.options])
    options = [Option(text=k, concept=o.concept, meaning=o.words) for k, o in zip(LETTERS, item.options, strict=False)]
    return replace(item, messages=with_text(item, text), options=options, stem=stem_of(item))


def free(item: Item) -> Item:
    """Return the item with the question alone, and options as their words."""
    words = [o.words for o in item.options]
    if len({w.strip() for w in words}) < len(words):
        raise ItemError(f"its options {words} say the same; an answer in words could not be told apart")
    options = [Option(text=w, concept=o.concept) for w, o in zip(words, item.options, strict=True)]
    stem = stem_of(item)
    return replace(item, messages=with_text(item, f"Question:\n{stem}\n\nAnswer in a few words."), options=options, stem=stem)


def binary(item: Item, true: str, denied: dict[str, str], question: str, answers: Sequence[str], *, explained: bool) -> Item:
    """Return the question, followed by another about it with two answers.

    Args:
        true: concept of the first answer. denied: modality -> concept of the second.
    """
    if item.modality not in denied:
        raise ItemError(f"no labelled test item about {item.modality!r} has an alarm, so nothing says what {answers[1]!r} means; label one")
    concepts, stem = (true, denied[item.modality]), stem_of(item)
    if item.concept is not None and item.concept not in concepts:
        raise ItemError(f"its right concept is {item.concept!r}, and the two answers express {list(concepts)}; choose another prompt")
    text = either_prompt(f"Question:\n{stem}\n\n{question}", answers)
    text = f"{text[:-1]}, then explain why in one sentence." if explained else text
    options = [Option(text=a, concept=c) for a, c in zip(answers, concepts, strict=True)]
    gold = None if item.concept is None else concepts.index(item.concept)
    tags = {k: v for k, v in item.tags.items() if k != ORDER}  # this prompt has other options
    return replace(item, messages=with_text(item, text), options=options, gold=gold, stem=stem, tags=tags)


def _sides(items: ItemSet) -> tuple[str, dict[str, str]]:
    """Return the one concept that is not an alarm, and modality -> its alarm by the labels of test.

    Raises:
        ValueError: when there are more of them, or none.
    """
    rest = [c for c in items.concepts if c not in items.alarm]
    if len(rest) != 1 or not items.alarm:
        raise ValueError(f"two answers need one concept that is no alarm, and an alarm; this set has {rest} and {list(items.alarm)}")
    found: dict[str, set[str]] = {}
    for item in items.select(split="test", purpose=("gap", "transfer")):
        if item.concept in items.alarm:
            found.setdefault(item.modality, set()).add(str(item.concept))
    several = {modality: sorted(alarms) for modality, alarms in found.items() if len(alarms) > 1}
    if several:
        raise ValueError(
            f"two answers need one alarm a modality, and test has {several}; use other modality tags, or a function of your own"
        )
    modalities = {i.modality for i in items} if len(items.alarm) == 1 else set()
    return rest[0], dict.fromkeys(modalities, items.alarm[0]) | {modality: alarms.pop() for modality, alarms in found.items()}


def _own_function(function: Callable[..., Any], name: str) -> Callable[[Item], Item]:
    kept = ("id", "clip", "split", "modality", "purpose", "concept", "media")

    def apply_prompt(item: Item) -> Item:
        try:
            made = function(item)
        except Exception as error:
            raise ItemError(f"{name} failed on it ({type(error).__name__}: {error}); fix the function") from error
        if not isinstance(made, Item):
            raise ItemError(f"{name} gave {type(made).__name__}; it must give an Item")
        changed = [key for key in kept if getattr(made, key) != getattr(item, key)]
        if changed:
            raise ItemError(f"{name} changed its {' and '.join(changed)}; a prompt may change text, options and gold alone")
        return made

    return apply_prompt


def apply_prompt(items: ItemSet, name: str, prompts: PromptsConfig) -> ItemSet:
    """Return the items under a prompt.

    Raises:
        ValueError: when the prompt does not fit an item.
    """
    problems = ErrorCollector(f"the item set {items.root} in the prompt {name!r}")
    worded = apply_template(items, name, prompts, problems)
    problems.raise_if_any()
    return worded
