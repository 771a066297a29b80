"""Operating points: the best setting of a method within a loss of standard accuracy.

The methods change option scores. A method is a list of settings with their scores. It is fitted on
fit alone, chosen on val (or, without val, on fit out of fold), and gets no labels of the items that
it answers. So the test split cannot influence a choice.

Shapes: M fit items, N items of any one split, O options, C concepts, D width, P settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gapclose.metrics.bootstrap import blocks
from gapclose.metrics.labels import Labels

Setting = Mapping[str, float]
Scores = Callable[[Sequence[Setting]], np.ndarray]
"""P settings -> option scores (P, N, O)"""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Option scores of one model."""

    scores: np.ndarray
    """(N, O) in nats, -inf beyond an item's options"""
    option_concept: np.ndarray
    """(N, O) concept that each option expresses, -1 beyond an item's options"""


@dataclass(frozen=True, kw_only=True)
class Seen(Scored):
    """Inputs of a method for one split, without right answers; the scores are the base model's."""

    residual: np.ndarray
    """(N, D) features of the probe"""
    reading: np.ndarray
    """(N, C) by the probe; on fit, out of fold"""
    text: np.ndarray
    """(N, C) reading by the text alone; on fit, out of fold"""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method of answering, with all its settings."""

    name: str
    label: str
    settings: Sequence[Setting]
    """in order of preference among equals"""
    fit: Scores
    """scores of the M fit items, each by a fit without its clip"""
    answers: Callable[[Seen], Scores]
    """scores of N items of another split, by a fit on all of fit"""


class Rates(NamedTuple):
    """Rates of the answers, one number per setting, (P,)."""

    balanced: np.ndarray
    """mean over the cells modality x concept of the accuracy on the option"""
    standard: np.ndarray
    """accuracy on the option of items whose right concept is no alarm"""
    rejection: np.ndarray
    """share of items with an alarm as right concept whose answer expresses any alarm"""


def alarms(labels: Labels) -> list[int]:
    """Return the indices of the alarm concepts.

    Raises:
        ValueError: when no concept or every concept is an alarm.
    """
    found = [labels.concepts.index(a) for a in labels.alarm]
    if not 0 < len(found) < len(labels.concepts):
        raise ValueError(
            f"the alarm concepts are {list(labels.alarm)} of {list(labels.concepts)}; a method that moves rejections against content "
            "needs some concepts of either kind (key `alarm` of set.json)"
        )
    return found


def rates(scores: Scores, settings: Sequence[Setting], labels: Labels) -> Rates:
    """Return the rates of answering with the highest score, at every setting; nan where no item
    counts."""
    count, options = labels.option_concept.shape
    chosen = np.concatenate([scores(settings[rows]).argmax(2) for rows in blocks(0, len(settings), count * options)])  # (P, N)
    right = chosen == labels.gold
    cell, names = labels.cells
    said = labels.option_concept[np.arange(count), chosen]  # (P, N)
    return Rates(
        np.mean([_share(right, cell == k) for k in range(len(names))], axis=0),
        _share(right, labels.standard),
        _share(np.isin(said, alarms(labels)), ~labels.standard),
    )


def _share(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return the mean of (P, N) bool over the items where ``where`` (N,) is true, (P,)."""
    return values[:, where].mean(1) if where.any() else np.full(len(values), np.nan)


def unchanged(seen: Scored) -> Scores:
    """Return the model's own scores at every setting."""
    return lambda settings: np.broadcast_to(seen.scores, (len(settings), *seen.scores.shape))


def choose(
    settings: Sequence[Setting], scores: Scores, base: Scores, labels: Labels, budgets: Sequence[float | None]
) -> list[Setting | None]:
    """Choose a setting for every budget by balanced accuracy on the option.

    Args:
        scores, base, labels: of the N items to choose on, by the method and by the base model.
        budgets: standard accuracy, 0..1, that may be lost against the base model; None: any.

    Returns:
        The best setting within each budget, the first of equals, which methods order so that it
            changes least. None if no setting within the budget is better on these items than the
            base model's answers (budget None always gives a setting).
    """
    found, before = rates(scores, settings, labels), rates(base, [{}], labels)
    chosen: list[Setting | None] = []
    for budget in budgets:
        within = before.standard[0] - found.standard <= (np.inf if budget is None else budget + 1e-9)
        balanced = np.where(within, found.balanced.round(9), -np.inf)  # equal up to rounding is equal
        best = int(balanced.argmax())  # of equals the first
        helps = budget is None or balanced[best] > before.balanced[0] + 1e-9
        chosen.append(settings[best] if helps else None)
    return chosen


def front(found: Rates) -> list[int]:
    """Return the Pareto-optimal settings by standard accuracy (falling) and rejection; one of
    equals."""
    kept, most = [], -np.inf
    for k in np.lexsort((-found.rejection, -found.standard)):
        if found.rejection[k] > most:
            kept.append(int(k))
            most = found.rejection[k]
    return kept
