"""Operating points of methods that change option scores: the setting that does best within a loss of standard accuracy.

A method is a list of settings with the scores that each gives. It is fitted on fit alone, chosen on val (or, out of fold, on fit where there
is no val), and takes no labels of the items that it answers: the test split cannot enter a choice.

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
    """What is known of a split without its right answers; the scores are the base model's."""

    residual: np.ndarray
    """(N, D) that the probe reads"""
    reading: np.ndarray
    """(N, C) by the probe; on fit, out of fold"""
    text: np.ndarray
    """(N, C) reading by the text alone; on fit, out of fold"""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way of answering, at every setting that it may be used with."""

    name: str
    label: str
    settings: Sequence[Setting]
    """of equals the first is preferred"""
    fit: Scores
    """scores of the M fit items; whatever is fitted was fitted without their clip"""
    answers: Callable[[Seen], Scores]
    """scores of N items of another split; whatever is fitted was fitted on all of fit"""


class Rates(NamedTuple):
    """How often answers are right, one number a setting, (P,)."""

    balanced: np.ndarray
    """mean over the cells modality x concept of the accuracy on the option"""
    standard: np.ndarray
    """accuracy on the option where no alarm is right"""
    rejection: np.ndarray
    """share of answers that express any alarm where one is right"""


def alarms(labels: Labels) -> list[int]:
    """Indices of the alarm concepts.

    Raises:
        ValueError: when there is none, or nothing else.
    """
    found = [labels.concepts.index(a) for a in labels.alarm]
    if not 0 < len(found) < len(labels.concepts):
        raise ValueError(
            f"the alarm concepts are {list(labels.alarm)} of {list(labels.concepts)}; a method that moves rejections against content "
            "needs some concepts of either kind (key `alarm` of set.json)"
        )
    return found


def rates(scores: Scores, settings: Sequence[Setting], labels: Labels) -> Rates:
    """Rates of the options with the highest scores, at every setting; nan where no item counts."""
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
    """Mean of (P, N) bool over the items where (N,) holds, (P,)."""
    return values[:, where].mean(1) if where.any() else np.full(len(values), np.nan)


def unchanged(seen: Scored) -> Scores:
    """The model's own scores, whatever the settings."""
    return lambda settings: np.broadcast_to(seen.scores, (len(settings), *seen.scores.shape))


def choose(
    settings: Sequence[Setting], scores: Scores, base: Scores, labels: Labels, budgets: Sequence[float | None]
) -> list[Setting | None]:
    """For every budget, the setting with the highest balanced accuracy on the option among those that keep standard accuracy.

    Args:
        scores, base, labels: of the N items to choose on, by the method and by the base model.
        budgets: standard accuracy, 0..1, that may be lost against the base model; None: any.

    Returns:
        One a budget, of equals the first, which methods make the one that changes least; None where it leaves no setting that does better on these items than the base model's own answers.
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
    """Settings that no other beats in standard accuracy and rejection at once, the highest standard accuracy first; one of equals."""
    kept, most = [], -np.inf
    for k in np.lexsort((-found.rejection, -found.standard)):
        if found.rejection[k] > most:
            kept.append(int(k))
            most = found.rejection[k]
    return kept
