"""Check that a model answers such questions at all; a gap is claimed only for a model that does.

Three figures decide, each with a clip-bootstrap interval: the total probability of the options, the
share of generated answers that match an option, and the accuracy on standard questions (those with
a true premise). If one is too low, the verdict on the gap is *not judgeable*: the option scores
rank answers that the model would not give.

Pure functions of arrays.

Shapes: N items, O options, R replicates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from gapclose.core.results import Result
from gapclose.metrics.bootstrap import Interval
from gapclose.metrics.config import GapConfig
from gapclose.metrics.labels import Labels

ADVICE = (
    "List the options in the prompt, ask for one of them, set the variables of the chat template (model.template), or ask questions that this "
    "model can answer"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionQuality(Result):
    """Whether a model answers the questions of one scope."""

    option_mass: Interval
    """mean over items of the probability that the model answers with one of the options, 0..1"""
    parse_rate: Interval
    """share of generated answers that match an option, 0..1"""
    standard_accuracy: Interval
    """option accuracy on standard items, 0..1; nan where there is none"""
    least_standard: float | None
    """smallest sufficient accuracy on standard items; None where these have one possible answer, or
    no concept is an alarm"""
    faults: tuple[str, ...]
    """failed checks as sentences; empty where the model answers"""


def action_quality(statistics: Mapping[str, np.ndarray], labels: Labels, config: GapConfig) -> ActionQuality:
    """Compare the estimates of one scope with the thresholds ``gap.least_*``.

    Args:
        statistics: ``action.option_mass``, ``generated.parse_lenient`` and
            ``action.standard_accuracy``, each (R + 1,).
        labels: of the scope's N items.
    """
    mass, parses, standard = (
        Interval.of(statistics[name]) for name in ("action.option_mass", "generated.parse_lenient", "action.standard_accuracy")
    )
    least = least_standard(labels, config.least_standard_skill)
    faults = []
    if mass.value < config.least_option_mass:
        faults.append(
            f"the options hold {_percent(mass)} of the probability of the next answer, less than {100 * config.least_option_mass:g} % "
            "(gap.least_option_mass)"
        )
    if parses.value < config.least_parse_rate:
        faults.append(
            f"{_percent(parses)} of the generated answers match an option, less than {100 * config.least_parse_rate:g} % "
            "(gap.least_parse_rate)"
        )
    if least is not None and standard.value < least:
        faults.append(
            f"the accuracy on true premises is {_percent(standard)}, less than {100 * least:.1f} %, which is a share of "
            f"{config.least_standard_skill:g} of the way from guessing to certainty (gap.least_standard_skill)"
        )
    return ActionQuality(option_mass=mass, parse_rate=parses, standard_accuracy=standard, least_standard=least, faults=tuple(faults))


def least_standard(labels: Labels, skill: float) -> float | None:
    """The standard accuracy at a share ``skill`` of the way from guessing to certainty.

    Guessing is uniform over the options of an item that express a standard concept: a model that
    never objects guesses among those. None where most standard items have one such option (*yes* to
    a true claim), since always choosing it needs no skill. None also without alarms or standard
    items.
    """
    if not labels.alarm or not labels.standard.any():
        return None
    alarms = [labels.concepts.index(a) for a in labels.alarm]
    of = labels.option_concept[labels.standard]
    content = ((of >= 0) & ~np.isin(of, alarms)).sum(1)  # options of each standard item that do not object
    guess = float(np.mean(1 / np.maximum(content, 1)))
    return None if np.median(content) < 2 else guess + skill * (1 - guess)


def option_mass(scores: np.ndarray) -> np.ndarray:
    """Total probability (N,) of the options, from scores (N, O) in nats (-inf: no option)."""
    return np.exp(scores).sum(1).clip(max=1)


def _percent(interval: Interval) -> str:
    value, lower, upper = (100 * x for x in asdict(interval).values())
    return f"{value:.3g} % [{lower:.3g}, {upper:.3g}]"
