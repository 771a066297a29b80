"""Results of a monitor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gapclose.core.results import Result
from gapclose.evaluation.monitor_file import MonitorFile


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


def readings_of(file: MonitorFile, residuals: Mapping[int, torch.Tensor], names: Sequence[str]) -> list[Reading]:
    """Read residuals by layer (B, D) of the conversations ``names``.

    Raises:
        FloatingPointError: naming a conversation whose residual is not finite.
    """
    concepts = file.concepts(residuals)
    for name, row in zip(names, concepts, strict=True):
        if not np.isfinite(row).all():
            raise FloatingPointError(f"{name}: a residual is not finite; load the model in float32 or bfloat16")
    known = file.probe.concepts
    return [
        Reading(reading=float(r), flag=bool(r > file.threshold), concepts=dict(zip(known, row.tolist(), strict=True)))
        for r, row in zip(file.reading(concepts), concepts, strict=True)
    ]
