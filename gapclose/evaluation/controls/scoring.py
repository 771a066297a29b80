"""Score readings and controls on the same clips.

Scores are balanced accuracy and AUROC by scope, paired differences, and chance. A *scope* is
``all`` or the name of a modality.

Shapes: N items, C concepts, K draws, R replicates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from gapclose.core.results import Result
from gapclose.metrics.bootstrap import ClipBootstrap, Interval
from gapclose.metrics.gap import reading_auroc
from gapclose.metrics.labels import Labels
from gapclose.metrics.significance import Tested


@dataclass(frozen=True, kw_only=True)
class Control:
    """A control and its readings of the judged items."""

    name: str
    label: str
    question: str
    """the skeptical question that it answers"""
    readings: Sequence[np.ndarray]
    """K draws of (N, C); one if nothing is random"""
    guards: str = "reading"
    at_chance: bool = False
    """whether it is expected to be at chance; its accuracy then counts the most probable concept
    among those that occur in the item's modality (:func:`named`)"""
    concepts: Sequence[np.ndarray] | None = None
    """K draws of (N,), the concepts that each reading is scored by; None: the right concepts"""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedControl(Result):
    """A control beside the reading, as it stands in ``measurement.json``; by scope."""

    name: str
    label: str
    guards: str
    question: str
    balanced: Mapping[str, Interval]
    auroc: Mapping[str, Interval]
    difference: Mapping[str, Interval]
    """balanced accuracy of the reading - that of the control"""
    chance: Mapping[str, float] | None
    """balanced accuracy of chance; None where the control need not be at chance"""
    at_chance: Mapping[str, bool | None] | None
    """None in a scope where the clips do not tell"""
    selectivity: Tested | None = None
    """of labels at random that were learnt by heart; other controls have none"""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {name: value for name, value in Result.to_dict(self).items() if name != "selectivity" or value is not None}


class Judged(NamedTuple):
    """Statistics of one reading, each (R + 1,)."""

    balanced: np.ndarray
    auroc: np.ndarray


def chance(labels: Labels) -> float:
    """Return the balanced accuracy of knowing only an item's modality: modalities over cells."""
    return len(np.unique(labels.modality)) / len(labels.cells[1])


def named(reading: np.ndarray, labels: Labels) -> np.ndarray:
    """Return the most probable concept (N,) of a reading (N, C) among those of the item's modality.

    These are the concepts that are right for any item of the modality. :func:`chance` holds for
    readings that name no others: who names another one is always wrong, and so below chance.
    """
    possible = np.zeros(reading.shape, dtype=bool)
    for name in np.unique(labels.modality):
        here = labels.modality == name
        possible[np.ix_(here, np.unique(labels.concept[here]))] = True
    return np.where(possible, reading, -1).argmax(1)


class ControlScorer:
    """Scores readings of one set of items and compares them with the probe's, on the same
    resampled clips."""

    def __init__(self, labels: Labels, reading: np.ndarray, replicates: int, seed: int, detectable: float = 0.1) -> None:
        """``reading`` (N, C): the probe's. ``detectable``: largest distance in accuracy that
        counts as at chance."""
        self.labels, self.seed, self.detectable = labels, seed, detectable
        names = ("all", *np.unique(labels.modality).tolist())
        self.keep = {s: np.ones(len(labels.clip), dtype=bool) if s == "all" else labels.modality == s for s in names}
        self.clips = {s: ClipBootstrap(labels.clip[keep], replicates, seed) for s, keep in self.keep.items()}
        self.reading = {s: self.judge(s, reading) for s in self.keep}

    def judge(self, scope: str, reading: np.ndarray, concept: np.ndarray | None = None, *, within: bool = False) -> Judged:
        """Score one reading (N, C) in one scope, by the right concepts or by others (N,).

        ``within``: the accuracy is that of :func:`named`, among the concepts of the modality.
        """
        labels, clips = self._labels(scope, concept), self.clips[scope]
        mine = reading[self.keep[scope]]
        found = named(mine, labels) if within else mine.argmax(1)
        return Judged(clips.balanced(found == labels.concept, labels), reading_auroc(clips, labels, mine))

    def outside(self, control: Control) -> float:
        """Return the share (0..1) of a control's readings that name a concept which does not occur
        in the item's modality."""
        concepts = control.concepts or [None] * len(control.readings)
        pairs = zip(control.readings, concepts, strict=True)
        return float(np.mean([reading.argmax(1) != named(reading, self._labels("all", concept)) for reading, concept in pairs]))

    def _labels(self, scope: str, concept: np.ndarray | None) -> Labels:
        labels = self.labels if concept is None else replace(self.labels, concept=concept)
        return labels.take(self.keep[scope])

    def entry(self, control: Control) -> JudgedControl:
        """Build the control's entry in ``measurement.json``.

        Random draws are averaged; the interval covers their spread as well as that of the clips.
        A control that should be at chance is judged among the concepts of each item's modality.
        ``at_chance`` is true if the interval contains chance and lies within ``detectable`` of it,
        false if it does not contain chance, and otherwise None: there are too few clips. It is also
        None where every modality has one concept.
        """
        concepts = control.concepts or [None] * len(control.readings)
        accuracy, auroc, difference = dict[str, Interval](), dict[str, Interval](), dict[str, Interval]()
        level, at_chance = dict[str, float](), dict[str, bool | None]()
        for scope in self.keep:
            pairs = zip(control.readings, concepts, strict=True)
            draws = [self.judge(scope, reading, concept, within=control.at_chance) for reading, concept in pairs]
            balanced, area = (self._average([getattr(d, k) for d in draws]) for k in ("balanced", "auroc"))
            accuracy[scope], auroc[scope] = Interval.of(balanced), Interval.of(area)
            difference[scope] = Interval.of(self.reading[scope].balanced - balanced)
            if control.at_chance:
                level[scope] = float(np.mean([chance(self._labels(scope, concept)) for concept in concepts]))
                at_chance[scope] = self._at_chance(accuracy[scope], level[scope])
        return JudgedControl(
            name=control.name,
            label=control.label,
            guards=control.guards,
            question=control.question,
            balanced=accuracy,
            auroc=auroc,
            difference=difference,
            chance=level if control.at_chance else None,
            at_chance=at_chance if control.at_chance else None,
        )

    def _at_chance(self, found: Interval, level: float) -> bool | None:
        """Return whether an accuracy is at chance; None if its interval contains chance and also
        relevant differences."""
        if level >= 1:  # one cell: there is nothing to tell apart
            return None
        if not found.lower - 1e-9 <= level <= found.upper + 1e-9:
            return False
        return True if max(found.upper - level, level - found.lower) <= self.detectable else None

    def _average(self, draws: list[np.ndarray]) -> np.ndarray:
        """Average K draws of statistics (R + 1,) in 0..1.

        The clip replicates get Student's t times the draws' standard error added. Ten draws are too
        few for resampling: such intervals miss chance twice as often as their level allows.
        """
        k, mean = len(draws), np.mean(draws, axis=0)  # (R + 1,)
        if k > 1:
            error = np.std([d[0] for d in draws], ddof=1) / np.sqrt(k)
            mean[1:] += error * np.random.default_rng(self.seed).standard_t(k - 1, size=len(mean) - 1)
        return mean.clip(0, 1)

    def scopes(self) -> Iterator[tuple[str, np.ndarray, Labels, ClipBootstrap]]:
        """Yield name, (N,) bool, labels and clips of every scope."""
        for scope, keep in self.keep.items():
            yield scope, keep, self.labels.take(keep), self.clips[scope]
