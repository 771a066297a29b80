"""The lengths of a few prompts, and how much of training batches is padding, for `gapclose validate`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item
from gapclose.models.loading import LoadedModel
from gapclose.models.processing import media_signature
from gapclose.training.config import TrainConfig

LOOKED_AT = 8
"""items per purpose whose prompts are made to measure their length"""
DRAWN = 400
"""micro-batches that are drawn to estimate their padding"""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Lengths of the prompts of a few items."""

    tokens: list[int]
    gap: Item
    """the longest gap item"""
    retain: Item | None
    """the longest retention item"""
    by_purpose: Mapping[str, Sequence[tuple[tuple[str, ...], int]]]
    """purpose -> kinds of media and tokens of each of its items"""


def look_at(loaded: LoadedModel, items: ItemSet) -> Seen | None:
    """Make the prompts of a few items at even distances in the set; None without gap items."""
    media, longest = loaded.media(items), dict[str, tuple[int, Item]]()
    found = defaultdict[str, list[tuple[tuple[str, ...], int]]](list)
    for purpose in ("gap", "retain"):
        among = items.select(purpose=purpose).items
        for item in among[:: max(1, len(among) // LOOKED_AT)][:LOOKED_AT]:
            length = loaded.prompts([item], media)["input_ids"].shape[1]
            found[purpose].append((media_signature(item), length))
            longest[purpose] = max(longest.get(purpose, (0, item)), (length, item), key=lambda found: found[0])
    if "gap" not in longest:
        return None
    tokens = [n for of in found.values() for _, n in of]
    return Seen(tokens=tokens, gap=longest["gap"][1], retain=longest["retain"][1] if "retain" in longest else None, by_purpose=found)


def padding_share(seen: Seen, train: TrainConfig) -> float:
    """Estimate the share of padding, 0..1, among the tokens of prompts in micro-batches.

    Micro-batches are drawn from the items of ``seen``, with retention items by their share. Items
    with other kinds of media are no rows of one forward.
    """
    draw, padded, used = np.random.default_rng(0), 0, 0
    share = train.retain_share if train.retain and seen.by_purpose.get("retain") else 0.0
    for _ in range(DRAWN):
        rows = defaultdict[tuple[str, ...], list[int]](list)
        for retain in draw.random(train.micro_batch_size) < share:
            among = seen.by_purpose["retain" if retain else "gap"]
            kinds, length = among[int(draw.integers(len(among)))]
            rows[kinds].append(length)
        padded += sum(max(of) * len(of) for of in rows.values())
        used += sum(map(sum, rows.values()))
    return 1 - used / padded


def padding_words(seen: Seen, train: TrainConfig) -> str:
    """Return :func:`padding_share` for users."""
    return f"{padding_share(seen, train):.0%} of their tokens, in micro-batches of {train.micro_batch_size} of the items looked at"
