"""The evidence for a verdict: the reading compared with chance, with controls, and with random networks.

Pure functions of arrays.

Shapes: N items, M clips, C concepts, R replicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import t as student

from gapclose.metrics.bootstrap import ClipBootstrap, Interval, finite
from gapclose.metrics.config import GapConfig
from gapclose.metrics.gap import reading_auroc
from gapclose.metrics.labels import Labels
from gapclose.metrics.power import balance, minimum_detectable, paired_error
from gapclose.metrics.significance import mcnemar, sign_flip


@dataclass(frozen=True, kw_only=True, slots=True)
class Untrained:
    """The reading compared with networks of the same shape with random weights."""

    kind: str
    """kind of network that gives the best balanced accuracy"""
    draws: int
    accuracy: Interval
    """balanced accuracy, mean over draws; the interval includes the uncertainty of a mean over so
    few draws"""
    chance: float
    """balanced accuracy of guessing among the concepts of the modality"""
    difference: Interval
    """reading - mean over draws, paired by clip; the interval includes the variation between
    networks"""
    p: float
    """two-sided: the larger p of two tests, by sign flips of clips, and of the reading as one more
    draw of such a network; nan for a single concept"""

    @property
    def readable(self) -> bool:
        """Whether a probe reads such networks above chance."""
        return self.accuracy.lower > self.chance

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        figures = {"balanced": self.accuracy.to_dict(), "chance": self.chance, "difference": self.difference.to_dict()}
        return {"kind": self.kind, "draws": self.draws, **figures, "p": finite(self.p)}


@dataclass(frozen=True, kw_only=True, slots=True)
class VerdictEvidence:
    """The evidence for the verdict on one modality."""

    n_clips: int
    rarest: int
    """clips of the rarest concept of the modality; 0 where the AUROC is undefined, e.g. with a
    single concept"""
    auroc: Interval
    """of the reading; 0.5 is chance"""
    auroc_error: float
    """standard error of the AUROC; nan for one clip"""
    reading: Interval
    """balanced accuracy"""
    control: str
    """name of the best control"""
    control_accuracy: Interval
    """balanced accuracy of the best control"""
    difference: Interval
    """reading - control, paired by clip"""
    p: float
    """two-sided p of the difference, by sign flips of clips; not corrected; nan where the AUROC is
    undefined"""
    mcnemar: float
    """exact McNemar p of the same comparison, for reference only: it assumes independent items, so
    it is too small where a clip has several"""
    error: float
    """standard error of the difference by clip; nan for one clip"""
    untrained: Untrained | None = None
    """None where no network with random weights was measured"""

    @property
    def p_of_both(self) -> float:
        """p that the reading beats both the best control and the networks with random weights.

        The larger of the two p-values (an intersection-union test).
        """
        return self.p if self.untrained is None else float(np.maximum(self.p, self.untrained.p))

    @property
    def detectable_auroc(self) -> float:
        """AUROC above 0.5 that this number of clips detects with power 0.8."""
        return minimum_detectable(self.auroc_error, self.n_clips)

    @property
    def detectable(self) -> float:
        """Difference that this number of clips detects with power 0.8."""
        return minimum_detectable(self.error, self.n_clips)


def collect_evidence(
    labels: Labels,
    reading: np.ndarray,
    controls: Mapping[str, np.ndarray],
    config: GapConfig,
    *,
    seed: int,
    untrained: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> dict[str, VerdictEvidence]:
    """Collect the evidence on every modality.

    The control with the best balanced accuracy on these same items is used, which favours the
    control. Include the majority class: a text-only reading below it is too easy to beat.

    Args:
        reading: (N, C) out of fold, or from a probe fitted on other clips.
        controls: name -> (N, C) readings of the same items, at least one.
        untrained: kind of network with random weights -> two or more draws (N, C) of the same
            items.

    Raises:
        ValueError: when there is no control, or shapes differ.
    """
    if not controls:
        raise ValueError("no control to compare the reading with; pass at least the text-only reading and the majority class")
    untrained = untrained or {}
    sizes = {"reading": reading.shape, **{name: control.shape for name, control in controls.items()}}
    sizes |= {f"{kind}, draw {k}": draw.shape for kind, draws in untrained.items() for k, draw in enumerate(draws)}
    wrong = {name: size for name, size in sizes.items() if size != (len(labels.clip), len(labels.concepts))}
    if wrong:
        raise ValueError(f"readings of shape {wrong}; they must be ({len(labels.clip)}, {len(labels.concepts)}): items x concepts")
    found = {}
    for name in sorted(set(labels.modality.tolist())):
        keep = labels.modality == name
        proof = _proof(labels, reading, controls, keep, config, seed)
        found[name] = replace(proof, untrained=_untrained(labels, reading, untrained, keep, config, seed)) if untrained else proof
    return found


def _proof(
    labels: Labels, reading: np.ndarray, controls: Mapping[str, np.ndarray], keep: np.ndarray, config: GapConfig, seed: int
) -> VerdictEvidence:
    part = labels.take(keep)
    clips, (cell, cells) = ClipBootstrap(part.clip, config.replicates, seed), part.cells
    right = reading[keep].argmax(1) == part.concept
    others = {name: control[keep].argmax(1) == part.concept for name, control in controls.items()}
    accuracy = {name: clips.balanced(r, part) for name, r in others.items()}
    best = max(accuracy, key=lambda name: accuracy[name][0])
    balanced = clips.balanced(right, part)
    difference = right.astype(float) - others[best]
    area, area_error = _auroc(clips, part, reading[keep])
    p = sign_flip(difference * balance(cell), part.clip, replicates=config.replicates, seed=seed)
    return VerdictEvidence(
        n_clips=clips.n,
        rarest=min(len(np.unique(part.clip[cell == k])) for k in range(len(cells))) if np.isfinite(area[0]) else 0,
        auroc=Interval.of(area),
        auroc_error=area_error,
        reading=Interval.of(balanced),
        control=best,
        control_accuracy=Interval.of(accuracy[best]),
        difference=Interval.of(balanced - accuracy[best]),
        p=p if np.isfinite(area[0]) else float("nan"),
        mcnemar=mcnemar(right, others[best]),
        error=paired_error(difference, part.clip, cell),
    )


def _untrained(
    labels: Labels, reading: np.ndarray, untrained: Mapping[str, Sequence[np.ndarray]], keep: np.ndarray, config: GapConfig, seed: int
) -> Untrained:
    """Compare the reading with the kind of random network that a probe reads best.

    The kind is chosen on these same items, which favours the networks. The reading beats them only
    where it would beat one more draw. With a standard deviation s of the K draws, that comparison
    has the error ``s sqrt(1 + 1/K)`` and K - 1 degrees of freedom (the prediction interval of
    Student's t).
    """
    part = labels.take(keep)
    clips, (cell, cells) = ClipBootstrap(part.clip, config.replicates, seed), part.cells
    rights = {kind: np.stack([draw[keep].argmax(1) == part.concept for draw in draws]) for kind, draws in untrained.items()}  # (K, N)
    balanced = {kind: np.stack([clips.balanced(r, part) for r in right]) for kind, right in rights.items()}  # (K, R + 1)
    kind = max(balanced, key=lambda k: balanced[k][:, 0].mean())
    right, draws, of_draws = reading[keep].argmax(1) == part.concept, len(rights[kind]), balanced[kind]
    accuracy, spread = of_draws.mean(0), float(of_draws[:, 0].std(ddof=1))
    difference = clips.balanced(right, part) - accuracy
    noise = np.random.default_rng(seed).standard_t(draws - 1, size=len(difference) - 1)
    error, of_mean = spread * np.sqrt(1 + 1 / draws), spread / np.sqrt(draws)
    paired = right - rights[kind].mean(0)
    p = sign_flip(paired * balance(cell), part.clip, replicates=config.replicates, seed=seed)
    if error > 0:
        p = max(p, float(2 * student.sf(abs(difference[0]) / error, draws - 1)))
        difference[1:] += error * noise
        accuracy[1:] = (accuracy[1:] + of_mean * noise).clip(0, 1)
    return Untrained(
        kind=kind,
        draws=draws,
        accuracy=Interval.of(accuracy),
        chance=1 / len(cells),
        difference=Interval.of(difference),
        p=p if len(cells) > 1 else float("nan"),
    )


def _auroc(clips: ClipBootstrap, labels: Labels, reading: np.ndarray) -> tuple[np.ndarray, float]:
    """AUROC of the reading (R + 1,) and its standard error.

    The AUROC is averaged over detections as in :func:`gapclose.metrics.gap.detection`. The error is
    at least that of a chance reading on independent items, ``sqrt((P + N + 1) / (12 P N))`` (Mann &
    Whitney 1947).
    """
    area, floors = reading_auroc(clips, labels, reading), []
    for positives in labels.detections:
        p = int(np.isin(labels.concept, positives).sum())
        n = len(labels.concept) - p
        if p and n:
            floors.append(np.sqrt((p + n + 1) / (12 * p * n)))
    if not floors:
        return area, float("nan")
    spread = float(np.nanstd(area[1:])) if np.isfinite(area[1:]).any() else float("nan")
    return area, max(spread, float(np.mean(floors)))
