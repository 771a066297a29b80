"""Thresholds, rates and bins of alarms, on readings whose answers are counted by hand."""

import numpy as np
import pytest

from gapclose.metrics.alarms import alarm_rates, choose_threshold
from gapclose.metrics.calibration import EventBin, event_bins

STANDARD = [0.1, 0.2, 0.3, 0.4, 0.9]
ALARMS = [0.35, 0.5, 0.6, 0.95, 0.97]
READING, ALARM = np.array(STANDARD + ALARMS), np.array([False] * 5 + [True] * 5)


@pytest.mark.parametrize(
    ("rate", "threshold"),
    [
        (0.0, 0.925),  # only what lies above every standard item
        (0.2, 0.45),  # one of five standard items: four hits
        (0.4, 0.45),  # two would give one hit more, and no more hits minus false alarms; the higher threshold is taken
    ],
)
def test_the_threshold_keeps_to_the_rate_and_lies_between_two_readings(rate, threshold):
    assert choose_threshold(READING, ALARM, rate) == pytest.approx(threshold)


def test_separate_readings_are_parted_in_the_middle_whatever_the_rate():
    for rate in (0.0, 0.05, 0.5):
        assert choose_threshold(np.array([0.0, 0.1, 0.7, 0.9]), np.array([False, False, True, True]), rate) == pytest.approx(0.4)


def test_a_reading_that_knows_nothing_flags_nothing():
    same = np.full(10, 0.5)
    assert choose_threshold(same, ALARM, 0.05) == 0.75  # far enough from them that rounding flags none


@pytest.mark.parametrize("one", [np.zeros(10, dtype=bool), np.ones(10, dtype=bool)])
def test_a_threshold_needs_items_of_both_kinds(one):
    with pytest.raises(ValueError, match="needs both kinds"):
        choose_threshold(READING, one, 0.05)


def test_rates_are_counted_and_have_intervals():
    found = alarm_rates(READING > 0.45, ALARM, np.arange(10), replicates=200, seed=0)
    assert (found.items, found.clips, found.alarm_items, found.flagged) == (10, 10, 5, 5)
    assert (found.alarm_clips, found.standard_clips) == (5, 5)
    shared = alarm_rates(READING > 0.45, ALARM, np.array([0] * 5 + [1, 1, 1, 2, 2]), replicates=200, seed=0)
    assert (shared.clips, shared.alarm_clips, shared.standard_clips) == (3, 2, 1)
    assert (found.hits.value, found.false_alarms.value, found.precision.value) == (0.8, 0.2, 0.8)
    assert found.hits.lower < 0.8 < found.hits.upper


def test_bins_hold_equally_many_items_and_ties_stay_together():
    bins = event_bins(READING, ALARM, 2)
    assert [b.n for b in bins] == [5, 5] and bins[0] == EventBin(pytest.approx(0.27), 0.2, 5) and bins[1].observed == 0.8
    assert event_bins(np.full(4, 0.5), np.array([True, False, False, False]), 2) == [EventBin(0.5, 0.25, 4)]
