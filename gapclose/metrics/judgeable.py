"""Check that a model answers such questions at all; a gap is claimed only for a model that does.

Three figures decide, each with a clip-bootstrap interval: the total probability of the options, the
share of generated answers that match an option, and the accuracy on standard questions (those with
a true premise). If one is too low, the verdict on the gap is *not judgeable*: the option scores
rank answers that the model would not give.

Pure functions of arrays.

Shapes: N items, O options, R replicates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from gapclose.core.results import Result
from gapclose.metrics.bootstrap import Interval
from gapclose.metrics.config import GapConfig
from gapclose.metrics.labels import Labels

ADVICE = "The log shows some of its answers and what to change"
"""end of a verdict's sentence; :func:`advice` says what to change"""
OPTION_MASS, PARSE_RATE, SKILL, LENGTH = (
    "gap.least_option_mass",
    "gap.least_parse_rate",
    "gap.least_standard_skill",
    "observe.max_new_tokens",
)
"""keys by which a fault names itself"""
REMEDIES = {
    OPTION_MASS: "Its answers begin with other words than an option: ask in the prompt for the option alone, show the form in example turns "
    "(`messages`), or set the chat template (`model.template`).",
    PARSE_RATE: "Most of its answers name no option, or several: ask in the prompt for one option, in the words of the list.",
    LENGTH: "Answers are cut off before they name an option: raise `observe.max_new_tokens`.",
    SKILL: "The model cannot answer these questions even where the premise is true: ask easier questions, or take a larger model.",
}
"""key of a fault -> what to change; ``observe.max_new_tokens`` replaces ``gap.least_parse_rate`` where answers are cut off"""


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


def action_quality(
    statistics: Mapping[str, np.ndarray], labels: Labels, config: GapConfig, *, cut_off: int = 0, limit: int | None = None
) -> ActionQuality:
    """Compare the estimates of one scope with the thresholds ``gap.least_*``.

    Args:
        statistics: ``action.option_mass``, ``generated.parse_lenient`` and
            ``action.standard_accuracy``, each (R + 1,).
        labels: of the scope's N items.
        cut_off: answers of the N that name no option and reach the length ``limit``, in tokens.
    """
    mass, parses, standard = (
        Interval.of(statistics[name]) for name in ("action.option_mass", "generated.parse_lenient", "action.standard_accuracy")
    )
    guess, least = guessing(labels), least_standard(labels, config.least_standard_skill)
    faults = []
    if mass.value < config.least_option_mass:
        faults.append(
            f"the options hold {_percent(mass)} of the probability of the next answer, less than {100 * config.least_option_mass:g} % "
            f"({OPTION_MASS})"
        )
    if parses.value < config.least_parse_rate:
        cut = f", and {cut_off} of {len(labels.clip)} reach the limit of {limit} tokens without naming one ({LENGTH})" if cut_off else ""
        faults.append(
            f"{_percent(parses)} of the generated answers match an option, less than {100 * config.least_parse_rate:g} % ({PARSE_RATE}){cut}"
        )
    if guess is not None and least is not None and standard.value < least:
        faults.append(
            f"where the premise is true, {_percent(standard)} of the answers are right; guessing gives {100 * guess:.1f} %, and {100 * least:.1f} % "
            f"are required ({SKILL})"
        )
    return ActionQuality(option_mass=mass, parse_rate=parses, standard_accuracy=standard, least_standard=least, faults=tuple(faults))


def advice(faults: Iterable[Sequence[str]]) -> str:
    """What to change, in sentences, given the faults of one or more scopes; empty where no fault names its key.

    A low accuracy on true premises counts only in a scope where it is the one fault: of a model
    that answers in another form, the accuracy says little.
    """
    found = dict[str, None]()
    for of in faults:
        named = [key for key in REMEDIES if any(f"({key})" in fault for fault in of)]
        form = [key for key in named if key != SKILL and not (key == PARSE_RATE and LENGTH in named)]
        found |= dict.fromkeys(REMEDIES[key] for key in form or named)
    return " ".join([*found, "Then measure again."]) if found else ""


def least_standard(labels: Labels, skill: float) -> float | None:
    """The standard accuracy at a share ``skill`` of the way from guessing to certainty; None as for
    :func:`guessing`."""
    guess = guessing(labels)
    return None if guess is None else guess + skill * (1 - guess)


def guessing(labels: Labels) -> float | None:
    """The standard accuracy of guessing.

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
    return None if np.median(content) < 2 else float(np.mean(1 / np.maximum(content, 1)))


def option_mass(scores: np.ndarray) -> np.ndarray:
    """Total probability (N,) of the options, from scores (N, O) in nats (-inf: no option)."""
    return np.exp(scores).sum(1).clip(max=1)


def _percent(interval: Interval) -> str:
    value, lower, upper = (100 * x for x in asdict(interval).values())
    return f"{value:.3g} % [{lower:.3g}, {upper:.3g}]"
