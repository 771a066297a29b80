"""Calibration of probabilities: bins, expected calibration error, Brier score."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

BINS = 15  # of calibration, as in Guo et al. 2017


class CalibrationBin(NamedTuple):
    """Items of similar confidence."""

    confidence: float
    accuracy: float
    n: int


def calibration_bins(reading: np.ndarray, concept: np.ndarray, bins: int = BINS) -> list[CalibrationBin]:
    """Confidence and accuracy of the most likely concept in bins of equally many items, rising.

    As in Nguyen & O'Connor (2015). Items of equal confidence share a bin, so their order does not
    matter; empty bins are left out.

    Args:
        reading: (N, C) probabilities. concept: (N,) int, the right ones.

    Raises:
        ValueError: when rows are not probabilities, lengths differ, or bins < 1.
    """
    reading = _probabilities(reading, concept)
    if bins < 1:
        raise ValueError(f"{bins} bins; there must be at least one")
    confidence, right = reading.max(1), reading.argmax(1) == concept
    return [CalibrationBin(float(confidence[m].mean()), float(right[m].mean()), int(m.sum())) for m in _alike(confidence, bins)]


class EventBin(NamedTuple):
    """Items with similar probabilities of an event."""

    predicted: float
    """mean probability"""
    observed: float
    """share of the items where the event is true"""
    n: int


def event_bins(probability: np.ndarray, event: np.ndarray, bins: int = BINS) -> list[EventBin]:
    """Predicted and observed frequency of an event in bins of equally many items, rising.

    Bins are those of :func:`calibration_bins`.

    Args:
        probability: (N,) in 0..1. event: (N,) bool.

    Raises:
        ValueError: when lengths differ or there are no items.
    """
    if len(probability) != len(event) or not len(event):
        raise ValueError(f"{len(probability)} probabilities of {len(event)} events; they must be of the same items, at least one")
    return [EventBin(float(probability[m].mean()), float(event[m].mean()), int(m.sum())) for m in _alike(probability, bins)]


def _alike(values: np.ndarray, bins: int) -> list[np.ndarray]:
    """Masks (N,) of bins of equally many items, by rising value; empty bins are left out."""
    # lowest rank of ties; values that differ by rounding count as ties
    place = (rankdata(values.round(12), method="min").astype(int) - 1) * bins // len(values)
    return [place == b for b in np.unique(place)]


def expected_calibration_error(reading: np.ndarray, concept: np.ndarray, bins: int = BINS) -> float:
    """Mean distance of confidence from accuracy over :func:`calibration_bins`, 0..1.

    The plug-in estimator ``sum_b n_b / N |accuracy_b - confidence_b|`` (Guo et al. 2017). It is
    biased upwards because chance alone moves a bin's accuracy, by about ``sqrt(bins / N)`` times
    the mean of ``0.8 sqrt(confidence (1 - confidence))``. Compare it only at equal N.
    """
    return sum(b.n * abs(b.accuracy - b.confidence) for b in calibration_bins(reading, concept, bins)) / len(concept)


def brier_score(reading: np.ndarray, concept: np.ndarray) -> float:
    """Mean squared distance of the reading (N, C) from the right concept's one-hot (Brier 1950).

    It is summed over concepts, 0..2.

    Raises:
        ValueError: when rows are not probabilities, or lengths differ.
    """
    reading = _probabilities(reading, concept)
    return float(((reading - np.eye(reading.shape[1])[concept]) ** 2).sum(1).mean())


def _probabilities(reading: np.ndarray, concept: np.ndarray) -> np.ndarray:
    if len(reading) != len(concept) or not len(reading):
        raise ValueError(f"{len(reading)} readings of {len(concept)} concepts; they must be of the same items, at least one")
    if not (np.all(reading >= 0) and np.allclose(reading.sum(1), 1, atol=1e-4)):  # a nan fails too
        raise ValueError("readings must be probabilities: no nan, none negative, every row summing to 1")
    return reading
