"""Cells, ROC curves, confusion and calibration: what the files on the base model and on the change both hold.

Pure functions of labels, scores and readings.

Shapes: N items, C concepts, R replicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gapclose.core.results import Result
from gapclose.evaluation.controls.logit_lens import margins
from gapclose.evaluation.controls.scoring import ControlScorer
from gapclose.metrics.bootstrap import Interval
from gapclose.metrics.calibration import CalibrationBin, brier_score, calibration_bins, expected_calibration_error
from gapclose.metrics.labels import Action, Labels, evidence_for

POINTS = 200
"""most points of a ROC curve"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell(Result):
    """Accuracies, 0..1, on the items of one modality and concept."""

    modality: str
    concept: str
    n_items: int
    n_clips: int
    action: Interval
    """on the concept"""
    option: Interval
    reading: Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class RocCurve(Result):
    """A ROC curve of the alarm concepts together."""

    false_alarm: Sequence[float]
    hit: Sequence[float]
    auroc: Interval
    point: Mapping[str, float]
    """``false_alarm`` and ``hit`` of what is most probable"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion(Result):
    """Counts of items; rows are right concepts, columns what is said or read, the last for no concept."""

    concepts: Sequence[str]
    said: Sequence[str]
    """names of the columns"""
    action: Sequence[Sequence[int]]
    reading: Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration(Result):
    """How often the most probable concept is right, by how probable the reading holds it."""

    bins: Sequence[CalibrationBin]
    ece: float
    brier: float


def cells(judge: ControlScorer, action: Action, reading: np.ndarray) -> list[Cell]:
    """Compute the accuracy of action (on the concept), option and reading in every cell modality
    x concept."""
    labels, clips = judge.labels, judge.clips["all"]
    index, names = labels.cells
    right = {
        "action": action.concept(labels) == labels.concept,
        "option": action.chosen == labels.gold,
        "reading": reading.argmax(1) == labels.concept,
    }
    means = {key: clips.cell_means(values, labels) for key, values in right.items()}  # (R + 1, cells)
    rows = []
    for k, name in enumerate(names):
        modality, concept = name.rsplit("/", 1)
        n_items, n_clips = int((index == k).sum()), len(np.unique(labels.clip[index == k]))
        found = {key: Interval.of(mean[:, k]) for key, mean in means.items()}
        rows.append(Cell(modality=modality, concept=concept, n_items=n_items, n_clips=n_clips, **found))
    return sorted(rows, key=lambda row: (row.modality, labels.concepts.index(row.concept)))


def curves(judge: ControlScorer, action: Action, reading: np.ndarray) -> dict[str, dict[str, RocCurve]]:
    """Compute ROC curves of the alarm concepts together, with operating points.

    An operating point takes the model's answer or the most probable concept. Empty without alarm
    concepts, because one curve cannot show each concept against the rest.
    """
    found = dict[str, dict[str, RocCurve]]()
    for scope, keep, labels, clips in judge.scopes():
        alarm = [labels.concepts.index(a) for a in labels.alarm]
        positive = np.isin(labels.concept, alarm)
        if not positive.any() or positive.all():
            continue
        part = Action(chosen=action.chosen[keep], scores=action.scores[keep])
        sides = {
            "reading": (evidence_for(reading[keep], alarm), np.isin(reading[keep].argmax(1), alarm)),
            "action": (margins(part.scores, labels, alarm), np.isin(part.concept(labels), alarm)),
        }
        found[scope] = {}
        for side, (score, alarmed) in sides.items():
            false_alarm, hit = curve(score, positive)
            point = {"false_alarm": float(alarmed[~positive].mean()), "hit": float(alarmed[positive].mean())}
            area = Interval.of(clips.auroc(score, positive))
            found[scope][side] = RocCurve(false_alarm=false_alarm.tolist(), hit=hit.tolist(), auroc=area, point=point)
    return found


def curve(score: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return false-alarm and hit rates of a ROC from (0, 0) to (1, 1), at most :data:`POINTS`."""
    order = np.argsort(-score, kind="stable")
    falling = score[order]
    ends = np.flatnonzero(np.r_[falling[1:] != falling[:-1], True])  # last item of every distinct score; infinite ones tie too
    hit = np.r_[0, positive[order].cumsum()[ends] / positive.sum()]
    false_alarm = np.r_[0, (~positive[order]).cumsum()[ends] / (~positive).sum()]
    kept = np.unique(np.linspace(0, len(hit) - 1, min(POINTS, len(hit))).round().astype(int))
    return false_alarm[kept], hit[kept]


def confusion(labels: Labels, action: Action, reading: np.ndarray) -> Confusion:
    """Count the concepts of action (scored) and reading by right concept (rows); the last column
    is for none."""
    count = len(labels.concepts)

    def table(said: np.ndarray) -> list[list[int]]:
        counts = np.zeros((count, count + 1), dtype=int)
        np.add.at(counts, (labels.concept, said % (count + 1)), 1)  # -1 goes into the last column
        return counts.tolist()

    names = list(labels.concepts)
    return Confusion(concepts=names, said=[*names, "none"], action=table(action.concept(labels)), reading=table(reading.argmax(1)))


def calibration(labels: Labels, reading: np.ndarray) -> Calibration:
    """Return the accuracy of the most probable concept by its probability, in bins, with ECE and
    Brier score."""
    concept = labels.concept
    return Calibration(
        bins=calibration_bins(reading, concept), ece=expected_calibration_error(reading, concept), brier=brier_score(reading, concept)
    )
