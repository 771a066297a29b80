"""Results of a monitor."""

from __future__ import annotations

from dataclasses import dataclass

from gapclose.core.results import Result


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading(Result):
    """The reading of one conversation."""

    reading: float
    """probability that a premise of the question is false, 0..1"""
    flag: bool
    """whether the reading is above the monitor's threshold"""
    concepts: dict[str, float]
    """probability of every concept"""


@dataclass(frozen=True, kw_only=True, slots=True)
class MonitoredAnswer(Reading):
    """An answer with the reading of its prompt."""

    text: str
    """the answer, or what ``on_flag`` put in its place"""
    option: str | None
    """the option that the text names; None where no options were given, or it names none"""
    disagrees: bool | None
    """whether the option objects to the premise and the reading does not, or the reverse; None
    without an option"""
    before: str | None = None
    """the model's own answer, where ``on_flag`` replaced it"""
