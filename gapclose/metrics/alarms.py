"""Alarms of a reading at a threshold: the threshold, hits, false alarms and precision.

An item is flagged where its reading, the probability that its premise is false, is above the
threshold.

Shapes: N items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gapclose.core.results import Result
from gapclose.metrics.bootstrap import ClipBootstrap, Interval


def choose_threshold(reading: np.ndarray, alarm: np.ndarray, rate: float) -> float:
    """Return the threshold with the largest hits minus false alarms, within a false-alarm rate.

    Of equals the highest is taken, which flags least. It lies halfway between two neighbouring
    readings, or between the highest and 1, so rounding does not move an item across it.

    Args:
        reading: (N,) in 0..1.
        alarm: (N,) bool, items whose premise is false; the others are standard.
        rate: largest share of the standard items that may be flagged, 0 <= rate < 1.

    Raises:
        ValueError: when all premises are true, or all are false.
    """
    if alarm.all() or not alarm.any():
        raise ValueError(f"the premises of all {len(alarm)} items are {'false' if alarm.any() else 'true'}; a threshold needs both kinds")
    levels, place = np.unique(reading, return_inverse=True)
    # share above each level
    hits, false_alarms = (1 - np.bincount(place[of], minlength=len(levels)).cumsum() / of.sum() for of in (alarm, ~alarm))
    better = np.where(false_alarms <= rate + 1e-9, (hits - false_alarms).round(9), -np.inf)
    best = len(levels) - 1 - int(better[::-1].argmax())
    above = levels[best + 1] if best + 1 < len(levels) else 1.0
    middle = (levels[best] + above) / 2
    return float(middle if middle < above else levels[best])


@dataclass(frozen=True, kw_only=True, slots=True)
class AlarmRates(Result):
    """How the flags of labelled items agree with their labels; intervals resample clips."""

    items: int
    clips: int
    alarm_items: int
    """items whose premise is false"""
    alarm_clips: int
    """clips with such items"""
    standard_clips: int
    """clips with items whose premise is true"""
    flagged: int
    hits: Interval
    """share of the items with a false premise that are flagged"""
    false_alarms: Interval
    """share of the other items that are flagged"""
    precision: Interval
    """share of the flagged items whose premise is false; it depends on how many premises are false"""


def alarm_rates(flag: np.ndarray, alarm: np.ndarray, clip: np.ndarray, *, replicates: int, seed: int) -> AlarmRates:
    """Count hits and false alarms.

    Args:
        flag: (N,) bool. alarm: (N,) bool, items whose premise is false. clip: (N,).
        replicates, seed: of the bootstrap.
    """
    clips = ClipBootstrap(clip, replicates, seed)
    return AlarmRates(
        items=len(flag),
        clips=clips.n,
        alarm_items=int(alarm.sum()),
        alarm_clips=len(np.unique(clip[alarm])),
        standard_clips=len(np.unique(clip[~alarm])),
        flagged=int(flag.sum()),
        hits=Interval.of(clips.mean(flag, alarm)),
        false_alarms=Interval.of(clips.mean(flag, ~alarm)),
        precision=Interval.of(clips.mean(alarm, flag)),
    )
