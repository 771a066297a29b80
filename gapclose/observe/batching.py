"""Questions about the same clip: which they are, in which batches they stand together, and their prompts in two parts, what they share and
what they ask.

Shapes: B batch (questions), C clips in it, P tokens of the longest shared part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from gapclose.data.items import Item
from gapclose.models.processing import media_signature
from gapclose.observe.prefix_prompts import lead


def group_by_media(items: Sequence[Item]) -> list[list[int]]:
    """Places of the items that share a reading, in the order of their first; items without media share none."""
    found: dict[Any, list[int]] = {}
    for n, item in enumerate(items):
        shared = lead(item)
        found.setdefault(n if shared is None else shared, []).append(n)
    return list(found.values())


def batch_by_media(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Batches of at most ``size`` items in which the questions of a clip stand together; only clips with more questions are cut."""
    batches: list[list[Item]] = []
    for places in group_by_media(items):
        for begin in range(0, len(places), size):
            asked = [items[n] for n in places[begin : begin + size]]
            if not batches or len(batches[-1]) + len(asked) > size:
                batches.append([])
            batches[-1] += asked
    return batches


def plan_batches(items: Sequence[Item], size: int, *, by_clip: bool = False) -> list[list[Item]]:
    """Cut items into batches that carry the same kinds of media, keeping the order within a kind, or (``by_clip``) questions about the
    same media together."""
    groups: dict[tuple[str, ...], list[Item]] = defaultdict(list)
    for item in items:
        groups[media_signature(item)].append(item)
    if by_clip:
        return [batch for group in groups.values() for batch in batch_by_media(group, size)]
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]
