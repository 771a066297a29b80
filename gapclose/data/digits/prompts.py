"""Other prompts for the digits set, in words that the tiny model knows; it has seen no others.

--prompts.measured "[gapclose.data.digits.prompts:check, gapclose.data.digits.prompts:rephrased]"
"""

from __future__ import annotations

from dataclasses import replace

from gapclose.data.digits import questions
from gapclose.data.items import Item
from gapclose.data.question_text import asking_text, with_text


def check(item: Item) -> Item:
    """Return the item with a request to check its claim.

    The request invites a rejection, and *yes* replaces all content words.
    """
    premise, _ = _parts(item)
    options = [o for o in questions.check_options() if o == questions.YES or o in item.options]
    gold = None if item.concept is None else [o.concept for o in options].index(item.concept)
    return replace(item, messages=with_text(item, f"{premise} {questions.CHECKS[int(item.tags['ask'])]}"), options=options, gold=gold)


def rephrased(item: Item) -> Item:
    """Return the item with the other of the two phrasings of its question; the claim stays."""
    premise, kind = _parts(item)
    return replace(item, messages=with_text(item, f"{premise} {kind.asks[1 - int(item.tags['ask'])]}"))


def _parts(item: Item) -> tuple[str, questions.Kind]:
    """Return the sentence that states the claim, and the kind of question after it.

    Raises:
        ValueError: when the item is not a premise question of the digits set.
    """
    kind = questions.KINDS.get(item.tags.get("question", ""))
    if kind is None:
        raise ValueError("no premise question of the embedded world (tag `question`)")
    premise, stop, _ = asking_text(item).partition(". ")
    return premise + stop.strip(), kind
