"""A bias on the scores of rejections: the same for every item, so it moves the threshold and knows nothing of any item.

With one shift for all alarm concepts the answers move along the action's own ROC curve: its AUROC does not change, and what is gained is
what a better criterion gains.

Shapes: N items, O options, P settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product

import numpy as np

from gapclose.evaluation.baselines.operating_point import Method, Scored, Scores, Seen, Setting, alarms, choose, rates, unchanged
from gapclose.evaluation.measurement import SplitMeasurement
from gapclose.metrics.labels import Labels


def after_shift(now: SplitMeasurement, base: SplitMeasurement, budget: float) -> dict[str, float | None] | None:
    """What an adapted model would answer after the best shift of its rejections (:func:`gapclose.evaluation.baselines.shift.best_shift`).

    Chosen and judged on the same items, so for val alone.

    Returns:
        ``shift`` (nats), ``option_balanced`` and ``standard_accuracy``; those of the base model and a shift of None where no shift within
        the budget is better; None where no concept is an alarm.
    """
    labels = now.labels
    if not labels.alarm:
        return None
    mine, theirs = (Scored(scores=m.scores, option_concept=labels.option_concept) for m in (now, base))
    setting = best_shift(mine, theirs, labels, budget)
    scores = unchanged(theirs) if setting is None else shifts(mine, alarms(labels))[1](mine)
    found = rates(scores, [setting or {}], labels)
    return {
        "shift": None if setting is None else setting["shift"],
        "option_balanced": float(found.balanced[0]),
        "standard_accuracy": float(found.standard[0]),
    }


MOST = 961
"""combinations tried at most: 31 x 31 for two alarm concepts"""


def thresholds(margin: np.ndarray, most: int) -> np.ndarray:
    """Shifts that separate items in different ways, least first: midpoints between neighbouring margins, and one beyond each end.

    Args:
        margin: (N,) nats that a rejection lacks to be the answer, inf where there is none. most: thinned to that many, evenly by rank.
    """
    distinct = np.unique(margin[np.isfinite(margin)])
    if not len(distinct):
        return np.zeros(1)
    middles = np.concatenate([[distinct[0] - 1], (distinct[1:] + distinct[:-1]) / 2, [distinct[-1] + 1]])
    return middles[np.unique(np.linspace(0, len(middles) - 1, min(most, len(middles))).round().astype(int))]


def margins(seen: Scored, rejects: Sequence[int], concepts: Sequence[int]) -> np.ndarray:
    """Highest score of content minus highest score of the options that express one of ``concepts``, (N,); inf where there is none."""
    content = ~np.isin(seen.option_concept, rejects) & (seen.option_concept >= 0)
    lacking = np.where(np.isin(seen.option_concept, concepts), seen.scores, -np.inf).max(1)
    best = np.where(content, seen.scores, -np.inf).max(1)
    return np.where(np.isfinite(lacking) & np.isfinite(best), best - np.where(np.isfinite(lacking), lacking, 0), np.inf)


def shifted(seen: Scored, named: Mapping[str, Sequence[int]], settings: Sequence[Setting]) -> np.ndarray:
    """Scores (P, N, O) with each setting's nats added to the options of the concepts that their key stands for."""
    added = np.zeros((len(settings), *seen.scores.shape))
    for key, concepts in named.items():
        nats = np.array([setting[key] for setting in settings])
        added += nats[:, None, None] * np.isin(seen.option_concept, concepts)
    return seen.scores + added


def shift(fit: Seen, known: Labels, choice: Seen) -> Method:
    """One shift for all alarm concepts.

    Args:
        known: labels of the fit items, for its concepts alone; nothing is fitted here. choice: the items to choose on, whose thresholds
            are the settings.
    """
    rejects = alarms(known)
    return _method("shift", "bias shift of the rejections", fit, choice, rejects, {"shift": rejects})


def shift_each(fit: Seen, known: Labels, choice: Seen) -> Method:
    """One shift for each alarm concept: the common ones, and a grid over their thresholds that is coarser the more concepts there are."""
    rejects = alarms(known)
    return _method("shift_each", "bias shift of each rejection", fit, choice, rejects, {known.concepts[c]: [c] for c in rejects})


def _method(name: str, label: str, fit: Seen, choice: Seen, rejects: Sequence[int], named: Mapping[str, Sequence[int]]) -> Method:
    """No shift first, then all others by size."""
    common = thresholds(margins(choice, rejects, rejects), MOST)
    tried = {(0.0,) * len(named), *((float(nats),) * len(named) for nats in common)}
    if len(named) > 1:
        each = max(2, int(MOST ** (1 / len(named))))
        tried |= set(product(*(thresholds(margins(choice, rejects, concepts), each).tolist() for concepts in named.values())))
    rising = sorted(tried, key=lambda nats: (sum(map(abs, nats)), nats))
    settings = [dict(zip(named, nats, strict=True)) for nats in rising]

    def answers(seen: Seen) -> Scores:
        return partial(shifted, seen, named)

    return Method(name=name, label=label, settings=settings, fit=answers(fit), answers=answers)


def shifts(choice: Scored, rejects: Sequence[int]) -> tuple[list[Setting], Callable[[Scored], Scores]]:
    """What one shift for all alarm concepts can do to a model, base or adapted: the settings worth trying, and what scores they give.

    Args:
        choice: the items to choose on, whose thresholds are the settings; no shift comes first.
    """
    nats = thresholds(margins(choice, rejects, rejects), MOST)
    return [{"shift": 0.0}, *({"shift": float(n)} for n in sorted(nats, key=abs))], lambda seen: partial(shifted, seen, {"shift": rejects})


def best_shift(model: Scored, base: Scored, labels: Labels, budget: float | None) -> Setting | None:
    """The shift of an adapted model's rejections that is best on these items, within a loss of standard accuracy against the base model.

    Chosen on these very items, so they are those of val; :func:`shifts` applies it to others.

    Args:
        labels: of the items of both. budget: standard accuracy, 0..1, that may be lost; None: any.

    Returns:
        The setting; None where none within the budget is better than the base model, so that the base model is the better choice.
    """
    settings, scores_of = shifts(model, alarms(labels))
    return choose(settings, scores_of(model), unchanged(base), labels, [budget])[0]
