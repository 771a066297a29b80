"""Group the questions about a clip, and form batches that keep them together.

Shapes: B batch (questions), C clips in it, P tokens of the longest shared part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from gapclose.data.items import Item
from gapclose.models.processing import media_signature
from gapclose.observe.prefix_prompts import prefix_key


def group_by_clip(items: Sequence[Item]) -> list[list[int]]:
    """Group the places of items that ask about the same media or, without media, the same clip.

    Groups are in the order of their first item.
    """
    found: dict[str, list[int]] = {}
    for n, item in enumerate(items):
        found.setdefault(prefix_key(item), []).append(n)
    return list(found.values())


def batch_by_clip(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Form batches of at most ``size`` items that keep the questions of a clip together.

    Only clips with more questions than ``size`` are split.
    """
    batches: list[list[Item]] = []
    for places in group_by_clip(items):
        for begin in range(0, len(places), size):
            asked = [items[n] for n in places[begin : begin + size]]
            if not batches or len(batches[-1]) + len(asked) > size:
                batches.append([])
            batches[-1] += asked
    return batches


def plan_batches(items: Sequence[Item], size: int, *, by_clip: bool = False) -> list[list[Item]]:
    """Form batches of items with the same kinds of media, in the order of the items within a kind.

    With ``by_clip``, questions about the same clip stay together instead.
    """
    groups: dict[tuple[str, ...], list[Item]] = defaultdict(list)
    for item in items:
        groups[media_signature(item)].append(item)
    if by_clip:
        return [batch for group in groups.values() for batch in batch_by_clip(group, size)]
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]
