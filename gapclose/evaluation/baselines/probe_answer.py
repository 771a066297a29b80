"""Answer by a reading, which decides the concept; the base model's scores decide the option.

With the probe's reading the scores are the logarithm of the training targets (Jeffrey's rule,
:mod:`gapclose.training.targets`), so this is the ceiling of perfect alignment to them. The options
of a concept share its probability, so the base model's certainty among them also affects the choice
between concepts, and the base model has seen the clip. With the text-only reading, the best option
of a concept gets all of its probability. The clip then decides only which option is named, so the
choice between concepts uses the text alone.

Shapes: N items, O options, C concepts, P settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter

import numpy as np

from gapclose.evaluation.baselines.operating_point import Method, Scores, Seen, Setting, alarms
from gapclose.metrics.labels import Labels
from gapclose.probes.posterior import expressible, factors, jeffrey, restrict, shift_prior

LEAST = np.finfo(np.float64).smallest_subnormal


def answer_scores(reading: np.ndarray, seen: Seen, alarm: np.ndarray, settings: Sequence[Setting]) -> np.ndarray:
    """Return log targets (P, N, O), -inf beyond an item's options.

    Readings are restricted to the concepts that an item's options express.

    Args:
        reading: (N, C). alarm: (C,) bool. settings: P times ``prior_factor``, on the prior of the
            alarm concepts.
    """
    reading, _ = restrict(reading, expressible(seen.option_concept, reading.shape[1]))
    rows = []
    for setting in settings:
        target = jeffrey(shift_prior(reading, alarm, setting["prior_factor"]), seen.scores, seen.option_concept)
        rows.append(np.where(seen.option_concept >= 0, np.log(np.maximum(target, LEAST)), -np.inf))
    return np.stack(rows)


def best_of_each(seen: Seen) -> Seen:
    """Keep only the base model's highest-scored option of every concept, the first of equals."""
    best = np.full(seen.scores.shape, -np.inf)
    for c in np.unique(seen.option_concept[seen.option_concept >= 0]):
        within = np.where(seen.option_concept == c, seen.scores, -np.inf)
        rows, first = np.flatnonzero(np.isfinite(within.max(1))), within.argmax(1)
        best[rows, first[rows]] = within[rows, first[rows]]
    return replace(seen, scores=best)


def _answerer(
    name: str, label: str, fit: Seen, known: Labels, reading: Callable[[Seen], np.ndarray], within: Callable[[Seen], Seen] = lambda s: s
) -> Method:
    """``within``: adjusts the base model's scores within a concept."""
    alarm = np.isin(np.arange(len(known.concepts)), alarms(known))
    settings = [{"prior_factor": float(f)} for f in factors()]

    def answers(seen: Seen) -> Scores:
        return partial(answer_scores, reading(seen), within(seen), alarm)

    return Method(name=name, label=label, settings=settings, fit=answers(fit), answers=answers)


def answer_by_probe(fit: Seen, known: Labels) -> Method:
    """Build the method that answers by the probe."""
    return _answerer("probe", "the probe answers", fit, known, attrgetter("reading"))


def answer_by_text(fit: Seen, known: Labels) -> Method:
    """Build the method that answers by the text alone; the base model's scores choose only the
    option within the concept."""
    return _answerer("text", "the text alone answers", fit, known, attrgetter("text"), best_of_each)
