"""Answer as a reading says: the concept by the reading, the option within it by the base model's scores.

With the probe's reading the scores are the logarithm of the targets of training (Jeffrey's rule, :mod:`gapclose.training.targets`), so this is the
ceiling of a perfect alignment to it. There the options of a concept share its belief, so how sure the base model is among them, which has seen
the clip, also counts between concepts. With a reading by the text alone the best option of a concept has all of its belief: the clip decides
which of them is named, and nothing between concepts, which is what a gate can have without looking at it.

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
    """Log targets (P, N, O), -inf beyond an item's options. Where no option expresses the concept that is read, the next most probable
    counts.

    Args:
        reading: (N, C). alarm: (C,) bool. settings: P times ``prior_factor``, on the prior of the alarm concepts.
    """
    reading, _ = restrict(reading, expressible(seen.option_concept, reading.shape[1]))
    rows = []
    for setting in settings:
        target = jeffrey(shift_prior(reading, alarm, setting["prior_factor"]), seen.scores, seen.option_concept)
        rows.append(np.where(seen.option_concept >= 0, np.log(np.maximum(target, LEAST)), -np.inf))
    return np.stack(rows)


def best_of_each(seen: Seen) -> Seen:
    """What is seen, where every concept has one option left: the first of those that the base model scores highest within it."""
    best = np.full(seen.scores.shape, -np.inf)
    for c in np.unique(seen.option_concept[seen.option_concept >= 0]):
        within = np.where(seen.option_concept == c, seen.scores, -np.inf)
        rows, first = np.flatnonzero(np.isfinite(within.max(1))), within.argmax(1)
        best[rows, first[rows]] = within[rows, first[rows]]
    return replace(seen, scores=best)


def _answerer(
    name: str, label: str, fit: Seen, known: Labels, reading: Callable[[Seen], np.ndarray], within: Callable[[Seen], Seen] = lambda s: s
) -> Method:
    """``within``: what is left of the base model's scores within a concept."""
    alarm = np.isin(np.arange(len(known.concepts)), alarms(known))
    settings = [{"prior_factor": float(f)} for f in factors()]

    def answers(seen: Seen) -> Scores:
        return partial(answer_scores, reading(seen), within(seen), alarm)

    return Method(name=name, label=label, settings=settings, fit=answers(fit), answers=answers)


def answer_by_probe(fit: Seen, known: Labels) -> Method:
    """The probe as the answerer."""
    return _answerer("probe", "the probe answers", fit, known, attrgetter("reading"))


def answer_by_text(fit: Seen, known: Labels) -> Method:
    """The text alone as the answerer: it decides the concept, whatever the base model's scores are, which name the option within it."""
    return _answerer("text", "the text alone answers", fit, known, attrgetter("text"), best_of_each)
