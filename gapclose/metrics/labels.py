"""Labels of items as arrays (gold options, concepts, clips, modalities), and a model's answers.

Shapes: N items, O options, C concepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The labels that a measurement is judged by."""

    clip: np.ndarray
    """(N,) clip, the unit of resampling"""
    modality: np.ndarray
    """(N,) str"""
    concept: np.ndarray
    """(N,) int, index of the right concept"""
    gold: np.ndarray
    """(N,) int, index of the right option"""
    option_concept: np.ndarray
    """(N, O) int, concept that each option expresses; -1 beyond an item's options"""
    concepts: tuple[str, ...]
    alarm: tuple[str, ...]

    @classmethod
    def of(cls, items: ItemSet) -> Labels:
        """Collect the labels of a set. Raises: ValueError when an item is unlabelled."""
        missing = [i.id for i in items if i.gold is None]
        if missing:
            raise ValueError(f"{len(missing)} items have no gold option, e.g. {missing[:3]}; only labelled items can be measured")
        index = {c: k for k, c in enumerate(items.concepts)}
        return cls(
            clip=np.array([i.clip for i in items]),
            modality=np.array([i.modality for i in items]),
            concept=np.array([index[str(i.concept)] for i in items], dtype=int),
            gold=np.array([i.gold for i in items], dtype=int),
            option_concept=option_concepts(items.items, items.concepts),
            concepts=items.concepts,
            alarm=items.alarm,
        )

    def take(self, keep: np.ndarray) -> Labels:
        """The items where ``keep`` (N,) bool holds."""
        arrays = {k: getattr(self, k)[keep] for k in ("clip", "modality", "concept", "gold", "option_concept")}
        return Labels(**arrays, concepts=self.concepts, alarm=self.alarm)

    @property
    def standard(self) -> np.ndarray:
        """(N,) bool: items whose right concept is no alarm."""
        return ~np.isin(self.concept, [self.concepts.index(a) for a in self.alarm])

    @property
    def cells(self) -> tuple[np.ndarray, list[str]]:
        """Cell index per item (N,) and names ``modality/concept`` of the cells that occur."""
        names = [f"{m}/{self.concepts[c]}" for m, c in zip(self.modality, self.concept, strict=True)]
        unique, index = np.unique(names, return_inverse=True)
        return index, unique.tolist()

    @property
    def detections(self) -> list[list[int]]:
        """Sets of concepts to detect: the alarms together, or without alarms each concept."""
        if self.alarm:
            return [[self.concepts.index(a) for a in self.alarm]]
        return [[c] for c in range(len(self.concepts))]


def option_concepts(items: Sequence[Item], concepts: Sequence[str]) -> np.ndarray:
    """(N, O) concept index of every option, -1 beyond an item's options."""
    index = {c: k for k, c in enumerate(concepts)}
    table = np.full((len(items), max(len(i.options) for i in items)), -1)
    for n, item in enumerate(items):
        table[n, : len(item.options)] = [index[o.concept] for o in item.options]
    return table


def concept_scores(scores: np.ndarray, option_concept: np.ndarray, concepts: Sequence[int], *, inside: bool) -> np.ndarray:
    """(N,) logsumexp of the scores of options that express ``concepts`` (``inside``) or others."""
    member = np.isin(option_concept, concepts)
    keep = member if inside else (~member & (option_concept >= 0))
    return np.asarray(logsumexp(np.where(keep, scores, -np.inf), axis=1))


def evidence_for(reading: np.ndarray, concepts: Sequence[int]) -> np.ndarray:
    """Log odds (N,) that a reading (N, C) gives to ``concepts`` together, within +-744 nats.

    Both sides are summed: 1 minus a probability near 1 would lose all digits of the remainder, and
    such items would all rank alike.
    """
    inside = np.isin(np.arange(reading.shape[1]), concepts)
    least = np.finfo(np.float64).smallest_subnormal
    believed, doubted = (np.maximum(reading[:, side].astype(np.float64).sum(1), least) for side in (inside, ~inside))
    return np.log(believed) - np.log(doubted)


@dataclass(frozen=True, kw_only=True)
class Action:
    """The model's answers, judged on concepts."""

    chosen: np.ndarray
    """(N,) option index, -1 for none (an answer that does not parse)"""
    scores: np.ndarray
    """(N, O) option scores in nats"""

    def concept(self, labels: Labels) -> np.ndarray:
        """(N,) concept that the chosen option expresses, -1 for none."""
        picked = np.take_along_axis(labels.option_concept, np.maximum(self.chosen, 0)[:, None], axis=1)[:, 0]
        return np.where(self.chosen < 0, -1, picked)
