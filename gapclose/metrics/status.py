"""What the words of a measurement stand for: the state in one word, and the rules that states, guards and the choice of an epoch share.

A word that claims success needs evidence beyond chance: *closed* asks the whole interval of the closure. A fall that tells against a model
(*over-rejecting*, *lost*, *moved*, and the guards of the same falls) needs an estimate beyond its budget and an interval above zero: a fall
whose whole interval has to lie beyond the budget could hide behind few clips, and an estimate alone would stop trainings by chance. Such an
estimate within chance is no over-rejecting, and no closed either.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gapclose.metrics.bootstrap import Interval
from gapclose.metrics.config import GapConfig


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a state is decided on."""

    closure: Interval
    standard_drop: Interval
    frozen_fell: bool
    fresh_fell: bool
    parse_rate: float
    base_parse_rate: float


STATES = {
    "collapsed": "answers no longer parse",
    "over-rejecting": "standard accuracy fell beyond the budget",
    "lost": "a fresh probe no longer reads it: the knowledge itself fell",
    "moved": "a fresh probe reads it, the frozen one no longer does",
    "closed": "the action follows the reading",
    "blocked": "the reading holds, the action does not follow",
    "open": "part of the gap remains, or is not shown to be closed",
    "not judgeable": "the model does not answer such questions",
    "no gap": "the base model's reading is not shown to be ahead of its action",
}
BLOCKED = 0.1
"""closure, as estimated, below which the action does not follow"""


def beyond(fall: Interval, budget: float) -> bool:
    """Whether a figure fell by more than ``budget``: as estimated, and beyond chance, the interval of the fall lying above zero.

    What one clip does has no interval, and shows nothing.
    """
    return fall.value > budget and fall.lower > 0  # of nan neither holds


def within(fall: Interval, budget: float) -> bool:
    """Whether a fall keeps to its budget as estimated: what a claim of success asks, and what the choice of an epoch prefers."""
    return fall.value <= budget


def dropped(now: np.ndarray, base: np.ndarray, tolerance: float) -> bool:
    """:func:`beyond` of a statistic (R + 1,) on the same clips."""
    return beyond(Interval.of(base - now), tolerance)


def parses(rate: float, base_rate: float, config: GapConfig) -> bool:
    """Whether answers parse about as often as the base's, as estimated; else the state is collapsed, and the guard of parsing objects."""
    return rate >= config.parse_floor * base_rate


def is_closed(closure: Interval, standard_drop: Interval, config: GapConfig) -> bool:
    """Whether the whole interval of the closure reaches ``gap.closed_at``, at a standard accuracy within its budget as estimated."""
    return closure.lower >= config.closed_at and within(standard_drop, config.standard_budget)


def state_of(evidence: Evidence, config: GapConfig) -> str:
    """One word for a measurement, the most alarming that applies; :data:`STATES` explains each."""
    if not parses(evidence.parse_rate, evidence.base_parse_rate, config):
        return "collapsed"
    if beyond(evidence.standard_drop, config.standard_budget):
        return "over-rejecting"
    if evidence.fresh_fell:
        return "lost"
    if evidence.frozen_fell:
        return "moved"
    if np.isnan(evidence.closure.value):
        return "no gap"
    if is_closed(evidence.closure, evidence.standard_drop, config):
        return "closed"
    return "blocked" if evidence.closure.value < BLOCKED else "open"
