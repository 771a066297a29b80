"""Fewer, wrong or missing labels of ``fit`` items, for comparisons of objectives.

Labels of val and test do not change.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gapclose.data.config import LabellingConfig
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item
from gapclose.data.keys import fold


def relabel(items: ItemSet, config: LabellingConfig, seed: int) -> ItemSet:
    """Return the set with fewer or noisier labels on the gap items of fit.

    The seed draws clips and noise. Clips are added in a random order up to the first one that would
    exceed the budget. So a smaller budget has a subset of a larger one's clips.

    Raises:
        ValueError: when no fit item has the tag, or the first clip exceeds the budget.
    """
    fit = [i for i in items if i.split == "fit" and i.purpose == "gap"]
    kept = fit
    if config.without is not None:
        tag, _, value = config.without.partition("=")
        kept = [i for i in kept if i.tags.get(tag) not in (value, fold(value))]
        if len(kept) == len(fit):
            known = sorted({f"{t}={v}" for i in fit for t, v in i.tags.items()})[:20]
            raise ValueError(f"labelling.without {config.without!r}: no gap item of fit in {items.root} has that tag; there are {known}")
    if config.budget is not None:
        kept = _within(kept, config.budget, seed)
        if not kept:
            raise ValueError(
                f"labelling.budget {config.budget}: the first clip that is drawn of fit in {items.root} has more gap items; raise it"
            )
    changed = {i.id: i for i in _spoil(kept, config.noise, seed)}
    gone = {i.id for i in fit} - set(changed)
    return replace(items, items=tuple(changed.get(i.id, i) for i in items if i.id not in gone))


def _within(items: list[Item], budget: int, seed: int) -> list[Item]:
    clips = np.random.default_rng([seed, 1]).permutation(sorted({i.clip for i in items}))
    taken: set[str] = set()
    count = 0
    for clip in clips.tolist():
        size = sum(i.clip == clip for i in items)
        if count + size > budget:
            break
        taken.add(clip)
        count += size
    return [i for i in items if i.clip in taken]


def _spoil(items: list[Item], noise: float, seed: int) -> list[Item]:
    rng = np.random.default_rng([seed, 2])
    wrong = set(rng.permutation(len(items))[: round(noise * len(items))].tolist())
    turns = [int(rng.integers(1, len(i.options))) for i in items]
    return [replace(i, gold=(i.gold + turns[n]) % len(i.options)) if n in wrong and i.gold is not None else i for n, i in enumerate(items)]
