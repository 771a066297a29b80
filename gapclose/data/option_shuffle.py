"""Options in a random order per item, to separate choices by position from choices by content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gapclose.core.errors import ErrorCollector, ItemError
from gapclose.data.item_set import ItemSet
from gapclose.data.items import ORDER, Item, Option
from gapclose.data.prompt_templates import tell_faults
from gapclose.data.question_text import asking_text, either_prompt, lettered, letters_prompt, lists_options, with_text

LISTINGS = (letters_prompt, either_prompt)
"""prompts that list options and can be rewritten with another order"""


def shuffle_options(items: ItemSet, seed: int, problems: ErrorCollector, *, shown: bool = True) -> ItemSet:
    """Return the set with the options of gap and transfer items in random orders; gold follows.

    An order depends only on ``seed`` and the item's id; twins share it. Letters keep their places:
    the meanings behind them move, in the text as well. If a text does not list its options, only
    the order of scoring changes. A tag keeps the original places
    (:attr:`gapclose.data.items.Item.order`).

    Args:
        shown: whether the items' own texts are used; other prompts are written from the options.
        problems: receives items whose text lists the options in a form that cannot be rewritten.
    """
    by_id = {i.id: i for i in items}
    made, faults = list[Item](), dict[str, list[str]]()
    for item in items:
        twin = by_id.get(item.tags.get("twin", ""))
        paired = twin is not None and twin.tags.get("twin") == item.id and len(twin.options) == len(item.options)
        name = min(item.id, item.tags["twin"]) if paired else item.id
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        order = np.random.default_rng([seed, number]).permutation(len(item.options)).tolist()
        try:
            made.append(item if item.purpose == "retain" else reordered(item, order, shown))
        except ItemError as fault:
            faults.setdefault(str(fault), []).append(item.id)
    tell_faults(faults, "data.shuffle_options", problems)
    return replace(items, items=tuple(made))


def reordered(item: Item, order: Sequence[int], shown: bool) -> Item:
    """Return the item with its option ``order[k]`` at place k.

    Raises:
        ItemError: when the text lists the options and cannot be rewritten, or the options are
            letters without meaning.
    """
    if lettered(item):
        raise ItemError(
            "its options are letters, and nothing says what they stand for; give every option its `meaning`, and the item its `stem`"
        )
    moved = [item.options[place] for place in order]
    options = [
        moving if here.meaning is None and moving.meaning is None else Option(text=here.text, concept=moving.concept, meaning=moving.words)
        for here, moving in zip(item.options, moved, strict=True)
    ]
    gold = None if item.gold is None else list(order).index(item.gold)
    tags = {**item.tags, ORDER: " ".join(map(str, order))}
    return replace(item, options=options, gold=gold, tags=tags, messages=_listed(item, moved) if shown else item.messages)


def _listed(item: Item, moved: Sequence[Option]) -> list[dict]:
    """Return the messages with the options in their new order, if the text lists them."""
    text = asking_text(item)
    for listing in LISTINGS:
        if item.stem is not None and text == listing(item.stem, [o.words for o in item.options]):
            return with_text(item, listing(item.stem, [o.words for o in moved]))
    if any(o.meaning is not None for o in item.options) or lists_options(text, item):
        raise ItemError(
            "its text names every option in a form that cannot be written again in another order; give the item its `stem` and ask another "
            "prompt than its own (prompts.asked: paper), or set data.shuffle_options to false"
        )
    return item.messages
