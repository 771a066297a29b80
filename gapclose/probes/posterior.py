"""Posteriors from a reading: restriction, twins, operating point, sharpening and Jeffrey's rule.

The operating point is one factor on the prior of the alarm concepts, chosen on labelled items
within a budget of false alarms. The budget is a rate, and these items are often few: one false
alarm among 25 is 4 %, but does not show a rate above 3 %. Two kinds of factors therefore keep to a
budget: those whose counted false alarms are within it, and those whose false alarms are not shown
to exceed it. The first kind is preferred unless it costs more than :data:`GIVEN_UP` of mean recall:
a few items must not silence a reading.

Shapes: N items, C concepts, O options, F factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from scipy.special import softmax
from scipy.stats import beta

LEVEL = 0.95
"""confidence of the one-sided bound that shows false alarms to exceed a budget"""
GIVEN_UP = 0.05
"""mean recall, 0..1, that a factor within the budget as counted may cost against one that is not
shown to exceed it"""
STANDING = {
    "none": "there is no budget",
    "kept": "the false alarms counted are within the budget",
    "not exceeded": "more false alarms are counted than the budget allows, so few that they do not show a rate beyond it",
    "exceeded": "no factor keeps to the budget, so the reading has its own threshold",
    "unknown": "no item without an alarm is there to count false alarms on, so the reading has its own threshold",
}
"""how a factor relates to the budget"""


def factors() -> np.ndarray:
    """Prior factors of the alarm concepts to try (F,), from 1e-4 to 1e4.

    1 comes first, the others follow by their distance from it in the logarithm. Of two equally
    distant factors the smaller comes first, since it alarms less.
    """
    steps = np.arange(-200, 201)
    return 10.0 ** (steps[np.argsort(np.abs(steps), kind="stable")] / 50)


def shift_prior(reading: np.ndarray, alarm: np.ndarray, factor: float) -> np.ndarray:
    """r'(c) proportional to r(c) w_c, (N, C); w is ``factor`` on alarm concepts (C,) bool, else 1."""
    shifted = reading * np.where(alarm, factor, 1.0)
    return shifted / shifted.sum(1, keepdims=True)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A prior factor, and the false alarms of the reading with it on the items that chose it."""

    factor: float = 1.0
    """on the prior of the alarm concepts"""
    standing: str = "none"
    """a key of :data:`STANDING`"""
    budget: float | None = None
    false_alarms: float | None = None
    """share of the standard items that are read as an alarm"""
    at_least: float | None = None
    """one-sided 95 % lower bound of that rate"""
    standard_items: int = 0
    standard_clips: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON, the factor under ``prior_factor``."""
        found = asdict(self)
        return {"prior_factor": found.pop("factor"), **found}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Point:
        """From what holds its :meth:`to_dict` and perhaps more."""
        kept = {f.name: facts[f.name] for f in fields(cls) if f.name != "factor"}
        return cls(factor=facts["prior_factor"], **kept)

    def words(self) -> str:
        """Return the warning about the budget; empty where it is kept or there is none."""
        if self.standing in ("none", "kept"):
            return ""
        counted = ""
        if self.false_alarms is not None and self.at_least is not None and self.budget is not None:
            counted = (
                f" (false alarms on {100 * self.false_alarms:.1f} % of {self.standard_items} standard items of {self.standard_clips} clips of val, "
                f"at least {100 * self.at_least:.1f} %; targets.false_alarm_budget {100 * self.budget:g} %)"
            )
        return f"operating point: {STANDING[self.standing]}{counted}"


def at_least(false_alarms: np.ndarray, items: int, clips: int) -> np.ndarray:
    """One-sided 95 % lower bounds (Clopper & Pearson 1934) of rates counted on ``items``, (F,).

    All items of one clip may fail together, so a rate counts as if every one of the ``clips`` were
    one item. Where items fail independently, the bound is lower than necessary and less is claimed.
    """
    n = min(items, clips)
    count = false_alarms * n
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, beta.ppf(1 - LEVEL, count, n - count + 1), 0.0)


def operating_point(reading: np.ndarray, concept: np.ndarray, alarm: np.ndarray, budget: float, clip: np.ndarray | None = None) -> Point:
    """Choose the most accurate prior factor whose false alarms keep to ``budget``.

    The most accurate factor (mean recall over concepts) is taken among those within the budget as
    counted. If its recall is more than :data:`GIVEN_UP` below the best among those not shown to
    exceed the budget, the latter is taken. Of equals the factor nearest to 1 is taken, so a choice
    that the items do not support changes nothing. The factor is 1 where every factor is shown to
    exceed the budget, or there is no standard item.

    With many items the two kinds coincide, and this is the most accurate factor within the budget.

    Args:
        reading: (N, C) readings of labelled items that the probe was not fitted on.
        concept: (N,) their concepts.
        alarm: (C,) bool.
        budget: share of standard items whose most probable concept may be an alarm.
        clip: (N,) group of every item; None: items are independent.
    """
    standard = ~alarm[concept]
    items = int(standard.sum())
    clips = items if clip is None else len(np.unique(clip[standard]))
    counted: dict[str, Any] = {"budget": budget, "standard_items": items, "standard_clips": clips}
    if not items:
        return Point(standing="unknown", **counted)
    tried, there = factors(), np.unique(concept)
    said = np.stack([shift_prior(reading, alarm, factor).argmax(1) for factor in tried])  # (F, N)
    rate = alarm[said][:, standard].mean(1)
    recall = np.mean([(said[:, concept == c] == c).mean(1) for c in there], axis=0).round(9)  # equal up to rounding is equal
    bound = at_least(rate, items, clips)
    within, possible = rate <= budget + 1e-9, bound <= budget + 1e-9

    def best(among: np.ndarray) -> int:
        return int(np.where(among, recall, -1.0).argmax())  # the first of equals, and 1 comes first

    place, standing = 0, "exceeded"
    if possible.any():
        place = best(possible)
        if within.any() and recall[best(within)] >= recall[place] - GIVEN_UP:
            place = best(within)
        standing = "kept" if within[place] else "not exceeded"
    return Point(factor=float(tried[place]), standing=standing, false_alarms=float(rate[place]), at_least=float(bound[place]), **counted)


NOTHING = 1e-12
"""total probability, 0..1, of an item's expressible concepts below which the reading does not
inform about them"""


def expressible(option_concept: np.ndarray, concepts: int) -> np.ndarray:
    """(N, C) bool: the concepts that the options (N, O) of an item express."""
    return (option_concept[:, :, None] == np.arange(concepts)).any(1)


def restrict(reading: np.ndarray, can: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Restrict a reading to the concepts that an item can express, and renormalise it.

    Args:
        reading, can: (N, C), the latter :func:`expressible`.

    Returns:
        The reading (N, C), and (N,) bool where these concepts have less than :data:`NOTHING`
        together; there the reading is uniform over them.
    """
    kept = np.where(can, reading, 0.0)
    total = kept.sum(1, keepdims=True)
    silent = total[:, 0] < NOTHING
    even = can / can.sum(1, keepdims=True)
    return np.where(silent[:, None], even, kept / np.where(silent[:, None], 1.0, total)), silent


def differ(reading: np.ndarray, partner: np.ndarray) -> np.ndarray:
    """Condition each reading on the right concepts of twins being different, (N, C).

    r'(c) is proportional to r(c) (1 - s(c)), where s is the reading of the twin. This is Bayes' rule
    for two readings that are independent apart from that condition. Of two concepts, the log odds
    become those of the item minus those of its twin, so what both readings share cancels.

    Args:
        reading: (N, C).
        partner: (N,) row of the twin; -1 without one, where the reading stays as it is. It also
            stays where both are certain of one concept.
    """
    twin = np.where(partner >= 0, partner, np.arange(len(reading)))
    together = reading * (1 - reading[twin])
    total = together.sum(1, keepdims=True)
    kept = (partner < 0)[:, None] | (total < NOTHING)
    return np.where(kept, reading, together / np.where(kept, 1.0, total))


def sharpen(reading: np.ndarray, exponent: float) -> np.ndarray:
    """r(c)^exponent, renormalised, (N, C).

    An infinite exponent puts all probability on the most probable concept, equally among ties.
    """
    if np.isinf(exponent):
        top = (reading == reading.max(1, keepdims=True)).astype(float)
        return top / top.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        log = exponent * np.log(reading)
    return softmax(log, axis=1)


def jeffrey(reading: np.ndarray, scores: np.ndarray, option_concept: np.ndarray) -> np.ndarray:
    """Apply Jeffrey's rule: t(o|x) = r(c(o)|x) pi0(o|x) / q0(c(o)|x).

    t is the closest distribution in KL to the base's whose concept marginal is the reading. Source:
    Jeffrey (1965), probability kinematics; the KL property is Csiszar (1967). It is computed as
    r(c) times the softmax of the scores *within* the concept, so a concept that the base never
    answers causes no division by zero. If the base gives all options of a concept a probability of
    zero (-inf), they share equally. Concepts that no option of an item expresses give their share
    to the others in proportion.

    Args:
        reading: (N, C).
        scores: (N, O) of the base model, -inf beyond an item's options.
        option_concept: (N, O), -1 beyond an item's options.

    Returns:
        (N, O), rows sum to one.

    Raises:
        ValueError: when a reading lies entirely on concepts that none of the item's options
            expresses (apply :func:`restrict` first), a reading is not finite, or a score is nan or
            infinitely high.
    """
    broken = ~np.isfinite(reading).all(1) | (np.isnan(scores) | np.isposinf(scores)).any(1)
    if broken.any():
        raise ValueError(
            f"{int(broken.sum())} items have a reading or option score that is not a number, first at row {np.flatnonzero(broken)[0]}; "
            "observe them again in a wider dtype (model.dtype)"
        )
    target = np.zeros_like(scores, dtype=np.float64)
    for c in range(reading.shape[1]):
        member = option_concept == c
        within = np.where(member, scores, -np.inf)
        never = member.any(1) & np.isneginf(within).all(1)
        within[never] = np.where(member[never], 0.0, -np.inf)
        some = member.any(1)
        if some.any():
            target[some] += reading[some, c, None] * softmax(within[some], axis=1)
    total = target.sum(1, keepdims=True)
    if (total < NOTHING).any():
        rows = np.flatnonzero(total[:, 0] < NOTHING)
        raise ValueError(
            f"{len(rows)} items have no option for the concept that is read, first at row {rows[0]}; give every concept an option"
        )
    return target / total
