"""Refit a chosen probe on other residuals: same layer, family and strength."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from gapclose.probes.linear import FrozenProbe, fit_linear, linear_logits


def refit(probe: FrozenProbe, fit: np.ndarray, y: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Reading (N, C) by a probe of the same family, strength and temperature fitted on residuals (M, D) and concepts ``y`` (M,)."""
    logits, seen = np.full((len(items), len(probe.concepts)), -np.inf), np.unique(y)
    logits[:, seen] = linear_logits(items, fit_linear(fit, y, probe.family, probe.strength)) if len(seen) > 1 else 0
    return softmax(logits / float(probe.temperature), axis=1)


def refit_within(
    probe: FrozenProbe, fit: np.ndarray, y: np.ndarray, known: np.ndarray, items: np.ndarray, modality: np.ndarray
) -> np.ndarray:
    """As :func:`refit`, with a probe for each modality that is fitted and read on its items alone; it gives the concepts seen there.

    For controls from which the right concept, or the modality, was taken away. One probe for all would then be biased: where the
    modality is readable in some items only, say when a premise is false, it falls back on the concept that the modalities share in the
    others, and that alone beats chance.

    Args:
        known: (M,) and modality: (N,) modalities of fit items and items.
    """
    reading = np.zeros((len(items), len(probe.concepts)))
    for name in np.unique(modality):
        reading[modality == name] = refit(probe, fit[known == name], y[known == name], items[modality == name])
    return reading
