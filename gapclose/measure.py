"""From observations to one measurement: action, reading, fresh and sentinel probe, retention, and what changed since the base.

Pure functions of stored observations and labels; no model is touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gapclose.answers import Matching, parse_all
from gapclose.baselines.operating import Scored, alarms, rates, unchanged
from gapclose.baselines.shift import best_shift, shifts
from gapclose.examine.features import Chosen, majority, text_only
from gapclose.gap import Action, GapConfig, Labels, closure, detection, intervals, shown, statistics
from gapclose.items import ItemSet
from gapclose.judgeable import Acting, acting, option_mass
from gapclose.observations import Observations
from gapclose.probes import FrozenProbe, fresh_reading
from gapclose.resample import Clips, Interval
from gapclose.significance import balance, holm, mcnemar, sign_flip
from gapclose.states import Evidence, fell, state_of

Statistics = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The statistics of one split under one model; every array is (R + 1,), the estimate first."""

    n_items: int
    n_clips: int
    overall: Statistics
    """over the gap items"""
    modality: dict[str, Statistics]
    transfer: Statistics | None
    """over the items of question types kept out of training"""
    retention: np.ndarray | None
    """accuracy on the items that must not change"""
    labels: Labels
    """of the gap items"""
    scores: np.ndarray
    """(N, O) option scores of the gap items in nats"""
    right: np.ndarray
    """(N,) bool, whether the action on a gap item expresses the right concept"""
    parse_rate: float
    """share of generated answers that parse leniently"""
    acting: dict[str, Acting]
    """whether the model answers such questions: ``all`` and every modality"""
    residual: np.ndarray
    """(N, D) what the frozen probe sees of all items of the split"""


def measure(
    items: ItemSet,
    observed: Observations,
    probe: FrozenProbe,
    sentinel: FrozenProbe,
    config: GapConfig,
    *,
    folds: int,
    seed: int,
    match: Matching = Matching(),  # noqa: B008 (frozen)
) -> Measured:
    """Measure the labelled items of one split.

    Args:
        items: gap, transfer and retain items of the split.
        observed: the observations of all of them, with answers and the residuals of both probes' layers.
        folds: of the fresh probe's grouped cross-validation.
        match: generated answers to options, for the lenient figures.
    """
    read = {layer: observed.residuals[layer] for layer in {*probe.layers, *sentinel.layers}}  # once: each is a pass over the disk
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
    overall, clips = found.pop("all"), Clips(labels.clip, config.replicates, seed)
    other = {
        "fresh_probe": fresh_reading(probe, probe.see(seen.residuals), labels.concept, labels.clip, folds, seed),
        "sentinel_probe": sentinel.read(sentinel.see(seen.residuals)),
    }
    for name, reading in other.items():
        overall[f"{name}.balanced"] = clips.balanced(reading.argmax(1) == labels.concept, labels)
        overall[f"{name}.auroc"] = detection(clips, labels, action, reading)["reading_auroc"]
    transfer, retain = items.select(purpose="transfer"), items.select(purpose="retain")
    return Measured(
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
        acting={scope: acting(overall if scope == "all" else found[scope], labels.take(keep), config) for scope, keep in scopes.items()},
        residual=probe.see(observed.residuals).float().numpy(),
    )


def _of_modality(items: ItemSet, modality: str) -> ItemSet:
    return ItemSet(
        root=items.root, name=items.name, concepts=items.concepts, alarm=items.alarm,
        items=tuple(i for i in items if i.modality == modality),
    )  # fmt: skip


def _scope(items: ItemSet, observed: Observations, probe: FrozenProbe, config: GapConfig, seed: int) -> Statistics:
    labels, seen = Labels.of(items), observed.take([i.id for i in items])
    clips, action, reading = Clips(labels.clip, config.replicates, seed), scored(labels, seen), probe.read(probe.see(seen.residuals))
    mass = clips.mean(option_mass(action.scores), np.ones(len(items), dtype=bool))
    return statistics(clips, labels, action, reading) | {"action.option_mass": mass}


def _generated(parsed: Mapping[str, np.ndarray], labels: Labels, scores: np.ndarray, config: GapConfig, seed: int) -> Statistics:
    """Accuracy of the generated answers, and the share that matches an option, for every way of matching (N,) option indices."""
    clips, everything, found = Clips(labels.clip, config.replicates, seed), np.ones(len(labels.clip), dtype=bool), {}
    for name, chosen in parsed.items():
        concept = Action(chosen=chosen, scores=scores).concept(labels)
        found[f"generated.balanced_{name}"] = clips.balanced(concept == labels.concept, labels)
        found[f"generated.parse_{name}"] = clips.mean(chosen >= 0, everything)
    return found


def scored(labels: Labels, seen: Observations) -> Action:
    """The action by option scores; columns that only other items' longer option lists fill are cut off."""
    scores = seen.scores[:, : labels.option_concept.shape[1]].double().numpy()
    return Action(chosen=scores.argmax(1), scores=scores)


def _retention(items: ItemSet, observed: Observations, config: GapConfig, seed: int) -> np.ndarray:
    labels = Labels.of(items)
    right = observed.take([i.id for i in items]).scores.argmax(1).numpy() == labels.gold
    return Clips(labels.clip, config.replicates, seed).mean(right, np.ones(len(items), dtype=bool))


def read_text(fit: ItemSet, measured_items: ItemSet, *, folds: int, seed: int) -> Chosen:
    """What the text alone tells of the measured gap items, after the labelled ones."""
    labelled, gap = fit.select(purpose="gap"), measured_items.select(purpose="gap")
    known, within = Labels.of(labelled), (labelled.modalities, gap.modalities)
    known_texts, texts = ([i.text for i in part] for part in (labelled, gap))
    return text_only(known_texts, known.concept, known.clip, texts, within=within, folds=folds, seed=seed)


def text_control(
    fit: ItemSet, measured_items: ItemSet, measured: Measured, config: GapConfig, *, reading: np.ndarray, seed: int
) -> dict[str, Any]:
    """What the questions alone give away, and by how much the reading beats it, overall and per modality.

    What may be claimed from it is another question: :mod:`gapclose.verdict`.

    Args:
        reading: (N, C) of the measured gap items by their text alone.
    """
    gap, known = measured_items.select(purpose="gap"), Labels.of(fit.select(purpose="gap"))
    guess = majority(known.concept, len(gap), len(gap.concepts))
    result: dict[str, Any] = {"text_only": {}, "majority": {}, "reading_minus_text": {}}
    labels = Labels.of(gap)
    for scope in ("all", *sorted(set(labels.modality))):
        keep = np.ones(len(gap), dtype=bool) if scope == "all" else labels.modality == scope
        part = labels.take(keep)
        clips = Clips(part.clip, config.replicates, seed)
        text = clips.balanced(reading[keep].argmax(1) == part.concept, part)
        found = measured.overall if scope == "all" else measured.modality[scope]
        difference = Interval.of(found["reading.balanced"] - text)
        result["text_only"][scope] = Interval.of(text).as_dict()
        result["majority"][scope] = Interval.of(clips.balanced(guess[keep].argmax(1) == part.concept, part)).as_dict()
        result["reading_minus_text"][scope] = difference.as_dict()
    return result


def make_record(stage: str, epoch: int, now: Measured, base: Measured | None, config: GapConfig, seed: int) -> dict[str, Any]:
    """One line of ``gap.jsonl``: every figure with its interval, what changed since ``base`` on the same clips, and the state."""
    record: dict[str, Any] = {"stage": stage, "epoch": epoch, "seed": seed, "n_items": now.n_items, "n_clips": now.n_clips}
    record |= intervals(now.overall)
    record["modality"] = {name: intervals(stats) for name, stats in now.modality.items()}
    if now.transfer is not None:
        record["transfer"] = intervals(now.transfer)
    if now.retention is not None:
        record["retention"] = Interval.of(now.retention).as_dict()
    if base is None:
        return record | {"acting": {scope: of.as_dict() for scope, of in now.acting.items()}, "state": _base_state(now)}
    changed = closure(base.overall, now.overall)
    record["change"] = intervals(changed)
    record["change"]["by_modality"] = {m: intervals(closure(base.modality[m], now.modality[m])) for m in now.modality}
    for name in ("fresh", "sentinel"):
        fall = base.overall[f"{name}_probe.balanced"] - now.overall[f"{name}_probe.balanced"]
        record["change"][f"{name}_drop"] = Interval.of(fall).as_dict()
    record["change"]["significance"] = significance(base, now, config, seed)
    if now.transfer is not None and base.transfer is not None:
        record["change"]["transfer"] = intervals(closure(base.transfer, now.transfer))
    if now.retention is not None and base.retention is not None:
        record["change"]["retention_drop"] = Interval.of(base.retention - now.retention).as_dict()
    record["frozen_probe_shift"] = float(np.abs(now.residual - base.residual).max())
    record["state"] = state_of(_evidence(changed, now, base, config), config)
    return record


def _base_state(base: Measured) -> str:
    """Whether there is a gap to close, in one word of :data:`gapclose.states.STATES`."""
    if base.modality and all(base.acting[m].faults for m in base.modality):
        return "not judgeable"
    return "open" if shown(base.overall["gap.balanced"]) else "no gap"


def significance(base: Measured, now: Measured, config: GapConfig, seed: int) -> dict[str, dict[str, float]]:
    """Is the change of the action more than chance, per modality: p by sign flips of clips, and Holm-corrected over the modalities.

    Beside them exact McNemar, which takes items for independent and so claims too much where a clip has several.
    """
    found, gain = {}, now.right.astype(float) - base.right
    for name in now.modality:
        keep = now.labels.modality == name
        part = now.labels.take(keep)
        p = sign_flip(gain[keep] * balance(part.cells[0]), part.clip, replicates=config.replicates, seed=seed)
        found[name] = {"p": p, "mcnemar": mcnemar(now.right[keep], base.right[keep])}
    corrected = holm({name: of["p"] for name, of in found.items()})
    return {name: {**of, "p_holm": corrected[name]} for name, of in found.items()}


def _evidence(changed: Mapping[str, np.ndarray], now: Measured, base: Measured, config: GapConfig) -> Evidence:
    def dropped(name: str) -> bool:
        return fell(now.overall[f"{name}.balanced"], base.overall[f"{name}.balanced"], config.reading_tolerance)

    return Evidence(
        closure=Interval.of(changed["closure"]).as_dict(),
        standard_drop=Interval.of(changed["standard_drop"]).as_dict(),
        frozen_fell=dropped("reading"),
        fresh_fell=dropped("fresh_probe"),
        parse_rate=now.parse_rate,
        base_parse_rate=base.parse_rate,
    )


def after_shift(now: Measured, base: Measured, budget: float) -> dict[str, float | None] | None:
    """What an adapted model would answer after the best shift of its rejections (:func:`gapclose.baselines.shift.best_shift`).

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
