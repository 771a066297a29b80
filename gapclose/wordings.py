"""Wordings: one item set asked in several prompts. A wording is a function item -> item with other text, options and gold; clip, media,
concept and purpose stay.

- ``own``: as the data have it.
- ``paper``: the source paper's, options lettered from A and a letter to be answered.
- ``binary``: the question, and whether all that it states is true; one answer for the concept that is no alarm, one for the alarm.
- ``binary_explained``: the same, to be explained after the answer.
- ``free``: the question alone; an option is its words.
- ``package.module:function``: one of the user's own.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gapclose.answers import Matching
from gapclose.checks import Checks
from gapclose.errors import Fault, Problems
from gapclose.items import ORDER, Item, ItemSet, Option
from gapclose.stems import LETTERS, either_prompt, letters_prompt, stem_of, with_text

WORDINGS = ("own", "paper", "binary", "binary_explained", "free")
LONG = ("binary_explained", "free")
"""wordings whose answers say more than an option"""
FUNCTION = re.compile(r"[\w.]+:\w+")


@dataclass(kw_only=True)
class PromptsConfig:
    """How items are asked, and how generated answers are matched to options (docs/your-data.md)."""

    asked: str = "own"
    """prompt of the whole run: own (the items' messages), paper, binary, binary_explained, free, or ``package.module:function`` (item -> item)"""
    measured: list[str] = field(default_factory=list)
    """prompts under which test is measured as well, before training and after it; each costs a forward and the answers of all test gap items"""
    refit: bool = True
    """also fit a probe of the same layers, family and strength under every measured prompt; costs a forward of all fit gap items for each"""
    binary_question: str = "Is every detail that the question states true of what is shown and played?"
    """what the binary prompts ask after an item's question; its *yes* must express the concept that is no alarm"""
    binary_answers: list[str] = field(default_factory=lambda: ["yes", "no"])
    """the two answers: of the concept that is no alarm, and of the alarm"""
    match: str | None = None
    """``package.module:function`` (answer, item -> an option's text, or None) for generated answers that name no option by themselves"""
    max_new_tokens: int = 32
    """length limit of answers under measured prompts that say more than an option (binary_explained, free, functions), where
    ``observe.max_new_tokens`` is less"""

    def __post_init__(self) -> None:
        with Checks(self, "prompts") as check:
            for key, names in (("asked", [self.asked]), ("measured", self.measured)):
                for name in names if check.sound(key) else ():
                    if name not in WORDINGS and not FUNCTION.fullmatch(name):
                        check.add(f"prompts.{key} {name!r} is no prompt; choose one of {list(WORDINGS)}, or package.module:function", key)
            if check.sound("asked", "measured"):
                called = [name.rpartition(":")[2] for name in self.names]
                if len(set(called)) < len(called) or len(set(self.measured)) < len(self.measured):
                    message = f"prompts.measured {self.measured} has two prompts of one name; name each once, and functions differently"
                    check.add(message, "measured")
            if self.match is not None and check.sound("match") and not FUNCTION.fullmatch(self.match):
                check.add(f"prompts.match {self.match!r} is no function; write package.module:function, or null", "match")
            if check.sound("binary_answers") and (len(self.binary_answers) != 2 or len({a.strip() for a in self.binary_answers}) != 2):
                check.add(f"{check.named('binary_answers')}; give two texts that differ, e.g. ['yes', 'no']", "binary_answers")
            check.number("max_new_tokens", least=1)

    @property
    def names(self) -> list[str]:
        """The prompt of the run, then the others that are measured."""
        return [self.asked, *(name for name in self.measured if name != self.asked)]

    def limit(self, name: str, tokens: int) -> int:
        """Length limit of generated answers, given that of the run's own prompt."""
        return max(tokens, self.max_new_tokens) if name != self.asked and (name in LONG or name not in WORDINGS) else tokens

    def matching(self, name: str) -> Matching:
        """How answers to a prompt are matched to options.

        Raises:
            ValueError: when ``match`` names no function that can be imported.
        """
        judge = None if self.match is None else named_function(self.match, "prompts.match")
        return Matching(leading=name.startswith("binary"), judge=judge)


def named_function(name: str, key: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names.

    Raises:
        ValueError: naming ``key`` when there is none.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{key} {name!r} cannot be imported ({error}); install its package, or start with PYTHONPATH=. beside it"
        ) from error
    if not callable(found):
        raise ValueError(f"{key} {name!r} is {type(found).__name__}, no function")
    return found


def reword(items: ItemSet, name: str, config: PromptsConfig, problems: Problems) -> ItemSet:
    """The items under a prompt; those that must not change (purpose ``retain``) stay as they are.

    What cannot be asked so goes to ``problems``, a line for every reason, and is left out.
    """
    if name == "own":
        return items
    try:
        ask = _wording(items, name, config)
    except ValueError as error:
        problems.add(str(error) if name in str(error) else f"prompt {name!r}: {error}")
        return items
    made, faults = list[Item](), dict[str, list[str]]()
    for item in items:
        try:
            made.append(item if item.purpose == "retain" else ask(item))
        except Fault as fault:
            faults.setdefault(str(fault), []).append(item.id)
    tell_faults(faults, f"prompt {name!r}", problems)
    return replace(items, items=tuple(made))


def tell_faults(faults: dict[str, list[str]], where: str, problems: Problems) -> None:
    """Add a line for every reason, with the first items that have it."""
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
    """Options lettered from A; what they say is kept as their meaning."""
    if len(item.options) > len(LETTERS):
        raise Fault(f"it has {len(item.options)} options, more than there are letters; choose another prompt")
    text = letters_prompt(stem_of(item), [o.words for o in item.options])
    options = [Option(text=k, concept=o.concept, meaning=o.words) for k, o in zip(LETTERS, item.options, strict=False)]
    return replace(item, messages=with_text(item, text), options=options, stem=stem_of(item))


def free(item: Item) -> Item:
    """The question alone, and every option as its words."""
    words = [o.words for o in item.options]
    if len({w.strip() for w in words}) < len(words):
        raise Fault(f"its options {words} say the same; an answer in words could not be told apart")
    options = [Option(text=w, concept=o.concept) for w, o in zip(words, item.options, strict=True)]
    stem = stem_of(item)
    return replace(item, messages=with_text(item, f"Question:\n{stem}\n\nAnswer in a few words."), options=options, stem=stem)


def binary(item: Item, true: str, denied: dict[str, str], question: str, answers: Sequence[str], *, explained: bool) -> Item:
    """The question, then another about it with two answers.

    Args:
        true: the concept of the first answer. denied: modality -> the concept of the second.
    """
    if item.modality not in denied:
        raise Fault(f"no labelled test item about {item.modality!r} has an alarm, so nothing says what {answers[1]!r} means; label one")
    concepts, stem = (true, denied[item.modality]), stem_of(item)
    if item.concept is not None and item.concept not in concepts:
        raise Fault(f"its right concept is {item.concept!r}, and the two answers express {list(concepts)}; choose another prompt")
    text = either_prompt(f"Question:\n{stem}\n\n{question}", answers)
    text = f"{text[:-1]}, then explain why in one sentence." if explained else text
    options = [Option(text=a, concept=c) for a, c in zip(answers, concepts, strict=True)]
    gold = None if item.concept is None else concepts.index(item.concept)
    tags = {k: v for k, v in item.tags.items() if k != ORDER}  # of options that are not asked here
    return replace(item, messages=with_text(item, text), options=options, gold=gold, stem=stem, tags=tags)


def _sides(items: ItemSet) -> tuple[str, dict[str, str]]:
    """The one concept that is no alarm, and the one alarm of every modality, as the labels of test have it.

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

    def ask(item: Item) -> Item:
        try:
            made = function(item)
        except Exception as error:
            raise Fault(f"{name} failed on it ({type(error).__name__}: {error}); mend the function") from error
        if not isinstance(made, Item):
            raise Fault(f"{name} gave {type(made).__name__}; it must give an Item")
        changed = [key for key in kept if getattr(made, key) != getattr(item, key)]
        if changed:
            raise Fault(f"{name} changed its {' and '.join(changed)}; a prompt may change text, options and gold alone")
        return made

    return ask
