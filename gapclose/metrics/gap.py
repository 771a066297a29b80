"""The gap between a model's reading and its action, with clip-bootstrap intervals.

Every statistic is an array of R + 1 values (:mod:`gapclose.metrics.bootstrap`). Pure functions of
arrays, independent of any model.

Shapes: N items, C concepts, O options, R replicates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import norm

from gapclose.metrics.bootstrap import ClipBootstrap, Interval
from gapclose.metrics.labels import Action, Labels, concept_scores, evidence_for


def detection(clips: ClipBootstrap, labels: Labels, action: Action, reading: np.ndarray) -> dict[str, np.ndarray]:
    """Operating points and threshold-free measures, averaged over the sets of concepts to detect.

    Each is (R + 1,). ``matched`` is the reading's TPR at the action's own false-alarm rate, minus
    the action's TPR. d' and criterion use the log-linear correction (Hautus 1995): a pure shift of
    the threshold moves the criterion but not d'.
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


def reading_auroc(clips: ClipBootstrap, labels: Labels, reading: np.ndarray) -> np.ndarray:
    """AUROC (R + 1,) of the reading (N, C), averaged over the sets of concepts to detect.

    nan where no set has both positives and negatives.
    """
    found = []
    for positives in labels.detections:
        positive = np.isin(labels.concept, positives)
        if positive.any() and not positive.all():
            found.append(clips.auroc(evidence_for(reading, positives), positive))
    return np.mean(found, axis=0) if found else np.full(len(clips.weights), np.nan)


def statistics(clips: ClipBootstrap, labels: Labels, action: Action, reading: np.ndarray) -> dict[str, np.ndarray]:
    """Compute every statistic of one (model, probe) pair, each (R + 1,)."""
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
        place[leaf] = Interval.of(values).to_dict()
    return nested


def closure(base: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute how much of the base's gap is closed, and what changed, on the same clips.

    Each is (R + 1,). ``closure`` = (action now - action base) / (reading base - action base), by
    balanced accuracy; ``closure_auroc`` is the same by AUROC. Each is nan where the base has no
    such gap to close (the interval of its gap reaches zero). The gap changes by
    ``reading_change - action_gain``: a gap that shrank because the reading fell is not closed.
    ``beyond_reading`` = action now - reading base, by balanced accuracy: above zero, the answers are
    right more often than the base model's reading, so training taught more than the base carried.
    """
    gain = now["action.balanced"] - base["action.balanced"]
    auroc_gain = now["action.auroc"] - base["action.auroc"]
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "closure": gain / _some(base["gap.balanced"]),
            "closure_auroc": auroc_gain / _some(base["reading.auroc"] - base["action.auroc"]),
            "action_gain": gain,
            "auroc_gain": auroc_gain,
            "beyond_reading": now["action.balanced"] - base["reading.balanced"],
            "reading_change": now["reading.balanced"] - base["reading.balanced"],
            "gap_before": base["gap.balanced"],
            "gap_after": now["gap.balanced"],
            "standard_drop": base["action.standard_accuracy"] - now["action.standard_accuracy"],
        }


def _some(gap: np.ndarray) -> np.ndarray:
    """The gap (R + 1,), or nan throughout where it is not shown to be above zero."""
    return gap if excludes_zero(gap) else np.full_like(gap, np.nan)


def excludes_zero(gap: np.ndarray) -> bool:
    """Whether the interval of a gap (R + 1,) lies above zero."""
    return Interval.of(gap).lower > 0
