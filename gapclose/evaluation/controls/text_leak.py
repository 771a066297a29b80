"""How much the text of the labelled items reveals, computed in seconds and before a model loads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gapclose.data.item_set import ItemSet
from gapclose.evaluation.controls.scoring import chance
from gapclose.evaluation.controls.text import text_only, text_out_of_fold
from gapclose.metrics.bootstrap import ClipBootstrap, Interval
from gapclose.metrics.labels import Labels

MOST = 2_000
"""items examined; of larger sets, clips are drawn until this number is reached"""
REPLICATES = 1_000


class Leak(NamedTuple):
    """How well the text alone predicts the right concept, for one modality."""

    modality: str
    n_items: int
    n_clips: int
    balanced: Interval
    """balanced accuracy out of fold, with its clip-bootstrap interval"""
    chance: float

    @property
    def above(self) -> bool:
        """Whether the interval lies above chance."""
        return self.balanced.lower > self.chance


def text_leak(items: ItemSet, *, folds: int, seed: int = 0) -> list[Leak]:
    """Score TF-IDF with logistic regression on the labelled gap items, by modality.

    Balanced accuracy is out of fold, in folds over the clips of fit, val and test together, so
    clues that are missing in fit are found as well. Features and strength are chosen as in the
    text-only control, on the same folds, which slightly favours the text. Modalities with one
    concept are left out.
    """
    known = [i for i in items.select(purpose="gap") if i.gold is not None and i.split != "train"]
    several = {m for m in {i.modality for i in known} if len({i.concept for i in known if i.modality == m}) > 1}
    chosen = _few([i for i in known if i.modality in several and any(c.isalnum() for c in i.text)])
    folds = min([folds, *(len({i.clip for i in chosen if i.concept == c}) for c in {i.concept for i in chosen})])
    if not chosen or folds < 2:
        return []
    labels = Labels.of(items.holding(chosen))
    texts, how = [i.text for i in chosen], {"folds": folds, "seed": seed}
    concepts, y = np.unique(labels.concept, return_inverse=True)
    best = text_only(texts, y, labels.clip, texts[:1], within=(labels.modality, labels.modality[:1]), **how)
    reading = text_out_of_fold(texts, y, labels.clip, best, known=labels.modality, **how)
    right = concepts[reading.argmax(1)] == labels.concept
    found = []
    for modality in sorted({i.modality for i in chosen}):
        keep = labels.modality == modality
        part = labels.take(keep)
        clips = ClipBootstrap(part.clip, REPLICATES, seed)
        found.append(Leak(modality, int(keep.sum()), clips.n, Interval.of(clips.balanced(right[keep], part)), chance(part)))
    return found


def _few(items: list) -> list:
    """Select the items of randomly drawn clips until there are :data:`MOST`, in the given order."""
    clips = np.random.default_rng(0).permutation(sorted({i.clip for i in items})).tolist()
    by_clip: dict[str, int] = {}
    for item in items:
        by_clip[item.clip] = by_clip.get(item.clip, 0) + 1
    before = np.cumsum([0, *(by_clip[c] for c in clips)])
    taken = {clip for clip, count in zip(clips, before, strict=False) if count < MOST}
    return [i for i in items if i.clip in taken]
