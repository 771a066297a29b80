"""Bias shift: one constant, for all items, on the scores of rejections.

It moves the threshold without any knowledge of an item. With one shift for all alarm concepts the
answers move along the action's own ROC curve. AUROC does not change; any gain is that of a better
criterion.

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
    """Score an adapted model's answers after the best shift of its rejections.

    The shift is chosen and judged on the same items, so use this for val only.

    Returns:
        ``shift`` (nats), ``option_balanced`` and ``standard_accuracy``; with a shift of None and
            the base model's figures if no shift within the budget is better; None without alarm
            concepts.
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
"""largest number of combinations, 31 x 31 for two alarm concepts"""


def thresholds(margin: np.ndarray, most: int) -> np.ndarray:
    """Return shifts that separate items differently, rising.

    These are the midpoints of neighbouring margins, and one shift beyond each end.

    Args:
        margin: (N,) nats by which a rejection is below the best content option, inf without one.
            most: keep this many at most, evenly by rank.
    """
    distinct = np.unique(margin[np.isfinite(margin)])
    if not len(distinct):
        return np.zeros(1)
    middles = np.concatenate([[distinct[0] - 1], (distinct[1:] + distinct[:-1]) / 2, [distinct[-1] + 1]])
    return middles[np.unique(np.linspace(0, len(middles) - 1, min(most, len(middles))).round().astype(int))]


def margins(seen: Scored, rejects: Sequence[int], concepts: Sequence[int]) -> np.ndarray:
    """Return the highest content score minus the highest score of ``concepts``, (N,); inf if
    either is missing."""
    content = ~np.isin(seen.option_concept, rejects) & (seen.option_concept >= 0)
    lacking = np.where(np.isin(seen.option_concept, concepts), seen.scores, -np.inf).max(1)
    best = np.where(content, seen.scores, -np.inf).max(1)
    return np.where(np.isfinite(lacking) & np.isfinite(best), best - np.where(np.isfinite(lacking), lacking, 0), np.inf)


def shifted(seen: Scored, named: Mapping[str, Sequence[int]], settings: Sequence[Setting]) -> np.ndarray:
    """Return scores (P, N, O) with each setting's nats added to the options of its key's
    concepts."""
    added = np.zeros((len(settings), *seen.scores.shape))
    for key, concepts in named.items():
        nats = np.array([setting[key] for setting in settings])
        added += nats[:, None, None] * np.isin(seen.option_concept, concepts)
    return seen.scores + added


def shift(fit: Seen, known: Labels, choice: Seen) -> Method:
    """Build the method with one shift for all alarm concepts.

    Args:
        known: labels of the fit items, of which only the concepts are used; nothing is fitted.
            choice: the items to choose on, whose thresholds are the settings.
    """
    rejects = alarms(known)
    return _method("shift", "bias shift of the rejections", fit, choice, rejects, {"shift": rejects})


def shift_each(fit: Seen, known: Labels, choice: Seen) -> Method:
    """Build the method with one shift per alarm concept.

    Settings are the common shifts, and a grid over the concepts' thresholds, coarser for more
    concepts.
    """
    rejects = alarms(known)
    return _method("shift_each", "bias shift of each rejection", fit, choice, rejects, {known.concepts[c]: [c] for c in rejects})


def _method(name: str, label: str, fit: Seen, choice: Seen, rejects: Sequence[int], named: Mapping[str, Sequence[int]]) -> Method:
    """Order settings by size, no shift first."""
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
    """Return the settings of one common shift, and a function from a model to its shifted scores.

    Args:
        choice: the items to choose on, whose thresholds are the settings; no shift comes first.
    """
    nats = thresholds(margins(choice, rejects, rejects), MOST)
    return [{"shift": 0.0}, *({"shift": float(n)} for n in sorted(nats, key=abs))], lambda seen: partial(shifted, seen, {"shift": rejects})


def best_shift(model: Scored, base: Scored, labels: Labels, budget: float | None) -> Setting | None:
    """Return the best shift of an adapted model's rejections within a budget.

    The budget limits the standard accuracy lost against the base model. The shift is chosen on
    these items, so use val; :func:`shifts` applies it to others.

    Args:
        labels: of the items of both models. budget: standard accuracy, 0..1, that may be lost;
            None: any.

    Returns:
        The setting; None if no setting within the budget is better than the base model, which is
            then preferred.
    """
    settings, scores_of = shifts(model, alarms(labels))
    return choose(settings, scores_of(model), unchanged(base), labels, [budget])[0]
