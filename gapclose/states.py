"""The state of a measurement in one word, and what it is decided on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gapclose.gap import GapConfig
from gapclose.resample import Interval


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a state is decided on: point estimates, and whether a fall is beyond chance."""

    closure: float
    standard_drop: float
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
    "open": "part of the gap remains",
    "not judgeable": "the model does not answer such questions",
    "no gap": "the base model's reading is not shown to be ahead of its action",
}


def state_of(evidence: Evidence, config: GapConfig) -> str:
    """One word for a measurement, the most alarming that applies; :data:`STATES` explains each."""
    if evidence.parse_rate < config.parse_floor * evidence.base_parse_rate:
        return "collapsed"
    if evidence.standard_drop > config.standard_budget:
        return "over-rejecting"
    if evidence.fresh_fell:
        return "lost"
    if evidence.frozen_fell:
        return "moved"
    if np.isnan(evidence.closure):
        return "no gap"
    if evidence.closure >= config.closed_at:
        return "closed"
    return "blocked" if evidence.closure < 0.1 else "open"


def fell(now: np.ndarray, base: np.ndarray, tolerance: float) -> bool:
    """Whether a statistic fell by more than ``tolerance``, with an interval of the paired difference that excludes zero."""
    change = Interval.of(now - base)
    return change.value < -tolerance and change.upper < 0
