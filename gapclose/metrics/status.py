"""The state of a measurement in one word, and the rules that states, guards and epochs share.

A claim of success needs evidence beyond chance: *closed* requires it of the lower end of the
closure's interval. A fall that counts against a model (*over-rejecting*, *lost*, *moved*, and the
guards of the same falls) needs an estimate beyond its budget and an interval above zero. Requiring
the entire interval beyond the budget would hide falls behind few clips; the estimate alone would
stop training by chance. An estimate beyond the budget but within chance is neither *over-rejecting*
nor *closed*.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gapclose.metrics.bootstrap import Interval
from gapclose.metrics.config import GapConfig


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The figures that decide a state."""

    closure: Interval
    beyond_reading: Interval
    """action now - reading of the base, balanced accuracy"""
    standard_drop: Interval
    frozen_fell: bool
    fresh_fell: bool
    parse_rate: float
    base_parse_rate: float


STATES = {
    "collapsed": "answers no longer parse",
    "over-rejecting": "standard accuracy fell beyond the budget",
    "lost": "a fresh probe no longer reads it: the knowledge itself fell",
    "learned": "the action passed what the base model's reading says",
    "moved": "a fresh probe reads it, the frozen one no longer does",
    "closed": "the action follows the reading",
    "blocked": "the reading holds, the action does not follow",
    "open": "part of the gap remains, or is not shown to be closed",
    "unfinished": "the loss on val was still falling at the last epoch; train longer",
    "not judgeable": "the model does not answer such questions",
    "no gap": "the base model's reading is not shown to be ahead of its action",
}
UNFINISHED = ("blocked", "open")
"""states that an unfinished training replaces: they are not what it would have ended in"""
BLOCKED = 0.1
"""estimated closure below which the action does not follow the reading"""


def beyond(fall: Interval, budget: float) -> bool:
    """Whether a figure fell by more than ``budget``, as estimated and with an interval above zero.

    A fall on one clip has no interval and shows nothing.
    """
    return fall.value > budget and fall.lower > 0  # of nan neither holds


def within(fall: Interval, budget: float) -> bool:
    """Whether an estimated fall is within its budget.

    Claims of success require this, and the choice of an epoch prefers it.
    """
    return fall.value <= budget


def dropped(now: np.ndarray, base: np.ndarray, tolerance: float) -> bool:
    """Whether a statistic (R + 1,) fell :func:`beyond` ``tolerance`` on the same clips."""
    return beyond(Interval.of(base - now), tolerance)


def parses(rate: float, base_rate: float, config: GapConfig) -> bool:
    """Whether the parse rate is at least ``gap.parse_floor`` of the base's, as estimated.

    Otherwise the state is collapsed, and the guard of parsing is triggered.
    """
    return rate >= config.parse_floor * base_rate


def is_closed(closure: Interval, standard_drop: Interval, config: GapConfig) -> bool:
    """Whether the closure reaches ``gap.closed_at`` and standard accuracy stays within its budget.

    The closure counts by the lower end of its interval, standard accuracy by its estimate.
    """
    return closure.lower >= config.closed_at and within(standard_drop, config.standard_budget)


def is_learned(beyond_reading: Interval, standard_drop: Interval, config: GapConfig) -> bool:
    """Whether the action passed the base's reading by more than ``gap.reading_tolerance``.

    It counts like a fall of the reading below the action (:func:`beyond`), with standard accuracy
    within its budget. The reading of the base cannot have said what such a model answers.
    """
    return beyond(beyond_reading, config.reading_tolerance) and within(standard_drop, config.standard_budget)


def state_of(evidence: Evidence, config: GapConfig) -> str:
    """Return the first word whose rule holds, in this order; :data:`STATES` explains each."""
    if not parses(evidence.parse_rate, evidence.base_parse_rate, config):
        return "collapsed"
    if beyond(evidence.standard_drop, config.standard_budget):
        return "over-rejecting"
    if evidence.fresh_fell:
        return "lost"
    if is_learned(evidence.beyond_reading, evidence.standard_drop, config):
        return "learned"
    if evidence.frozen_fell:
        return "moved"
    if np.isnan(evidence.closure.value):
        return "no gap"
    if is_closed(evidence.closure, evidence.standard_drop, config):
        return "closed"
    return "blocked" if evidence.closure.value < BLOCKED else "open"
