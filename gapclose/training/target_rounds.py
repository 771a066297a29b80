"""Target probes, whose readings of the train items become targets, round by round.

The first target probe is the frozen probe on the base model. Each later round fits a probe again,
with the same labels, on the residuals of the model after the previous round. Readings are taken
once, before the round trains, so no gradient and no later change of the model reaches them.

A trained model repeats the probe's reading on the clips of ``fit``, which are the probe's own
training items. Its residuals therefore contain their labels, and cross-validation on ``fit`` would
favour the newer reading whatever the truth. So later probes are fitted on ``fit`` but chosen,
calibrated and compared on ``val``, on which no probe is fitted and no model trained.

Shapes: N train items, M val items, C concepts, O options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list

from gapclose.core.distributed import map_across_ranks
from gapclose.core.logging import get_logger
from gapclose.data.item_set import ItemSet
from gapclose.data.media import SUPPORTED
from gapclose.metrics.bootstrap import ClipBootstrap, Interval
from gapclose.metrics.labels import Labels
from gapclose.observe.store import read_observations
from gapclose.probes.config import ProbeConfig
from gapclose.probes.linear import FrozenProbe, fit_linear, linear_logits
from gapclose.probes.search import not_asked, not_asked_words, possible_concepts, score
from gapclose.training.context import TrainingContext

logger = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ProbeReadings:
    """A round's target probe and its readings."""

    probe: FrozenProbe
    train: np.ndarray
    """(N, C)"""
    val: np.ndarray
    """(M, C), to set the operating point"""


def train_items(run: TrainingContext) -> ItemSet:
    """Return the items that targets are made for, without their labels."""
    return run.items.select(split="train", purpose="gap").unlabelled()


def val_items(run: TrainingContext) -> ItemSet:
    """Return the labelled items on which probes are chosen."""
    return run.items.select(split="val", purpose="gap")


def first_teacher(run: TrainingContext) -> tuple[ProbeReadings, np.ndarray]:
    """Return the frozen probe's reading of the base model, and the base model's option scores of
    the train items (N, O)."""
    control = run.config.targets.control
    seen = run.observe("base-train", train_items(run), layers=run.probe.layers, blank=SUPPORTED if control.startswith("blank") else ())
    judged = read_observations(run.directory / "observations" / "base-val", [i.id for i in val_items(run)], layers=run.probe.layers)
    read = {name: run.probe.predict_proba(run.probe.features(of.residuals)) for name, of in (("train", seen), ("val", judged))}
    return ProbeReadings(probe=run.probe, **read), seen.scores.double().numpy()


def search(run: TrainingContext, number: int) -> tuple[FrozenProbe, np.ndarray]:
    """Return the best probe on the current model and its reading of val (M, C).

    It is fitted on fit, over all layers, and chosen on val. Round 1 is the base model. Its probe is
    the reference for later rounds, because the frozen probe was chosen among fewer layers.
    """
    fit, val, layers = run.items.select(split="fit", purpose="gap"), val_items(run), list(range(1, len(run.loaded.layers) + 1))
    seen = {
        part: run.observe(f"round-{number}-{part}", items, layers=layers, replace=True).residuals
        for part, items in (("fit", fit), ("val", val))
    }
    known, right = Labels.of(fit), Labels.of(val)
    probe, table = choose_on_holdout(
        seen["fit"], known.concept, seen["val"], right.concept, fit.concepts, run.config.probe, f"choosing the probe of round {number}",
        modality=right.modality,
    )  # fmt: skip
    lost = not_asked(right.concept, right.modality, fit.concepts)
    if lost:
        logger.warning(f"  round {number}: {not_asked_words(lost)}")
    evidence = {"chosen_from": table, "n_fit": len(fit), "n_val": len(val), "seed": run.config.seed, "round": number, "not_asked": lost}
    run.on_main(lambda: probe.save(run.directory / "probes" / f"round-{number}", evidence))
    return probe, probe.predict_proba(probe.features(seen["val"]))


def choose_on_holdout(
    fit: Mapping[int, torch.Tensor],
    known: np.ndarray,
    val: Mapping[int, torch.Tensor],
    right: np.ndarray,
    concepts: Sequence[str],
    config: ProbeConfig,
    label: str,
    *,
    modality: np.ndarray,
) -> tuple[FrozenProbe, list[dict[str, Any]]]:
    """Fit probes on one set of items and choose the best on another.

    They are compared by :func:`gapclose.probes.search.score`. All processes of a launch must call
    this together; each tries every W-th layer.

    Args:
        fit, val: layer -> residuals (N, D) and (M, D). known, right: their concepts, (N,) and (M,).
        modality: modality of the questions of ``val``, (M,).

    Returns:
        The probe, and one row per layer, family and strength.
    """
    possible = possible_concepts(right, modality, len(concepts))

    def tried(layer: int) -> list[tuple[dict[str, Any], tuple[np.ndarray, ...]]]:
        z, other = fit[layer].double().numpy(), val[layer].double().numpy()
        fits = [(family, strength, fit_linear(z, known, family, strength)) for family, strength in config.settings()]
        return [
            ({"layers": [layer], "family": family, "strength": strength, **score(linear_logits(other, parts), right, possible)}, parts)
            for family, strength, parts in fits
        ]

    found = [one for of in map_across_ranks(list(fit), tried, label) for one in of]
    row, (mean, scale, weight, bias) = max(
        found, key=lambda one: one[0]["given_modality"]
    )  # ties: the lowest layer, then the order of the configuration
    facts = {name: row[name] for name in ("layers", "family", "strength", "temperature")}
    probe = FrozenProbe(mean=mean, scale=scale, weight=weight, bias=bias, concepts=concepts, **facts)
    return probe, [row for row, _ in found]


def next_teacher(run: TrainingContext, number: int) -> ProbeReadings:
    """Return the target probe of a later round: the best probe on the current model."""
    probe, val = search(run, number)
    found = run.observe(f"round-{number}-train", train_items(run), layers=probe.layers, replace=True)
    return ProbeReadings(probe=probe, train=probe.predict_proba(probe.features(found.residuals)), val=val)


def compare_rounds(
    run: TrainingContext, number: int, now: ProbeReadings, before: ProbeReadings, reference: np.ndarray, sentinel: np.ndarray
) -> dict[str, Any]:
    """Compare a later round's target probe with the previous one, for ``rounds.json``.

    Args:
        reference: (M, C) the best reading of val by the same search in the models of earlier
            rounds.
        sentinel: (N, C) the sentinel's reading of the train items in the base model, which training
            does not change. A target probe that follows the trained model's answers instead of the
            clips agrees less with it.

    Returns:
        Among others ``gain``: log-likelihood gained on val, with its clip-bootstrap interval, over
            the possible concepts of an item's modality and the items labelled with one of them, as
            probes are chosen. ``helps``: whether the estimate is above 0, which counts for
            ``targets.patience``. ``shown``: whether the interval is above 0, which a single round
            on few clips seldom reaches. The main process decides.
    """
    labels, said, read = Labels.of(val_items(run)), now.train.argmax(1), before.train.argmax(1)
    clips = ClipBootstrap(labels.clip, run.config.gap.replicates, run.config.seed)
    gain, counts = likelihood_gain(now.val, reference, labels)
    interval = Interval.of(clips.mean(gain, counts))
    found = {
        "round": number,
        "layers": list(now.probe.layers),
        "family": now.probe.family,
        "strength": now.probe.strength,
        "gain": interval.to_dict(),
        "balanced": {name: _balanced(of, labels) for name, of in (("before", reference), ("now", now.val))},
        "sentinel_agrees": {"before": float((read == sentinel.argmax(1)).mean()), "now": float((said == sentinel.argmax(1)).mean())},
        "changed": float((said != read).mean()),
        "helps": bool(interval.value > 0),
        "shown": bool(interval.lower > 0),
    }
    return broadcast_object_list([found])[0]


def likelihood_gain(now: np.ndarray, before: np.ndarray, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Compute the log-likelihood in nats (M,) that one reading (M, C) gains on another.

    Also returns which items count, (M,) bool. Readings are restricted to the possible concepts.
    Items with another label have gain 0 and do not count.
    """
    possible = possible_concepts(labels.concept, labels.modality, len(labels.concepts))
    counts = possible[np.arange(len(now)), labels.concept]
    gain = np.zeros(len(now))
    gain[counts] = _log_right(now, labels, possible)[counts] - _log_right(before, labels, possible)[counts]
    return gain, counts


def _log_right(reading: np.ndarray, labels: Labels, possible: np.ndarray) -> np.ndarray:
    """Return the log-probability of the right concept among the possible ones, (M,);
    probabilities are clipped at 1e-12 (-27.6)."""
    narrowed = np.maximum(reading, 1e-12) * possible
    with np.errstate(divide="ignore"):
        return np.log((narrowed / narrowed.sum(1, keepdims=True))[np.arange(len(reading)), labels.concept])


def _balanced(reading: np.ndarray, labels: Labels) -> float:
    cell, names = labels.cells
    right = reading.argmax(1) == labels.concept
    return float(np.mean([right[cell == k].mean() for k in range(len(names))]))


def sentinel_reading(run: TrainingContext) -> np.ndarray:
    """Return the sentinel's reading of the train items in the base model, (N, C)."""
    found: Mapping[int, torch.Tensor] = run.observe("round-1-train", train_items(run), layers=run.sentinel.layers).residuals
    return run.sentinel.predict_proba(run.sentinel.features(found))
