"""PGLA, probe-guided logit adjustment, as published ("Senses Wide Shut", arXiv 2605.13737).

Formula: section 5 and appendix F of the paper.

    g = P_mis^p         D = max L_content - max L_reject
    L'_reject = L_reject + sigmoid(gamma (g - alpha)) (s D + delta) - b_reject

``P_mis`` is the probability of a false premise by a two-layer perceptron on the residual. The paper
has two rejections E and F, with ``b_E = beta / 2``, ``b_F = -beta / 2`` and ``beta = mean(L_E -
L_F)`` over standard training items. Here b is the mean distance of a rejection's score from the
mean over rejections, which is the same for two and is defined for any number of alarm concepts. D
does not change when a constant is added to all scores, so log-probabilities can replace the paper's
logits.

Tuning differs in two ways: folds never split a clip, and the perceptron is fitted on all of fit
(out of fold if settings are also chosen on fit) instead of one quarter of all items.

Shapes: M fit items, N items, O options, D width, P settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import torch
from scipy.special import expit

from gapclose.evaluation.baselines.operating_point import Method, Scores, Seen, Setting, alarms
from gapclose.metrics.labels import Labels
from gapclose.probes.cross_validation import grouped_folds
from gapclose.probes.standardize import varies

GRID: dict[str, tuple[float, ...]] = {
    "gamma": (0.5, 1.0, 2.0),
    "p": (1.0, 2.0),
    "alpha": (0.3, 0.5, 1.0),
    "s": (0.75, 1.0, 1.5),
    "delta": (5.0, 8.0, 12.0),
}
"""the published grid, 162 settings"""
WIDE: dict[str, tuple[float, ...]] = {
    "gamma": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
    "p": (1.0, 2.0),
    "alpha": (0.1, 0.3, 0.5, 0.7, 0.9, 1.0),
    "s": (0.75, 1.0, 1.5),
    "delta": (0.0, 1.0, 2.0, 5.0, 8.0, 12.0),
}
"""an extension of the published grid, 1,512 settings: steeper gates, and boosts small enough for
models with small margins"""
HIDDEN, RATE, EPOCHS = 256, 1e-3, 100


def settings(grid: Mapping[str, tuple[float, ...]] = GRID) -> list[dict[str, float]]:
    """Return every setting of a grid, in the published order."""
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def gentlest_first(points: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Sort settings by how much they boost an item with a doubtful premise, least first.

    So the gentlest of equally good settings is chosen. The added nats decide first (delta, then s),
    then the gate (alpha from the highest, gamma, and p from the highest).
    """
    return sorted(points, key=lambda q: (q["delta"], q["s"], -q["alpha"], q["gamma"], -q["p"]))


def rejection_bias(scores: np.ndarray, option_concept: np.ndarray, rejects: Sequence[int]) -> dict[int, float]:
    """Compute b of every reject concept: mean distance of its score from the mean over all of them.

    Args:
        scores, option_concept: (M, O) of standard items. rejects: concepts; the highest-scored
            option of each counts.

    Returns:
        Concept -> nats; 0 for a concept without options.
    """
    best = np.stack([np.where(option_concept == c, scores, -np.inf).max(1) for c in rejects], axis=1)  # (M, rejects)
    there = np.isfinite(best)
    mean = np.where(there, best, 0).sum(1) / np.maximum(there.sum(1), 1)
    off = np.where(there, best - mean[:, None], 0).sum(0) / np.maximum(there.sum(0), 1)
    return {c: float(b) for c, b in zip(rejects, off, strict=True)}


def adjust(
    scores: np.ndarray,
    option_concept: np.ndarray,
    p_mis: np.ndarray,
    bias: Mapping[int, float],
    points: Sequence[Setting],
) -> np.ndarray:
    """Return adjusted scores (P, N, O) at every setting.

    An item with only rejections or without any has no D and is not changed.

    Args:
        scores, option_concept: (N, O). p_mis: (N,) in 0..1. bias: reject concept -> b. points: P
            settings with the keys of the grid.
    """
    reject = np.isin(option_concept, list(bias))
    content = ~reject & (option_concept >= 0)
    both = (content.sum(1) > 0) & (reject.sum(1) > 0)
    distance = np.where(content, scores, -np.inf).max(1) - np.where(reject, scores, -np.inf).max(1)
    distance = np.where(both, distance, 0.0)
    gamma, p, alpha, s, delta = (np.array([q[k] for q in points])[:, None] for k in GRID)  # (P, 1) each
    boost = expit(gamma * (p_mis**p - alpha)) * (s * distance + delta)  # (P, N)
    offset = sum(b * (option_concept == c) for c, b in bias.items())  # (N, O)
    return scores + np.where(reject & both[:, None], boost[:, :, None] - offset, 0.0)


class Gate:
    """P_mis by a two-layer perceptron on standardised residuals: 256 rectified units, Adam at
    1e-3, 100 full-batch epochs."""

    def __init__(self, residual: np.ndarray, alarmed: np.ndarray, seed: int) -> None:
        """Fit on residuals (M, D) and whether an alarm is right, (M,) bool."""
        spread, self.mean = residual.std(0), residual.mean(0)
        self.scale = np.where(varies(spread, self.mean), spread, 1.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = torch.nn.Sequential(torch.nn.Linear(residual.shape[1], HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 2))
        x, y = self._standardised(residual), torch.as_tensor(alarmed.astype(np.int64))
        optimiser = torch.optim.Adam(self.net.parameters(), lr=RATE)
        for _ in range(EPOCHS):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(self.net(x), y).backward()
            optimiser.step()

    def _standardised(self, residual: np.ndarray) -> torch.Tensor:
        return torch.as_tensor((residual - self.mean) / self.scale, dtype=torch.float32)

    @torch.no_grad()
    def __call__(self, residual: np.ndarray) -> np.ndarray:
        """Return P_mis (N,) of residuals (N, D)."""
        return self.net(self._standardised(residual)).softmax(1)[:, 1].double().numpy()


def gated(
    name: str,
    label: str,
    fit: Seen,
    known: Labels,
    *,
    p_fit: np.ndarray,
    gate: Callable[[Seen], np.ndarray],
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
) -> Method:
    """Build the adjustment with any gate.

    Args:
        p_fit: (M,) P_mis of the fit items, out of the folds ``parts`` (train and held-out indices).
            gate: P_mis (N,) of items of another split.
    """
    rejects = alarms(known)

    def bias(rows: np.ndarray) -> dict[int, float]:
        standard = rows[known.standard[rows]]
        return rejection_bias(fit.scores[standard], fit.option_concept[standard], rejects)

    biases = [bias(train) for train, _ in parts]

    def held_out(points: Sequence[Setting]) -> np.ndarray:
        found = np.empty((len(points), *fit.scores.shape))
        for (_, held), b in zip(parts, biases, strict=True):
            found[:, held] = adjust(fit.scores[held], fit.option_concept[held], p_fit[held], b, points)
        return found

    whole = bias(np.arange(len(p_fit)))

    def answers(seen: Seen) -> Scores:
        return partial(adjust, seen.scores, seen.option_concept, gate(seen), whole)

    return Method(name=name, label=label, settings=gentlest_first(settings()), fit=held_out, answers=answers)


def pgla(fit: Seen, known: Labels, *, folds: int, seed: int) -> tuple[Method, Method]:
    """Build PGLA with its own probe, on the published and on the wide grid.

    The probe is fitted ``folds`` + 1 times.

    Args:
        known: labels of the fit items.

    Raises:
        ValueError: when there are too few clips for the folds, or no concepts of either kind.
    """
    alarmed, parts = np.isin(known.concept, alarms(known)), grouped_folds(known.concept, known.clip, folds, seed)
    p_fit = np.empty(len(alarmed))
    for train, held in parts:
        p_fit[held] = Gate(fit.residual[train], alarmed[train], seed)(fit.residual[held])
    whole = Gate(fit.residual, alarmed, seed)
    published = gated("pgla", "PGLA", fit, known, p_fit=p_fit, gate=lambda seen: whole(seen.residual), parts=parts)
    return published, replace(published, name="pgla_wide", label="PGLA on a wider grid", settings=gentlest_first(settings(WIDE)))


def pgla_by_text(fit: Seen, known: Labels, *, folds: int, seed: int) -> Method:
    """Build the same adjustment with the text-only reading as gate: a control.

    Its gate has not seen the clip. The adjusted scores are the base model's, which has seen it; so
    has the distance D in the boost.
    """
    parts = grouped_folds(known.concept, known.clip, folds, seed)

    def gate(seen: Seen) -> np.ndarray:
        return seen.text[:, alarms(known)].sum(1)

    return gated("pgla_text", "PGLA with the text alone as its gate", fit, known, p_fit=gate(fit), gate=gate, parts=parts)
