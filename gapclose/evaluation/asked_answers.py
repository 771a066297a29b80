"""Judge the answers of a model that can only be asked: its action, without a reading and without a gap.

Shapes: N items, O options, R replicates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gapclose.core.results import Result
from gapclose.data.answer_matching import AnswerMatcher
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item
from gapclose.metrics.bootstrap import ClipBootstrap
from gapclose.metrics.gap import intervals, statistics
from gapclose.metrics.labels import Action, Labels

AMBIGUOUS = 0.01
"""probability that tokens which begin several options may have, for the scores to count"""


@dataclass(frozen=True, kw_only=True, slots=True)
class AskedAnswer:
    """What a provider returned for one question."""

    text: str
    first: Mapping[str, float] | None
    """log-probabilities in nats of the most probable first tokens; None where the provider gives
    none"""


@dataclass(frozen=True, kw_only=True, slots=True)
class AskedFigures(Result):
    """The action of a model that was asked; intervals resample clips."""

    items: int
    clips: int
    by: str
    """``scores`` of the options, from log-probabilities, or ``text`` of the answer"""
    action: Mapping[str, Any]
    """figures as in ``measurement.json``; ``auroc`` is null without scores"""
    parse_rate: dict[str, float | None]
    """share of the answers that match an option"""
    reordered: int
    """questions that were asked a second time, with their options in the reverse order"""
    compared: int
    """those of them where both answers name an option"""
    flips: dict[str, float | None]
    """share of the compared ones where the other order changed the option; of a letter, its meaning counts"""


def option_scores(item: Item, first: Mapping[str, float]) -> list[float] | None:
    """Scores of the options (O,) in nats, from the most probable first tokens of the answer.

    An option that begins with none of them scores as much as an unlisted token can have at most.

    Returns:
        None where the tokens cannot tell the options apart.
    """
    texts, scores, shared = [o.text.strip() for o in item.options], [-math.inf] * len(item.options), 0.0
    for token, logp in first.items():
        if fits := [k for k, text in enumerate(texts) if _begins(text, token.strip())]:
            if len(fits) > 1:
                shared += math.exp(logp)
            else:
                scores[fits[0]] = float(np.logaddexp(scores[fits[0]], logp))
    if shared > AMBIGUOUS or not any(map(math.isfinite, scores)):
        return None
    rest = 1 - sum(map(math.exp, first.values()))
    most = min(min(first.values()), math.log(max(rest, 1e-9)))
    return [s if math.isfinite(s) else min(most, max(scores) - 1e-6) for s in scores]


def _begins(text: str, token: str) -> bool:
    return bool(token) and (text.startswith(token) or (len(token) > 1 and text.casefold().startswith(token.casefold())))


def judge(
    items: ItemSet, answers: Sequence[AskedAnswer], other: Mapping[str, tuple[Item, AskedAnswer]], *, replicates: int, seed: int
) -> AskedFigures:
    """Judge answers.

    Args:
        items: the questions that were answered, all labelled.
        answers: one per item.
        other: id -> the item with its options in another order, and the answer to that.
        replicates, seed: of the bootstrap.
    """
    labels = Labels.of(items)
    clips, everything = ClipBootstrap(labels.clip, replicates, seed), np.ones(len(items), dtype=bool)
    asked = [*zip(items, answers, strict=True), *other.values()]
    found = [None if a.first is None else option_scores(item, a.first) for item, a in asked]
    scored = all(s is not None for s in found)
    match = AnswerMatcher()
    named = match([a.text for _, a in asked], [item for item, _ in asked])
    chosen = np.array([int(np.argmax(s)) for s in found if s is not None]) if scored else named
    scores = np.full(labels.option_concept.shape, -np.inf)
    for n, item in enumerate(items):
        of = found[n] if scored else [float(k == chosen[n]) for k in range(len(item.options))]
        assert of is not None
        scores[n, : len(of)] = of
    nothing = np.full((len(items), len(labels.concepts)), 1 / len(labels.concepts))  # no reading
    action = intervals(
        {
            name.removeprefix("action."): values
            for name, values in statistics(clips, labels, Action(chosen=chosen[: len(items)], scores=scores), nothing).items()
            if name.startswith("action.") and (scored or name != "action.auroc")
        }
    )
    texts = [item.options[k].words if k >= 0 else None for (item, _), k in zip(asked, chosen.tolist(), strict=True)]
    second = dict(zip(other, texts[len(items) :], strict=True))
    twice = np.array([second.get(i.id) is not None and text is not None for i, text in zip(items, texts, strict=False)])
    flipped = np.array([second.get(i.id) != text for i, text in zip(items, texts, strict=False)])
    return AskedFigures(
        items=len(items),
        clips=clips.n,
        by="scores" if scored else "text",
        action={"auroc": None, **action},
        parse_rate=intervals({"it": clips.mean(named[: len(items)] >= 0, everything)})["it"],
        reordered=len(second),
        compared=int(twice.sum()),
        flips=intervals({"it": clips.mean(flipped, twice)})["it"],
    )
