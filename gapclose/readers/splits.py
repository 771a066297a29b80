"""Who goes where: clips dealt out to the splits by shares, and twins that find each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gapclose.errors import Problems
from gapclose.items import SPLITS, Item, ItemSet


@dataclass(frozen=True, kw_only=True)
class Dealing:
    """How clips are dealt out to fit, train, val and test."""

    shares: Sequence[float] = (0.3, 0.3, 0.1, 0.3)
    """of the clips, in the order fit, train, val, test; they add up to 1, and a split may be left out with 0"""
    seed: int = 0

    def deal(self, clips: Iterable[str]) -> dict[str, str]:
        """Clip -> split. Depends on the names of the clips and the seed alone, not on their order."""
        names = sorted(set(clips))
        order = np.random.default_rng(self.seed).permutation(len(names)).tolist()
        ends = np.round(np.cumsum(self.shares) * len(names)).astype(int).tolist()
        starts = [0, *ends[:-1]]
        return {names[n]: split for split, a, b in zip(SPLITS, starts, ends, strict=True) for n in order[a:b]}


def check_apart(items: ItemSet, problems: Problems) -> None:
    """Add to ``problems`` ids that occur twice, and clips in several splits, for sets that a reader made of tables."""
    seen: dict[str, int] = {}
    splits: dict[str, dict[str, str]] = defaultdict(dict)
    for item in items:
        seen[item.id] = seen.get(item.id, 0) + 1
        splits[item.clip].setdefault(item.split, item.id)
    for ident, count in seen.items():
        if count > 1:
            problems.add(f"{items.where}: item id {ident!r} was already used ({count} times in all); give every item its own id")
    for clip, where in splits.items():
        if len(where) > 1:
            named = ", ".join(f"{split} (item {ident!r})" for split, ident in where.items())
            problems.add(f"{items.where}: clip {clip!r} is in several splits: {named}; keep all questions of a clip in one split")


def by_clip(items: Sequence[Item]) -> tuple[Item, ...]:
    """The items with all questions of a clip side by side, so that its media are decoded once: clips in the order of their first item."""
    place = {clip: n for n, clip in enumerate(dict.fromkeys(i.clip for i in items))}
    return tuple(sorted(items, key=lambda i: place[i.clip]))


def tag_twins(items: Sequence[Item]) -> list[Item]:
    """The items, each of a pair carrying the other's id as tag ``twin``: the only two of a clip and modality, if their right concepts differ."""
    groups: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        groups[item.clip, item.modality].append(item)
    twin = {}
    for group in groups.values():
        if len(group) == 2 and None not in (a := {i.concept for i in group}) and len(a) == 2:
            twin |= {group[0].id: group[1].id, group[1].id: group[0].id}
    return [replace(i, tags={**i.tags, "twin": twin[i.id]}) if i.id in twin else i for i in items]
