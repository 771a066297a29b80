"""Settings of the gap and its intervals."""

from __future__ import annotations

from dataclasses import dataclass

from gapclose.core.config_checks import Checks


@dataclass(kw_only=True)
class GapConfig:
    """How the gap is measured and judged."""

    replicates: int = 10_000
    """number of clip-bootstrap replicates for every interval"""
    standard_budget: float = 0.05
    """accuracy on questions with a true premise that a checkpoint may lose, 0..1; a larger loss
    that exceeds chance makes the state over-rejecting (:mod:`gapclose.metrics.status`)"""
    choose: str = "own"
    """how the checkpoint is chosen among epochs: own (by the answers as they are, within
    ``standard_budget``) or shifted (by the answers after the best shift of the rejection scores
    within that budget, for comparisons at an operating point and for users who apply such a shift)"""
    reading_tolerance: float = 0.05
    """balanced accuracy that a reading may lose before it counts as fallen, 0..1 (the interval of
    the loss must also exclude zero)"""
    closed_at: float = 0.9
    """closure that the lower end of its interval must reach for the state to be closed, 0..1"""
    parse_floor: float = 0.9
    """share of the base's parse rate below which the state is collapsed, 0..1"""
    least_option_mass: float = 0.1
    """smallest total probability of the options, 0..1, with which the model counts as answering
    such questions; below 0.1 they rank answers that the model gives less than once in ten times"""
    least_parse_rate: float = 0.5
    """smallest share of generated answers that match an option, 0..1, with which the model counts
    as answering"""
    least_standard_skill: float = 0.2
    """smallest accuracy on questions with a true premise with which the model counts as answering:
    0..1 of the way from guessing among the options that do not object (0) to certainty (1); 0.2 is
    an accuracy of 0.4 with four such options"""
    detectable: float = 0.1
    """smallest difference in accuracy or AUROC that matters, 0..1; only with enough clips to detect
    it does an undetected difference count as absent"""

    def __post_init__(self) -> None:
        with Checks(self, "gap") as check:
            check.number("standard_budget", "reading_tolerance", "closed_at", "parse_floor", least=0, most=1, why="0.05 for five points")
            check.number("least_option_mass", "least_parse_rate", "least_standard_skill", least=0, most=1)
            check.number("detectable", above=0, most=1, why="0.1 for ten points; no number of clips finds every difference")
            check.choice("choose", ("own", "shifted"))
            check.number("replicates", least=100, why="intervals need that many")
