"""Settings of the gap and of its intervals."""

from __future__ import annotations

from dataclasses import dataclass

from gapclose.core.config_checks import Checks


@dataclass(kw_only=True)
class GapConfig:
    """How the gap is measured and judged."""

    replicates: int = 10_000
    """clip-bootstrap replicates behind every interval"""
    standard_budget: float = 0.05
    """standard accuracy that a checkpoint may lose, 0..1; beyond it, and beyond chance, the state is over-rejecting (:mod:`gapclose.metrics.status`)"""
    choose: str = "own"
    """what the checkpoint is chosen by among epochs: own (the answers as they are, within ``standard_budget``) or shifted (what they would be
    after the best shift of the rejections' scores within it: for comparisons at an operating point, and users who apply such a shift)"""
    reading_tolerance: float = 0.05
    """balanced accuracy that a reading may lose before it counts as fallen, 0..1 (the interval must exclude zero too)"""
    closed_at: float = 0.9
    """closure that must be shown for the state to be closed: the lower end of its interval"""
    parse_floor: float = 0.9
    """share of the base's parse rate below which the state is collapsed, 0..1"""
    least_option_mass: float = 0.1
    """probability that the options must hold together, 0..1, for the model to count as answering such questions; below it they rank answers
    that it gives less than once in ten times"""
    least_parse_rate: float = 0.5
    """share of generated answers that must match an option, 0..1, for the same"""
    least_standard_skill: float = 0.2
    """accuracy on true premises that it must have for the same, 0..1 of the way from guessing among the options that do not object (0) to
    certainty (1): 0.4 with four such options"""
    detectable: float = 0.1
    """difference in accuracy or AUROC, 0..1, that the clips must be enough to find before nothing found counts as nothing there"""

    def __post_init__(self) -> None:
        with Checks(self, "gap") as check:
            check.number("standard_budget", "reading_tolerance", "closed_at", "parse_floor", least=0, most=1, why="0.05 for five points")
            check.number("least_option_mass", "least_parse_rate", "least_standard_skill", least=0, most=1)
            check.number("detectable", above=0, most=1, why="0.1 for ten points; no number of clips finds every difference")
            check.choice("choose", ("own", "shifted"))
            check.number("replicates", least=100, why="intervals need that many")
