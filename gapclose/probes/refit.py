"""Refit a chosen probe on other residuals: same layer, family and strength."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from gapclose.probes.linear import FrozenProbe, fit_linear, linear_logits


def refit(probe: FrozenProbe, fit: np.ndarray, y: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Reading (N, C) of ``items`` by a probe refitted on ``fit`` (M, D) and concepts ``y`` (M,).

    Family, strength and temperature stay the same.
    """
    logits, seen = np.full((len(items), len(probe.concepts)), -np.inf), np.unique(y)
    logits[:, seen] = linear_logits(items, fit_linear(fit, y, probe.family, probe.strength)) if len(seen) > 1 else 0
    return softmax(logits / float(probe.temperature), axis=1)


def refit_within(
    probe: FrozenProbe, fit: np.ndarray, y: np.ndarray, known: np.ndarray, items: np.ndarray, modality: np.ndarray
) -> np.ndarray:
    """Apply :func:`refit` to each modality alone; it predicts only the concepts seen there.

    For controls without the right concept or the modality. A single probe would be biased there:
    where the modality is readable in some items only, e.g. when a premise is false, it falls back
    on the concept that the modalities share in the others, which alone beats chance.

    Args:
        known: (M,) modalities of the fit items.
        modality: (N,) modalities of ``items``.
    """
    reading = np.zeros((len(items), len(probe.concepts)))
    for name in np.unique(modality):
        reading[modality == name] = refit(probe, fit[known == name], y[known == name], items[modality == name])
    return reading
