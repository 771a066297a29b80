"""Power: the smallest difference that some clips detect, and the clips that a difference needs."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm, t

from gapclose.metrics.significance import clip_totals


def balance(cell: np.ndarray) -> np.ndarray:
    """Weights (N,), summing to 1, that make a sum over items the mean of the cells' means."""
    _, index, counts = np.unique(cell, return_inverse=True, return_counts=True)
    return 1 / (len(counts) * counts[index])


def paired_error(difference: np.ndarray, clip: np.ndarray, cell: np.ndarray | None = None) -> float:
    """Standard error of the mean of paired differences (N,), clustered by clip (Miller 2024).

    With ``cell``, of the mean over cells. With ``e_c`` the sum over clip c of
    ``w_i (d_i - mean of its cell)`` and ``w`` of :func:`balance`, the clip-level variance is
    ``s2 = (sum_c (M e_c)^2 + 1) / (M + 1)`` and the error ``sqrt(s2 / M)``. The added 1 is half an
    item in each of the four fields of the paired table (Agresti & Min 2005): identical differences
    in few clips must not look certain. nan for one clip.

    Raises:
        ValueError: when lengths differ, or there is no item, or a value is nan.
    """
    cell = np.zeros(len(difference)) if cell is None else cell
    weight, (_, index) = balance(cell), np.unique(cell, return_inverse=True)
    centred = difference - (np.bincount(index, weights=difference) / np.bincount(index))[index]
    totals = clip_totals(weight * centred, clip)[0]
    n = len(totals)
    return float(np.sqrt((((n * totals) ** 2).sum() + 1) / (n + 1) / n)) if n > 1 else float("nan")


def minimum_detectable(error: float, clips: int, *, planned: int | None = None, power: float = 0.8, alpha: float = 0.05) -> float:
    """The true difference that a two-sided test at ``alpha`` detects with probability ``power``.

    ``(t(1 - alpha/2) + t(power)) * error * sqrt(clips / planned)``, with quantiles of Student's t
    with planned - 1 degrees of freedom; 2.80 standard errors for many clips. nan where ``error`` is
    nan or ``planned`` is below two.

    Args:
        error: standard error on ``clips`` clips (:func:`paired_error`).
        planned: number of clips to plan for; default ``clips``.
    """
    planned = clips if planned is None else planned
    if planned < 2:
        return float("nan")
    return float((t.ppf(1 - alpha / 2, planned - 1) + t.ppf(power, planned - 1)) * error * np.sqrt(clips / planned))


def clips_needed(error: float, clips: int, difference: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """The fewest clips that detect a true ``difference`` > 0 with probability ``power``.

    The inverse of :func:`minimum_detectable`.

    Raises:
        ValueError: when the error is nan or the difference not positive.
    """
    if not np.isfinite(error) or difference <= 0:
        raise ValueError(f"no number of clips follows from an error of {error} and a difference of {difference}")
    needed = max(2, int(np.ceil(((norm.ppf(1 - alpha / 2) + norm.ppf(power)) * error / difference) ** 2 * clips)))
    while minimum_detectable(error, clips, planned=needed, power=power, alpha=alpha) > difference:
        needed += 1
    return needed
