"""Measurement of a split from observations: action, reading, fresh and sentinel probe, retention.

Pure functions of stored observations and labels; no model is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from gapclose.data.answer_matching import AnswerMatcher, parse_all
from gapclose.data.item_set import ItemSet
from gapclose.evaluation.measurement_answers import AnswerLimit, WrittenAnswers, written_answers
from gapclose.metrics.bootstrap import ClipBootstrap
from gapclose.metrics.config import GapConfig
from gapclose.metrics.gap import detection, statistics
from gapclose.metrics.judgeable import ActionQuality, action_quality, option_mass
from gapclose.metrics.labels import Action, Labels
from gapclose.observe.store import Observations
from gapclose.probes.cross_validation import fresh_reading
from gapclose.probes.linear import FrozenProbe

Statistics = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class SplitMeasurement:
    """The statistics of one split under one model. Statistics are (R + 1,), the estimate first."""

    n_items: int
    n_clips: int
    overall: Statistics
    """over the gap items"""
    modality: dict[str, Statistics]
    transfer: Statistics | None
    """over the items of question types that are held out of training"""
    retention: np.ndarray | None
    """accuracy on the retention items"""
    labels: Labels
    """of the gap items"""
    scores: np.ndarray
    """(N, O) option scores of the gap items in nats"""
    right: np.ndarray
    """(N,) bool, whether the action expresses the right concept, for the gap items"""
    parse_rate: float
    """share of generated answers that parse leniently"""
    acting: dict[str, ActionQuality]
    """scope (``all`` or a modality) -> whether the model answers such questions"""
    residual: np.ndarray
    """(N, D) features of the frozen probe for all items of the split"""
    written: dict[str, WrittenAnswers] = field(default_factory=dict)
    """modality whose questions the model does not answer -> examples of its answers"""

    @property
    def judgeable(self) -> bool:
        """Whether the model answers the questions of any modality; otherwise no control changes a verdict."""
        return not self.modality or any(not self.acting[name].faults for name in self.modality)


def measure(
    items: ItemSet,
    observed: Observations,
    probe: FrozenProbe,
    sentinel: FrozenProbe,
    config: GapConfig,
    *,
    folds: int,
    seed: int,
    match: AnswerMatcher = AnswerMatcher(),  # noqa: B008 (frozen)
    limit: AnswerLimit | None = None,
) -> SplitMeasurement:
    """Measure the labelled items of one split.

    Args:
        items: gap, transfer and retention items of the split.
        observed: observations of all of them, with answers and the residuals of both probes'
            layers.
        folds: number of folds of the fresh probe's grouped cross-validation.
        match: matches generated answers to options, for the lenient figures.
        limit: length limit of the generated answers; None: cut-off answers are not counted.
    """
    # once, because each access reads the disk
    read = {layer: observed.residuals[layer] for layer in {*probe.layers, *sentinel.layers}}
    observed = replace(observed, residuals=read)
    gap = items.select(purpose="gap")
    labels, seen = Labels.of(gap), observed.take([i.id for i in gap])
    assert seen.answers is not None
    action = scored(labels, seen)
    parsed = {name: parse(seen.answers, gap.items) for name, parse in (("strict", parse_all), ("lenient", match))}
    scopes = {"all": np.ones(len(gap), dtype=bool), **{m: labels.modality == m for m in sorted(set(labels.modality))}}
    found = {}
    for scope, keep in scopes.items():
        part = gap if scope == "all" else _of_modality(gap, scope)
        found[scope] = _scope(part, observed, probe, config, seed)
        found[scope] |= _generated({name: of[keep] for name, of in parsed.items()}, labels.take(keep), action.scores[keep], config, seed)
    cut_off = limit.cut_off(seen.answers, parsed["lenient"]) if limit else np.zeros(len(gap), dtype=bool)
    acting = {
        scope: action_quality(
            found[scope], labels.take(keep), config, cut_off=int(cut_off[keep].sum()), limit=limit.tokens if limit else None
        )
        for scope, keep in scopes.items()
    }
    written = {
        scope: written_answers(gap, labels, seen.answers, parsed["lenient"], keep, seed=seed, cut_off=cut_off if limit else None)
        for scope, keep in scopes.items()
        if scope != "all" and acting[scope].faults
    }
    overall, clips = found.pop("all"), ClipBootstrap(labels.clip, config.replicates, seed)
    other = {
        "fresh_probe": fresh_reading(probe, probe.features(seen.residuals), labels.concept, labels.clip, folds, seed),
        "sentinel_probe": sentinel.predict_proba(sentinel.features(seen.residuals)),
    }
    for name, reading in other.items():
        overall[f"{name}.balanced"] = clips.balanced(reading.argmax(1) == labels.concept, labels)
        overall[f"{name}.auroc"] = detection(clips, labels, action, reading)["reading_auroc"]
    transfer, retain = items.select(purpose="transfer"), items.select(purpose="retain")
    return SplitMeasurement(
        n_items=len(gap),
        n_clips=clips.n,
        overall=overall,
        modality=found,
        transfer=_scope(transfer, observed, probe, config, seed) if len(transfer) else None,
        retention=_retention(retain, observed, config, seed) if len(retain) else None,
        labels=labels,
        scores=action.scores,
        right=action.concept(labels) == labels.concept,
        parse_rate=float(overall["generated.parse_lenient"][0]),
        acting=acting,
        written=written,
        residual=probe.features(observed.residuals).float().numpy(),
    )


def _of_modality(items: ItemSet, modality: str) -> ItemSet:
    return ItemSet(
        root=items.root, name=items.name, concepts=items.concepts, alarm=items.alarm,
        items=tuple(i for i in items if i.modality == modality),
    )  # fmt: skip


def _scope(items: ItemSet, observed: Observations, probe: FrozenProbe, config: GapConfig, seed: int) -> Statistics:
    labels, seen = Labels.of(items), observed.take([i.id for i in items])
    clips, action, reading = (
        ClipBootstrap(labels.clip, config.replicates, seed),
        scored(labels, seen),
        probe.predict_proba(probe.features(seen.residuals)),
    )
    mass = clips.mean(option_mass(action.scores), np.ones(len(items), dtype=bool))
    return statistics(clips, labels, action, reading) | {"action.option_mass": mass}


def _generated(parsed: Mapping[str, np.ndarray], labels: Labels, scores: np.ndarray, config: GapConfig, seed: int) -> Statistics:
    """Compute the accuracy of generated answers and the share that matches an option.

    Args:
        parsed: way of matching -> option index of every answer (N,), -1 for none.
    """
    clips, everything, found = ClipBootstrap(labels.clip, config.replicates, seed), np.ones(len(labels.clip), dtype=bool), {}
    for name, chosen in parsed.items():
        concept = Action(chosen=chosen, scores=scores).concept(labels)
        found[f"generated.balanced_{name}"] = clips.balanced(concept == labels.concept, labels)
        found[f"generated.parse_{name}"] = clips.mean(chosen >= 0, everything)
    return found


def scored(labels: Labels, seen: Observations) -> Action:
    """Return the action by option scores, cut to the widest option list of ``labels``."""
    scores = seen.scores[:, : labels.option_concept.shape[1]].double().numpy()
    return Action(chosen=scores.argmax(1), scores=scores)


def _retention(items: ItemSet, observed: Observations, config: GapConfig, seed: int) -> np.ndarray:
    labels = Labels.of(items)
    right = observed.take([i.id for i in items]).scores.argmax(1).numpy() == labels.gold
    return ClipBootstrap(labels.clip, config.replicates, seed).mean(right, np.ones(len(items), dtype=bool))
