"""Interchange interventions: residuals replaced by the twin's (Geiger et al. 2021, arXiv
2106.02997)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gapclose.core.results import Result
from gapclose.data.items import Item
from gapclose.evaluation.controls.logit_lens import margins
from gapclose.metrics.bootstrap import ClipBootstrap, Interval
from gapclose.metrics.labels import Action, Labels

# -- interchange --------------------------------------------------------------------------------------------------------------------


def twins(items: Sequence[Item]) -> dict[str, str]:
    """Return item id -> id of its twin: their ``twin`` tags name each other, they share the
    clip, and their right concepts differ."""
    by_id = {i.id: i for i in items}
    found = {}
    for item in items:
        other = by_id.get(item.tags.get("twin", ""))
        if other is not None and other.tags.get("twin") == item.id and other.clip == item.clip and other.concept != item.concept:
            found[item.id] = other.id
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Direction(Result):
    """Shares of the answers that express the donor's right concept, 0..1."""

    follows: Interval
    """with the patch"""
    stays_without_patch: Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Interchange(Result):
    """What :func:`interchange` found; what asks for alarms is None without them, and left out of the JSON."""

    layer: int
    """the highest that was patched"""
    layers: tuple[int, ...]
    n_pairs: int
    follows: Interval
    stays_without_patch: Interval
    by_modality: Mapping[str, Interval]
    """``follows``"""
    to_alarm: Direction | None = None
    to_standard: Direction | None = None
    shift: Interval | None = None
    """nats"""
    shift_whole: Interval | None = None
    """nats"""
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {name: value for name, value in Result.to_dict(self).items() if value is not None}


def interchange(
    labels: Labels, donor: np.ndarray, before: np.ndarray, after: np.ndarray, layers: Sequence[int], replicates: int, seed: int
) -> Interchange:
    """Score the answers after each item's residual is replaced by its twin's.

    ``follows`` is the share of patched answers that express the right concept of the *donor*,
    ``stays_without_patch`` the same share of unpatched answers. Each pair counts in both
    directions, so a model that always gives one concept has 0.5 in both. With alarm concepts,
    ``to_alarm`` and ``to_standard`` are the two directions separately. ``shift`` is the change of
    the alarm log-odds towards the donor's by the patch, in nats; ``shift_whole`` is the distance to
    the donor's own. They show changes too small to change an answer.

    Args:
        labels: of the N recipients.
        donor: (N,) index of the donor among them.
        before, after: (N, O) option scores without and with the patch.
        layers: the patched layers, rising.
    """
    clips, everything = ClipBootstrap(labels.clip, replicates, seed), np.ones(len(donor), dtype=bool)
    wanted = labels.concept[donor]
    unpatched, patched = (Action(chosen=s.argmax(1), scores=s).concept(labels) == wanted for s in (before, after))

    def share(values: np.ndarray, where: np.ndarray) -> Interval:
        return Interval.of(clips.mean(values, where))

    def direction(where: np.ndarray) -> Direction:
        return Direction(follows=share(patched, where), stays_without_patch=share(unpatched, where))

    follows, stays = share(patched, everything), share(unpatched, everything)
    towards_alarms: dict[str, Any] = {}
    if labels.alarm:
        alarmed = ~labels.standard[donor]
        concepts = [labels.concepts.index(a) for a in labels.alarm]
        own, moved = margins(before, labels, concepts), margins(after, labels, concepts)
        towards = np.where(alarmed, 1, -1)
        towards_alarms = {"to_alarm": direction(alarmed), "to_standard": direction(~alarmed)}
        towards_alarms["shift"] = share(towards * (moved - own), everything)
        towards_alarms["shift_whole"] = share(towards * (own[donor] - own), everything)
    what = "the residual after layer" if len(layers) == 1 else "the residuals after layers"
    sentence = (
        f"With {what} {', '.join(map(str, layers))} taken from the twin, {follows.value:.1%} of the answers express what is right for the twin; "
        f"without it {stays.value:.1%} do."
    )
    return Interchange(
        layer=layers[-1],
        layers=tuple(layers),
        n_pairs=len(donor) // 2,
        follows=follows,
        stays_without_patch=stays,
        by_modality={m: share(patched, labels.modality == m) for m in np.unique(labels.modality).tolist()},
        sentence=sentence,
        **towards_alarms,
    )
