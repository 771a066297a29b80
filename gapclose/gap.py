"""The gap between what a model represents (reading) and what it says (action), with clip-bootstrap intervals.

Every statistic is an array of R + 1 values, as :mod:`gapclose.resample` makes them. Pure functions of arrays: nothing here knows about
models.

Shapes: N items, C concepts, O options, R replicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm

from gapclose.checks import Checks
from gapclose.items import Item, ItemSet
from gapclose.resample import Clips, Interval


@dataclass(kw_only=True)
class GapConfig:
    """How the gap is measured and judged."""

    replicates: int = 10_000
    """clip-bootstrap replicates behind every interval"""
    standard_budget: float = 0.05
    """standard accuracy that a checkpoint may lose, 0..1; beyond it, and beyond chance, the state is over-rejecting (:mod:`gapclose.states`)"""
    choose: str = "own"
    """what the checkpoint is chosen by among epochs: own (the answers as they are, within ``standard_budget``) or shifted (what they would be
    after the best shift of the rejections' scores within it: for comparisons at an operating point, and users who apply such a shift)"""
    reading_tolerance: float = 0.05
    """balanced accuracy that a reading may lose before it counts as fallen, 0..1 (the interval must exclude zero too)"""
    closed_at: float = 0.9
    """closure that must be shown for the state to be closed: the lower end of its interval"""
    parse_floor: float = 0.9
    """share of the base's parse rate below which the state is collapsed, 0..1"""
    least_option_mass: float = 0.1
    """probability that the options must hold together, 0..1, for the model to count as answering such questions; below it they rank answers
    that it gives less than once in ten times"""
    least_parse_rate: float = 0.5
    """share of generated answers that must match an option, 0..1, for the same"""
    least_standard_skill: float = 0.2
    """accuracy on true premises that it must have for the same, 0..1 of the way from guessing among the options that do not object (0) to
    certainty (1): 0.4 with four such options"""
    detectable: float = 0.1
    """difference in accuracy or AUROC, 0..1, that the clips must be enough to find before nothing found counts as nothing there"""

    def __post_init__(self) -> None:
        with Checks(self, "gap") as check:
            check.number("standard_budget", "reading_tolerance", "closed_at", "parse_floor", least=0, most=1, why="0.05 for five points")
            check.number("least_option_mass", "least_parse_rate", "least_standard_skill", least=0, most=1)
            check.number("detectable", above=0, most=1, why="0.1 for ten points; no number of clips finds every difference")
            check.choice("choose", ("own", "shifted"))
            check.number("replicates", least=100, why="intervals need that many")


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a measurement is judged by."""

    clip: np.ndarray
    """(N,) group"""
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
        """Raises: ValueError when an item is unlabelled."""
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
        """Cell index per item (N,) and cell names ``modality/concept``, for the cells that occur."""
        names = [f"{m}/{self.concepts[c]}" for m, c in zip(self.modality, self.concept, strict=True)]
        unique, index = np.unique(names, return_inverse=True)
        return index, unique.tolist()

    @property
    def detections(self) -> list[list[int]]:
        """Sets of concepts to detect: the alarms together, or each concept against the rest where there are none."""
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
    """logsumexp of the scores of the options that express (``inside``) or do not express one of ``concepts``, (N,)."""
    member = np.isin(option_concept, concepts)
    keep = member if inside else (~member & (option_concept >= 0))
    return np.asarray(logsumexp(np.where(keep, scores, -np.inf), axis=1))


def evidence_for(reading: np.ndarray, concepts: Sequence[int]) -> np.ndarray:
    """Log odds (N,) that a reading (N, C) gives to ``concepts`` together, within +-744 nats.

    Both sides are summed: 1 minus a belief near 1 would lose all digits of the doubt that is left, and rank all such items alike.
    """
    inside = np.isin(np.arange(reading.shape[1]), concepts)
    least = np.finfo(np.float64).smallest_subnormal
    believed, doubted = (np.maximum(reading[:, side].astype(np.float64).sum(1), least) for side in (inside, ~inside))
    return np.log(believed) - np.log(doubted)


@dataclass(frozen=True, kw_only=True)
class Action:
    """What the model does, judged on concepts."""

    chosen: np.ndarray
    """(N,) option index, -1 for none (an answer that does not parse)"""
    scores: np.ndarray
    """(N, O) option scores in nats"""

    def concept(self, labels: Labels) -> np.ndarray:
        """(N,) concept that the chosen option expresses, -1 for none."""
        picked = np.take_along_axis(labels.option_concept, np.maximum(self.chosen, 0)[:, None], axis=1)[:, 0]
        return np.where(self.chosen < 0, -1, picked)


def detection(clips: Clips, labels: Labels, action: Action, reading: np.ndarray) -> dict[str, np.ndarray]:
    """Operating points and threshold-free measures, averaged over the sets of concepts to detect; each (R + 1,).

    ``matched`` is TPR of the reading at the action's own false-alarm rate minus the action's TPR. d' and criterion use the
    log-linear correction (Hautus 1995): a pure shift of threshold moves the criterion and not d'.
    """
    rows: list[dict[str, np.ndarray]] = []
    said = action.concept(labels)
    for positives in labels.detections:
        positive = np.isin(labels.concept, positives)
        if positive.all() or not positive.any():
            continue
        alarmed = np.isin(said, positives)
        tpr, far = clips.mean(alarmed, positive), clips.mean(alarmed, ~positive)
        inside = concept_scores(action.scores, labels.option_concept, positives, inside=True)
        margin = inside - concept_scores(action.scores, labels.option_concept, positives, inside=False)
        evidence = evidence_for(reading, positives)
        counts = clips.sums(np.stack([alarmed & positive, positive, alarmed & ~positive, ~positive], axis=1))
        hit, alarm = (counts[:, 0] + 0.5) / (counts[:, 1] + 1), (counts[:, 2] + 0.5) / (counts[:, 3] + 1)
        auroc, reading_auroc = clips.auroc(margin, positive), clips.auroc(evidence, positive)
        reading_tpr = clips.tpr_at(evidence, positive, far)
        rows.append(
            {
                "tpr": tpr,
                "false_alarm": far,
                "reading_tpr": reading_tpr,
                "matched": reading_tpr - tpr,
                "auroc": auroc,
                "reading_auroc": reading_auroc,
                "dprime": norm.ppf(hit) - norm.ppf(alarm),
                "criterion": -0.5 * (norm.ppf(hit) + norm.ppf(alarm)),
            }
        )
    keys = ("tpr", "false_alarm", "reading_tpr", "matched", "auroc", "reading_auroc", "dprime", "criterion")
    nothing = np.full(len(clips.weights), np.nan)
    return {k: np.mean([r[k] for r in rows], axis=0) if rows else nothing for k in keys}


def reading_auroc(clips: Clips, labels: Labels, reading: np.ndarray) -> np.ndarray:
    """AUROC of the reading (N, C), averaged over the sets of concepts to detect, (R + 1,); nan where there is nothing to tell apart."""
    found = []
    for positives in labels.detections:
        positive = np.isin(labels.concept, positives)
        if positive.any() and not positive.all():
            found.append(clips.auroc(evidence_for(reading, positives), positive))
    return np.mean(found, axis=0) if found else np.full(len(clips.weights), np.nan)


def statistics(clips: Clips, labels: Labels, action: Action, reading: np.ndarray) -> dict[str, np.ndarray]:
    """Everything that is measured about one (model, probe) pair, each (R + 1,)."""
    said = action.concept(labels)
    action_balanced = clips.balanced(said == labels.concept, labels)
    reading_balanced = clips.balanced(reading.argmax(1) == labels.concept, labels)
    right_option = action.chosen == labels.gold
    found = detection(clips, labels, action, reading)
    return {
        "action.balanced": action_balanced,
        "action.option_balanced": clips.balanced(right_option, labels),
        "action.standard_accuracy": clips.mean(right_option, labels.standard),
        "action.rejection": found["tpr"],
        "action.false_alarm": found["false_alarm"],
        "action.auroc": found["auroc"],
        "action.dprime": found["dprime"],
        "action.criterion": found["criterion"],
        "reading.balanced": reading_balanced,
        "reading.auroc": found["reading_auroc"],
        "reading.tpr_at_false_alarm": found["reading_tpr"],
        "gap.balanced": reading_balanced - action_balanced,
        "gap.matched": found["matched"],
        "gap.auroc": found["reading_auroc"] - found["auroc"],
    }


def intervals(statistic: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Dotted names -> nested dicts of ``{"value", "lower", "upper"}``, ready for JSON."""
    nested: dict[str, Any] = {}
    for name, values in statistic.items():
        *path, leaf = name.split(".")
        place = nested
        for key in path:
            place = place.setdefault(key, {})
        place[leaf] = Interval.of(values).as_dict()
    return nested


def closure(base: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """How much of the base's gap is closed, and what moved, on the same clips; each (R + 1,).

    ``closure`` = (action now - action base) / (reading base - action base), by balanced accuracy; ``closure_auroc`` the same by AUROC.
    Each is nan where the base has no such gap to close (the interval of its gap reaches zero).
    The gap changes by ``reading_change`` - ``action_gain``: one that shrank because the reading fell is not closed.
    """
    gain = now["action.balanced"] - base["action.balanced"]
    auroc_gain = now["action.auroc"] - base["action.auroc"]
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "closure": gain / _some(base["gap.balanced"]),
            "closure_auroc": auroc_gain / _some(base["reading.auroc"] - base["action.auroc"]),
            "action_gain": gain,
            "auroc_gain": auroc_gain,
            "reading_change": now["reading.balanced"] - base["reading.balanced"],
            "gap_before": base["gap.balanced"],
            "gap_after": now["gap.balanced"],
            "standard_drop": base["action.standard_accuracy"] - now["action.standard_accuracy"],
        }


def _some(gap: np.ndarray) -> np.ndarray:
    """The gap (R + 1,), nan throughout where it is not shown to be above zero."""
    return gap if shown(gap) else np.full_like(gap, np.nan)


def shown(gap: np.ndarray) -> bool:
    """Whether the interval of a gap (R + 1,) lies above zero."""
    return Interval.of(gap).lower > 0
