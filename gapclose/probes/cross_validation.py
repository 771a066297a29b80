"""Cross-validation of probes by clip: folds, out-of-fold predictions, temperature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.model_selection import StratifiedGroupKFold

from gapclose.probes.linear import FrozenProbe, fit_linear, linear_logits


def grouped_folds(y: np.ndarray, clips: np.ndarray, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(train, test) index pairs that never split a clip and keep the classes balanced.

    Raises:
        ValueError: when there are too few clips, or a fold would train without one of the classes.
    """
    n_clips = len(np.unique(clips))
    if n_clips < folds:
        raise ValueError(f"{n_clips} clips cannot make {folds} folds; add labelled clips or lower probe.folds")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    parts = list(splitter.split(np.zeros(len(y)), y, clips))
    for train, _ in parts:
        if len(np.unique(y[train])) < len(np.unique(y)):
            raise ValueError(
                f"a concept occurs in too few of the {n_clips} clips for {folds} folds; add labelled clips or lower probe.folds"
            )
    return parts


def out_of_fold(z: np.ndarray, y: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]], family: str, strength: float) -> np.ndarray:
    """Logits (N, C) of every item from a probe that never saw its clip."""
    logits = np.zeros((len(y), len(np.unique(y))))
    for train, test in folds:
        logits[test] = linear_logits(z[test], fit_linear(z[train], y[train], family, strength))
    return logits


def fit_temperature(logits: np.ndarray, y: np.ndarray) -> float:
    """The temperature that maximises the likelihood of classes ``y`` under ``softmax(logits / T)``.

    As in Guo et al. (2017).
    """

    def loss(log_t: float) -> float:
        return -log_softmax(logits / np.exp(log_t), axis=1)[np.arange(len(y)), y].mean()

    found: Any = minimize_scalar(loss, bounds=(-5, 5), method="bounded")
    return float(np.exp(found.x))


def fresh_reading(probe: FrozenProbe, residual: torch.Tensor, y: np.ndarray, clips: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Out-of-fold reading (N, C) of a fresh probe, fitted on these residuals.

    Family and strength are those of ``probe``. It shows the information that is present *now*, even
    where the frozen probe no longer reads it.

    Args:
        residual: (N, D), the input of the frozen probe (:meth:`FrozenProbe.features`).
    """
    z = residual.double().numpy()
    logits = out_of_fold(z, y, grouped_folds(y, clips, folds, seed), probe.family, probe.strength)
    return np.exp(log_softmax(logits / fit_temperature(logits, y), axis=1))
