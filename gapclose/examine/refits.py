"""The probe again, with something taken away: the wording from the residuals, or the meaning from the labels.

Shapes: M fit items, N items, D width, C concepts, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import softmax
from sklearn.preprocessing import StandardScaler

from gapclose.examine.features import TEXT_MAKERS
from gapclose.probes import FrozenProbe, fit_linear, linear_logits


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


class Residualised(NamedTuple):
    """Residuals without the directions that predict the wording."""

    fit: np.ndarray
    """(M, D)"""
    items: np.ndarray
    """(N, D)"""
    removed: int
    """directions taken out, 0..D"""


def residualise(fit: np.ndarray, fit_texts: Sequence[str], items: np.ndarray, maker: str) -> Residualised:
    """Project the residuals away from all that predicts the text features linearly (the source paper's control, arXiv 2605.13737).

    Ridge regression ``standardised residual -> TF-IDF`` (alpha 1, no intercept) gives W (F, D); of its right singular vectors those
    with singular values above 1e-5 of the largest make V; then ``h - V V^T h``, which a probe standardises again. With more text features than D, that may be all there
    is: ``removed`` tells.

    Args:
        fit: (M, D) and their texts. items: (N, D). maker: key of :data:`TEXT_MAKERS`.
    """
    scaler = StandardScaler().fit(fit)
    h, g = (np.asarray(scaler.transform(part)) for part in (fit, items))
    vectors: Any = TEXT_MAKERS[maker]()
    kept = text_directions(h, vectors.fit_transform(list(fit_texts)).toarray())
    return Residualised(h - h @ kept @ kept.T, g - g @ kept @ kept.T, kept.shape[1])


def text_directions(h: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Orthonormal directions (D, k) of standardised residuals ``h`` (M, D) that predict ``text`` features (M, F): see :func:`residualise`."""
    if text.shape[1] > text.shape[0]:
        text = np.asarray(np.linalg.qr(text.T, mode="r")).T  # (M, M): W keeps its singular values and right singular vectors
    if len(h) < h.shape[1]:  # (D, F) = W^T, by the smaller of two equal systems
        weight = h.T @ np.linalg.solve(h @ h.T + np.eye(len(h)), text)
    else:
        weight = np.linalg.solve(h.T @ h + np.eye(h.shape[1]), h.T @ text)
    directions, sizes, _ = np.linalg.svd(weight, full_matrices=False)
    return directions[:, sizes > 1e-5 * sizes[0]]


def shuffled(y: np.ndarray, modality: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Concepts (M,) permuted over the items of each modality: what is asked about stays readable, what is right does not."""
    mixed = y.copy()
    for name in np.unique(modality):
        mine = np.flatnonzero(modality == name)
        mixed[mine] = y[rng.permutation(mine)]
    return mixed


def concept_shares(y: np.ndarray, modality: np.ndarray, concepts: int) -> dict[str, np.ndarray]:
    """Frequencies (C,) of the concepts ``y`` (M,) within each modality."""
    return {name: np.bincount(y[modality == name], minlength=concepts) / (modality == name).sum() for name in np.unique(modality).tolist()}


def clip_labels(clips: np.ndarray, modality: np.ndarray, shares: Mapping[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A random concept for every clip (N,): the control task of Hewitt & Liang (2019, arXiv 1909.03368), with clips for word types.

    One uniform number a clip goes through the concept frequencies of the item's modality (:func:`concept_shares`): all items of a clip
    and modality get one label, and the task is as skewed as the real one. Theirs is learnt by heart, since word types recur in their
    test data. Clips must not across splits or grouped folds, so there it must fail, whatever the capacity of the probe: what it finds is
    a leak of clips. Across folds over *items* it can be learnt, by whatever tells a clip again: what the real task has above that is
    selectivity in their sense.

    Args:
        clips: (N,) names, or what else tells clips apart. Name them by their media, and draw for both splits at once: a clip that is in
            both under two names then has one label, and shows.
    """
    names, index = np.unique(clips, return_inverse=True)
    drawn, labels = rng.random(len(names))[index], np.zeros(len(clips), dtype=int)
    for name, share in shares.items():
        mine = modality == name
        labels[mine] = np.searchsorted(share.cumsum(), drawn[mine], side="right").clip(0, len(share) - 1)
    return labels
