"""Residualisation: residuals without the directions that predict the question's text.

Shapes: M fit items, N items, D width, C concepts, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.preprocessing import StandardScaler

from gapclose.evaluation.controls.text import TEXT_MAKERS


class Residualised(NamedTuple):
    """Residuals without the directions that predict the text."""

    fit: np.ndarray
    """(M, D)"""
    items: np.ndarray
    """(N, D)"""
    removed: int
    """number of removed directions, 0..D"""


def residualise(fit: np.ndarray, fit_texts: Sequence[str], items: np.ndarray, maker: str) -> Residualised:
    """Remove all directions of the residuals that linearly predict the text features.

    This is the source paper's control (arXiv 2605.13737). Ridge regression ``standardised residual
    -> TF-IDF`` (alpha 1, no intercept) gives W (F, D). Its right singular vectors with singular
    values above 1e-5 of the largest form V, and the result is ``h - V V^T h``, which a probe
    standardises again. With more text features than D all directions may be removed; ``removed``
    counts them.

    Args:
        fit: (M, D) and their texts. items: (N, D). maker: key of :data:`TEXT_MAKERS`.
    """
    scaler = StandardScaler().fit(fit)
    h, g = (np.asarray(scaler.transform(part)) for part in (fit, items))
    vectors: Any = TEXT_MAKERS[maker]()
    kept = text_directions(h, vectors.fit_transform(list(fit_texts)).toarray())
    return Residualised(h - h @ kept @ kept.T, g - g @ kept @ kept.T, kept.shape[1])


def text_directions(h: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Return orthonormal directions (D, k) of standardised residuals ``h`` (M, D) that predict
    ``text`` (M, F), as in :func:`residualise`."""
    if text.shape[1] > text.shape[0]:
        # (M, M); W keeps its singular values and right singular vectors
        text = np.asarray(np.linalg.qr(text.T, mode="r")).T
    if len(h) < h.shape[1]:  # (D, F) = W^T, by the smaller of two equal systems
        weight = h.T @ np.linalg.solve(h @ h.T + np.eye(len(h)), text)
    else:
        weight = np.linalg.solve(h.T @ h + np.eye(h.shape[1]), h.T @ text)
    directions, sizes, _ = np.linalg.svd(weight, full_matrices=False)
    return directions[:, sizes > 1e-5 * sizes[0]]
