"""Is a difference more than chance, is a reading calibrated, and were the data enough to tell.

Which test for what. :func:`mcnemar` is exact, and right where every clip has one item: it takes items for independent.
:func:`sign_flip` is for several items a clip, which tend to be right or wrong together: it swaps the two answerers in whole clips, so
only clips count. :func:`selectivity` does the same for one real task against several control tasks. :func:`holm` corrects a family of
p-values, such as one for every modality.

Pure functions of arrays, in one direction: ``difference`` is what is claimed to be better minus what it is compared with.

Shapes: N items, M clips, C concepts, K control tasks, R replicates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, norm, rankdata, t

from gapclose.resample import blocks

BINS = 15  # of calibration, as in Guo et al. 2017


class CalibrationBin(NamedTuple):
    """Items of like confidence."""

    confidence: float
    accuracy: float
    n: int


class Tested(NamedTuple):
    """An estimate and its p-value."""

    value: float
    p: float


def _checked(*arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays as floats.

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


def _clip_totals(values: np.ndarray, clip: np.ndarray) -> np.ndarray:
    """Sums of (N,) or (K, N) values over the items of every clip, (K, M)."""
    _checked(values, np.zeros(len(clip)))
    names, index = np.unique(clip, return_inverse=True)
    return np.stack([np.bincount(index, weights=row, minlength=len(names)) for row in np.atleast_2d(values)])


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided p of McNemar's test that two answerers (N,) bool are right equally often (McNemar 1947).

    Twice the binomial tail of the items on which exactly one is right, at most 1; 1 where they never differ. Items are taken for
    independent: with several items a clip, use :func:`sign_flip`.

    Raises:
        ValueError: when lengths differ, or there is no item, or a value is nan.
    """
    first, second = _checked(first, second)
    only_first, only_second = int((first > second).sum()), int((second > first).sum())
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def sign_flip(difference: np.ndarray, clip: np.ndarray, *, replicates: int = 10_000, seed: int = 0) -> float:
    """Two-sided p that paired differences (N,) are symmetric about zero, by flipping the signs of whole clips.

    Under the null the two answerers may be swapped within a clip without anyone noticing, whatever the correlation of its items.
    Multiply ``difference`` by :func:`balance` to test a difference of balanced accuracies. p = (1 + extreme) / (1 + R), which never
    claims too much (Phipson & Smyth 2010). M clips allow no p below 2 / 2^M: five clips never reach 0.05.

    Raises:
        ValueError: when lengths differ, or there is no item, or a value is nan.
    """
    totals = _clip_totals(difference, clip)[0]
    totals = totals[totals != 0]
    if not len(totals):
        return 1.0
    rng, extreme = np.random.default_rng(seed), 0
    least = abs(totals.sum()) - 1e-9 * np.abs(totals).sum()  # sums that are equal but for rounding are as extreme
    for rows in blocks(0, replicates, len(totals)):
        kept = rng.integers(2, size=(rows.stop - rows.start, len(totals)), dtype=np.int8)
        extreme += int((np.abs(2 * (kept @ totals) - totals.sum()) >= least).sum())
    return (1 + extreme) / (1 + replicates)


def selectivity(real: np.ndarray, control: np.ndarray, clip: np.ndarray, *, replicates: int = 10_000, seed: int = 0) -> Tested:
    """Accuracy on the real task minus mean accuracy on control tasks, with a one-sided permutation p (Hewitt & Liang 2019).

    Args:
        real: (N,) bool, whether the probe of the real labels is right, out of fold.
        control: (K, N) or (N,) bool, the same for probes of random labels, one label per clip. Draw them with the frequencies of
            the real labels: against even ones, a skewed task looks selective for nothing.
        clip: (N,) group.

    The null: which of the K + 1 tasks is the real one does not matter, clip by clip; so it is drawn anew for every clip.

    Raises:
        ValueError: when lengths differ, or there is no item, or a value is nan.
    """
    tasks = np.concatenate([np.atleast_2d(real), np.atleast_2d(control)]).astype(float)  # (K + 1, N)
    totals = _clip_totals(tasks, clip)
    rng, extreme, n_clips = np.random.default_rng(seed), 0, totals.shape[1]
    least = totals[0].sum() - 1e-9 * np.abs(totals).sum()
    for rows in blocks(0, replicates, n_clips):
        picked = rng.integers(len(totals), size=(rows.stop - rows.start, n_clips))
        extreme += int((totals[picked, np.arange(n_clips)].sum(1) >= least).sum())
    return Tested(float(tasks[0].mean() - tasks[1:].mean()), (1 + extreme) / (1 + replicates))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Step-down adjusted p-values under the same names (Holm 1979); the chance of any false claim stays at the level, under any dependence.

    A nan was not tested: it stays nan and is no member of the family.

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


def calibration_bins(reading: np.ndarray, concept: np.ndarray, bins: int = BINS) -> list[CalibrationBin]:
    """Confidence and accuracy of the most likely concept in bins of equally many items, rising (Nguyen & O'Connor 2015).

    Items of equal confidence share a bin, so that their order does not matter; bins that this leaves empty are left out.

    Args:
        reading: (N, C) probabilities. concept: (N,) int, the right ones.

    Raises:
        ValueError: when rows are no probabilities, lengths differ, or bins < 1.
    """
    reading = _probabilities(reading, concept)
    if bins < 1:
        raise ValueError(f"{bins} bins; there must be at least one")
    confidence, right = reading.max(1), reading.argmax(1) == concept
    # lowest rank of ties; decimals that differ by rounding are ties as well
    place = (rankdata(confidence.round(12), method="min").astype(int) - 1) * bins // len(right)
    return [
        CalibrationBin(float(confidence[m].mean()), float(right[m].mean()), int(m.sum())) for m in (place == b for b in np.unique(place))
    ]


def expected_calibration_error(reading: np.ndarray, concept: np.ndarray, bins: int = BINS) -> float:
    """Mean distance of confidence from accuracy over :func:`calibration_bins`, 0..1.

    The plug-in estimator ``sum_b n_b / N |accuracy_b - confidence_b|`` (Guo et al. 2017). It is biased upwards, since chance alone moves
    a bin's accuracy: by about ``sqrt(bins / N)`` times the mean of ``0.8 sqrt(confidence (1 - confidence))``, so compare only at equal N.
    """
    return sum(b.n * abs(b.accuracy - b.confidence) for b in calibration_bins(reading, concept, bins)) / len(concept)


def brier_score(reading: np.ndarray, concept: np.ndarray) -> float:
    """Mean squared distance of the reading (N, C) from the right concept's one-hot, summed over concepts, 0..2 (Brier 1950).

    Raises:
        ValueError: when rows are no probabilities, or lengths differ.
    """
    reading = _probabilities(reading, concept)
    return float(((reading - np.eye(reading.shape[1])[concept]) ** 2).sum(1).mean())


def _probabilities(reading: np.ndarray, concept: np.ndarray) -> np.ndarray:
    if len(reading) != len(concept) or not len(reading):
        raise ValueError(f"{len(reading)} readings of {len(concept)} concepts; they must be of the same items, at least one")
    if not (np.all(reading >= 0) and np.allclose(reading.sum(1), 1, atol=1e-4)):  # a nan fails too
        raise ValueError("readings must be probabilities: no nan, none negative, every row summing to 1")
    return reading


def balance(cell: np.ndarray) -> np.ndarray:
    """Weights (N,), summing to 1, under which a sum over items is the mean over the cells (N,) of their means."""
    _, index, counts = np.unique(cell, return_inverse=True, return_counts=True)
    return 1 / (len(counts) * counts[index])


def paired_error(difference: np.ndarray, clip: np.ndarray, cell: np.ndarray | None = None) -> float:
    """Standard error of the mean of paired differences (N,), or of its mean over cells, clustered by clip (Miller 2024).

    With ``e_c`` the sum over clip c of ``w_i (d_i - mean of its cell)`` and ``w`` of :func:`balance`, the clip-level variance is
    ``s2 = (sum_c (M e_c)^2 + 1) / (M + 1)`` and the error ``sqrt(s2 / M)``. The added 1 is half an item in each of the four fields of the
    paired table (Agresti & Min 2005): differences that happen to be all alike in few clips must not look certain. nan for one clip.

    Raises:
        ValueError: when lengths differ, or there is no item, or a value is nan.
    """
    cell = np.zeros(len(difference)) if cell is None else cell
    weight, (_, index) = balance(cell), np.unique(cell, return_inverse=True)
    centred = difference - (np.bincount(index, weights=difference) / np.bincount(index))[index]
    totals = _clip_totals(weight * centred, clip)[0]
    n = len(totals)
    return float(np.sqrt((((n * totals) ** 2).sum() + 1) / (n + 1) / n)) if n > 1 else float("nan")


def minimum_detectable(error: float, clips: int, *, planned: int | None = None, power: float = 0.8, alpha: float = 0.05) -> float:
    """The true difference that a two-sided test at ``alpha`` finds with probability ``power``.

    ``(t(1 - alpha/2) + t(power)) * error * sqrt(clips / planned)``, quantiles of Student's t with planned - 1 degrees of freedom; 2.80
    standard errors for many clips. nan where an error is, or for fewer than two clips.

    Args:
        error: standard error seen with ``clips`` clips, as :func:`paired_error` gives it. planned: clips to plan for; default ``clips``.
    """
    planned = clips if planned is None else planned
    if planned < 2:
        return float("nan")
    return float((t.ppf(1 - alpha / 2, planned - 1) + t.ppf(power, planned - 1)) * error * np.sqrt(clips / planned))


def clips_needed(error: float, clips: int, difference: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """The fewest clips with which a true ``difference`` > 0 is found with probability ``power``: :func:`minimum_detectable` turned round.

    Raises:
        ValueError: when the error is nan or the difference not positive.
    """
    if not np.isfinite(error) or difference <= 0:
        raise ValueError(f"no number of clips follows from an error of {error} and a difference of {difference}")
    needed = max(2, int(np.ceil(((norm.ppf(1 - alpha / 2) + norm.ppf(power)) * error / difference) ** 2 * clips)))
    while minimum_detectable(error, clips, planned=needed, power=power, alpha=alpha) > difference:
        needed += 1
    return needed
