"""Answer as a reading says: the concept by the reading, the option within it by the base model's scores.

The scores are the logarithm of the targets of training (Jeffrey's rule, :mod:`gapclose.targets`), so with the probe's reading this is the
ceiling of a perfect alignment to it, and with a reading by the text alone it is what a gate can have without looking at the clip.

Shapes: N items, O options, C concepts, P settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter

import numpy as np

from gapclose.baselines.operating import Method, Scores, Seen, Setting, alarms
from gapclose.gap import Labels
from gapclose.targets import jeffrey, shift_prior

FLOOR = 1e-11  # of a concept's probability: where no option expresses the one that is read, the next most probable one counts


def factors() -> np.ndarray:
    """Prior factors of the alarm concepts that are tried, 1 first, then by distance from it."""
    tried = np.geomspace(1e-4, 1e4, 321)
    return tried[np.argsort(np.abs(np.log(tried)).round(9), kind="stable")]


def answer_scores(reading: np.ndarray, seen: Seen, alarm: np.ndarray, settings: Sequence[Setting]) -> np.ndarray:
    """Log targets (P, N, O), -inf beyond an item's options.

    Args:
        reading: (N, C). alarm: (C,) bool. settings: P times ``prior_factor``, on the prior of the alarm concepts.
    """
    rows = []
    for setting in settings:
        believed = np.maximum(shift_prior(reading, alarm, setting["prior_factor"]), FLOOR)
        target = jeffrey(believed, seen.scores, seen.option_concept)
        rows.append(np.where(seen.option_concept >= 0, np.log(np.maximum(target, 1e-300)), -np.inf))
    return np.stack(rows)


def _answerer(name: str, label: str, fit: Seen, known: Labels, reading: Callable[[Seen], np.ndarray]) -> Method:
    alarm = np.isin(np.arange(len(known.concepts)), alarms(known))
    settings = [{"prior_factor": float(f)} for f in factors()]

    def answers(seen: Seen) -> Scores:
        return partial(answer_scores, reading(seen), seen, alarm)

    return Method(name=name, label=label, settings=settings, fit=answers(fit), answers=answers)


def answer_by_probe(fit: Seen, known: Labels) -> Method:
    """The probe as the answerer."""
    return _answerer("probe", "the probe answers", fit, known, attrgetter("reading"))


def answer_by_text(fit: Seen, known: Labels) -> Method:
    """The text alone as the answerer."""
    return _answerer("text", "the text alone answers", fit, known, attrgetter("text"))
