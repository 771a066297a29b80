"""Options in another order, drawn for every item: what is chosen for its place can then be told from what is chosen for its content."""

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
"""texts that list options, and can be written again with the options in another order"""


def shuffle_options(items: ItemSet, seed: int, problems: ErrorCollector, *, shown: bool = True) -> ItemSet:
    """The set with the options of every gap and transfer item in an order of its own; gold follows.

    The order depends on ``seed`` and the item's id alone; twins share theirs. Letters keep their places: what stands behind them moves, in
    the text as well. Where a text does not list its options, only the order changes in which they are scored. The places that the options
    have in the data are kept as a tag (:attr:`gapclose.data.items.Item.order`).

    Args:
        shown: whether the items' own texts are asked at all; other prompts are written from the options.

    Items whose text lists the options in a way that cannot be written again go to ``problems``.
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
    """The item with its option ``order[k]`` at place k.

    Raises:
        ItemError: when the text lists the options and cannot be written again.
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
    """The messages with the options listed in their new order, if they are listed."""
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
