"""Significance tests: McNemar's test, sign flips by clip, selectivity, Holm's correction.

:func:`mcnemar` is exact but assumes independent items: use it where every clip has one item.
:func:`sign_flip` allows several items per clip, which tend to be right or wrong together: it swaps
the two predictors in complete clips, so only clips count. :func:`selectivity` does the same for one
real task against several control tasks. :func:`holm` corrects a family of p-values, such as one per
modality.

Pure functions of arrays. ``difference`` is always the predictor claimed to be better minus the
other.

Shapes: N items, M clips, C concepts, K control tasks, R replicates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

from gapclose.metrics.bootstrap import blocks


class Tested(NamedTuple):
    """An estimate and its p-value."""

    value: float
    p: float


def _checked(*arrays: np.ndarray) -> list[np.ndarray]:
    """Convert the arrays to floats.

    Raises:
        ValueError: when they differ in length, are empty, or hold nan.
    """
    lengths = [np.shape(a)[-1] for a in arrays]
    if len(set(lengths)) > 1 or not lengths[0]:
        raise ValueError(f"arrays of {lengths} items; they must be of the same items, at least one")
    values = [np.asarray(a, dtype=float) for a in arrays]
    bad = sum(int(np.isnan(v).sum()) for v in values)
    if bad:
        raise ValueError(f"{bad} of the values are nan; leave out items without a value in every array, or count them as wrong")
    return values


def clip_totals(values: np.ndarray, clip: np.ndarray) -> np.ndarray:
    """Sums of (N,) or (K, N) values over the items of every clip, (K, M)."""
    _checked(values, np.zeros(len(clip)))
    names, index = np.unique(clip, return_inverse=True)
    return np.stack([np.bincount(index, weights=row, minlength=len(names)) for row in np.atleast_2d(values)])


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided p that two predictors are right equally often (McNemar 1947).

    It is twice the binomial tail of the items on which exactly one (N,) bool is right, at most 1; 1
    where they never differ. Items are assumed independent: with several items per clip, use
    :func:`sign_flip`.

    Raises:
        ValueError: when lengths differ, or there is no item, or a value is nan.
    """
    first, second = _checked(first, second)
    only_first, only_second = int((first > second).sum()), int((second > first).sum())
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def sign_flip(difference: np.ndarray, clip: np.ndarray, *, replicates: int = 10_000, seed: int = 0) -> float:
    """Two-sided p that paired differences (N,) are symmetric about zero, by sign flips of clips.

    Under the null hypothesis the two predictors can be swapped within a clip, however its items
    correlate. Multiply ``difference`` by :func:`balance` to test a difference of balanced
    accuracies. p = (1 + extreme) / (1 + R) keeps the error rate at its level (Phipson & Smyth
    2010). M clips allow no p below 2 / 2^M: five clips never reach 0.05.

    Raises:
        ValueError: when lengths differ, or there is no item, or a value is nan.
    """
    totals = clip_totals(difference, clip)[0]
    totals = totals[totals != 0]
    if not len(totals):
        return 1.0
    rng, extreme = np.random.default_rng(seed), 0
    least = abs(totals.sum()) - 1e-9 * np.abs(totals).sum()  # sums equal up to rounding count as extreme
    for rows in blocks(0, replicates, len(totals)):
        kept = rng.integers(2, size=(rows.stop - rows.start, len(totals)), dtype=np.int8)
        extreme += int((np.abs(2 * (kept @ totals) - totals.sum()) >= least).sum())
    return (1 + extreme) / (1 + replicates)


def selectivity(real: np.ndarray, control: np.ndarray, clip: np.ndarray, *, replicates: int = 10_000, seed: int = 0) -> Tested:
    """Accuracy on the real task minus mean accuracy on control tasks, with a one-sided p.

    A permutation test (Hewitt & Liang 2019). Under the null hypothesis the K + 1 tasks are
    exchangeable within every clip, so the real one is drawn anew for each clip.

    Args:
        real: (N,) bool, whether the probe of the real labels is right, out of fold.
        control: (K, N) or (N,) bool, the same for probes of random labels, one label per clip. Draw
            these with the frequencies of the real labels: against uniform labels, a skewed task
            looks selective without reason.
        clip: (N,) group.

    Raises:
        ValueError: when lengths differ, or there is no item, or a value is nan.
    """
    tasks = np.concatenate([np.atleast_2d(real), np.atleast_2d(control)]).astype(float)  # (K + 1, N)
    totals = clip_totals(tasks, clip)
    rng, extreme, n_clips = np.random.default_rng(seed), 0, totals.shape[1]
    least = totals[0].sum() - 1e-9 * np.abs(totals).sum()
    for rows in blocks(0, replicates, n_clips):
        picked = rng.integers(len(totals), size=(rows.stop - rows.start, n_clips))
        extreme += int((totals[picked, np.arange(n_clips)].sum(1) >= least).sum())
    return Tested(float(tasks[0].mean() - tasks[1:].mean()), (1 + extreme) / (1 + replicates))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Step-down adjusted p-values under the same names (Holm 1979).

    They keep the chance of any false claim at the level, under any dependence. A nan was not
    tested: it stays nan and is not a member of the family.

    Raises:
        ValueError: when a value lies outside 0..1.
    """
    bad = {name: value for name, value in p.items() if not np.isnan(value) and not 0 <= value <= 1}
    if bad:
        raise ValueError(f"p-values outside 0..1: {bad}")
    rising = sorted((name for name in p if not np.isnan(p[name])), key=lambda name: p[name])
    adjusted, highest = dict.fromkeys(p, float("nan")), 0.0
    for place, name in enumerate(rising):
        highest = max(highest, min(1.0, (len(rising) - place) * p[name]))
        adjusted[name] = highest
    return adjusted
