"""Group the questions about a clip, and form batches that keep them together.

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
    """Group the places of items with the same media prefix, in the order of their first.

    Items without media form groups of one.
    """
    found: dict[Any, list[int]] = {}
    for n, item in enumerate(items):
        shared = lead(item)
        found.setdefault(n if shared is None else shared, []).append(n)
    return list(found.values())


def batch_by_media(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Form batches of at most ``size`` items that keep the questions of a clip together.

    Only clips with more questions than ``size`` are split.
    """
    batches: list[list[Item]] = []
    for places in group_by_media(items):
        for begin in range(0, len(places), size):
            asked = [items[n] for n in places[begin : begin + size]]
            if not batches or len(batches[-1]) + len(asked) > size:
                batches.append([])
            batches[-1] += asked
    return batches


def plan_batches(items: Sequence[Item], size: int, *, by_clip: bool = False) -> list[list[Item]]:
    """Form batches of items with the same kinds of media, in the order of the items within a kind.

    With ``by_clip``, questions about the same media stay together instead.
    """
    groups: dict[tuple[str, ...], list[Item]] = defaultdict(list)
    for item in items:
        groups[media_signature(item)].append(item)
    if by_clip:
        return [batch for group in groups.values() for batch in batch_by_media(group, size)]
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]
