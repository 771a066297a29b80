"""Targets: the answer distributions that training aims for.

They are built by Jeffrey's rule from stored readings and option scores.

Shapes: N items, C concepts, O options.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from gapclose.core.tensor_files import read_tensor, reading, write_tensors
from gapclose.probes.posterior import Point, differ, expressible, jeffrey, operating_point, restrict, sharpen, shift_prior
from gapclose.training.config import TargetsConfig


def confident(reading: np.ndarray, share: float) -> np.ndarray:
    """Select the ``share`` of each read concept's items with the most confident reading, (N,) bool.

    Confidence is minus the sum of the other concepts' probabilities, which still tells items apart
    where the highest probability rounds to 1. Ties go to the first item.
    """
    keep = np.zeros(len(reading), dtype=bool)
    read = reading.argmax(1)
    confidence = -np.where(np.arange(reading.shape[1]) == read[:, None], 0.0, reading).sum(1)
    for concept in np.unique(read):
        members = np.flatnonzero(read == concept)
        order = np.argsort(-confidence[members], kind="stable")
        keep[members[order[: max(1, round(share * len(members)))]]] = True
    return keep


def shuffle_evenly(read: np.ndarray, stratum: np.ndarray, seed: int) -> np.ndarray:
    """Permute readings within strata so that no item's new reading depends on its own, (N,).

    A plain permutation of n items leaves a chance correlation of about 1 / sqrt(n) between an
    item's own reading and the one it gets. Here the items read as one concept get each concept's
    readings in the proportions of the stratum, up to rounding.

    Args:
        read: (N,) most probable concept of every item. stratum: (N,) readings stay within it.

    Returns:
        (N,) index of the item whose reading item n gets.
    """
    generator = np.random.default_rng(seed)
    given = np.arange(len(read))
    for s in np.unique(stratum):
        members = generator.permutation(np.flatnonzero(stratum == s))
        takers = members[np.argsort(read[members], kind="stable")]
        # place each concept's readings evenly in [0, 1] from a random start: any run of places then
        # has the proportions of the stratum
        givers, place = generator.permutation(members), np.zeros(len(members))
        for concept in np.unique(read[members]):
            of_concept = np.flatnonzero(read[givers] == concept)
            place[of_concept] = (np.arange(len(of_concept)) + generator.random()) / len(of_concept)
        given[takers] = givers[np.argsort(place, kind="stable")]
    return given


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Stored targets of the train items."""

    ids: list[str]
    target: np.ndarray
    """(N, O)"""
    keep: np.ndarray
    """(N,) bool, the confidence filter; false for items without an option for any concept that
    is read"""
    reading: np.ndarray
    """(N, C) restricted to the concepts an item can express; after twins and the operating point,
    before sharpening"""
    factor: float
    """prior factor on alarm concepts"""
    point: Point = field(default_factory=Point)
    """how the factor was chosen; not stored, because targets are rebuilt at every start"""
    silent: int = 0
    """number of items without an option for any concept that is read; not stored"""

    def save(self, path: Path) -> None:
        tensors = {"target": torch.tensor(self.target), "keep": torch.tensor(self.keep), "reading": torch.tensor(self.reading)}
        write_tensors(path, {**tensors, "factor": torch.tensor(self.factor, dtype=torch.float64)}, {"ids": json.dumps(self.ids)})

    @classmethod
    def load(cls, path: Path, ids: list[str]) -> Targets:
        """Raises: ValueError when the file is damaged or holds targets of items other than
        ``ids``."""
        with reading(path), safe_open(path, framework="pt") as file:
            there = json.loads(file.metadata()["ids"])
            tensors = {k: read_tensor(file, k) for k in ("target", "keep", "reading", "factor")}
        if there != ids:
            raise ValueError(
                f"{path}: holds targets of {len(there)} items, e.g. {there[:2]}, and the train split has {len(ids)}, e.g. {ids[:2]}; "
                "delete it to rebuild"
            )
        arrays: dict[str, Any] = {k: tensors[k].numpy() for k in ("target", "keep", "reading")}
        return cls(ids=ids, **arrays, factor=float(tensors["factor"]))

    def summary(self, concepts: tuple[str, ...]) -> dict[str, Any]:
        """Return the kept items by read concept and the operating point, for the record of a
        run."""
        read = self.reading.argmax(1)
        kept = {c: int((self.keep & (read == k)).sum()) for k, c in enumerate(concepts)}
        counts = {"items": len(self.ids), "kept": int(self.keep.sum()), "kept_by_concept": kept, "not_expressible": self.silent}
        return {**counts, **self.point.to_dict(), "prior_factor": self.factor}


def target_of(
    config: TargetsConfig, reading: np.ndarray, scores: np.ndarray, option_concept: np.ndarray, alarm: np.ndarray, factor: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the targets (N, O) at a known operating point, and the readings (N, C) they express.

    Args:
        reading: (N, C), restricted to what each item can express.
        scores, option_concept: (N, O) of the base model. alarm: (C,) bool.
        factor: prior factor on alarm concepts.
    """
    shifted = shift_prior(reading, alarm, factor)
    return jeffrey(sharpen(shifted, config.sharpen), scores, option_concept), shifted


def restrict_and_pair(
    config: TargetsConfig, reading: np.ndarray, option_concept: np.ndarray | None, partner: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return readings (N, C) restricted to what each item can express, with ``targets.twins`` also
    set against the twin's; and (N,) bool, the items that can express nothing of what is read.

    Args:
        reading: (N, C).
        option_concept: (N, O); None: every item has options for all concepts.
        partner: (N,) row of every item's twin, -1 without one; None: no item has one.
    """
    silent = np.zeros(len(reading), dtype=bool)
    if option_concept is not None:
        reading, silent = restrict(reading, expressible(option_concept, reading.shape[1]))
    return (differ(reading, partner) if config.twins and partner is not None else reading), silent


def excess_loss(target: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the consistency loss of every item above its floor in nats, (N,), at least 0.

    The loss is -sum_o t_o log p_o, and its floor, the entropy of the target, is reached by p = t.
    The difference is KL(target || options). An option of probability zero counts as exp(-1000), so
    that means stay finite.

    Args:
        target: (N, O). scores: (N, O) log-probabilities of the options in the full vocabulary.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(target > 0, target * (np.log(target) - np.maximum(scores, -1000.0)), 0.0).sum(1)


def constant_loss(target: np.ndarray, option_concept: np.ndarray, modality: np.ndarray) -> np.ndarray:
    """Return the excess loss of a model that treats all items of a modality alike, (N,), in nats.

    It expresses each concept with the mean probability of that concept in the targets of the
    modality, and is as right about the options of a concept as the targets. So it cannot tell items
    apart, and a model above its mean has not learned to tell them apart either.

    Args:
        target: (N, O). option_concept: (N, O), below 0 where there is no option. modality: (N,).
    """
    concepts = np.unique(option_concept[option_concept >= 0])
    held = np.stack([np.where(option_concept == c, target, 0.0).sum(1) for c in concepts], axis=1)
    mean = np.empty_like(held)
    for name in np.unique(modality):
        mean[modality == name] = held[modality == name].mean(0)
    return excess_loss(held, np.log(np.maximum(mean, np.finfo(float).tiny)))


def build_targets(
    config: TargetsConfig,
    *,
    ids: list[str],
    reading: np.ndarray,
    scores: np.ndarray,
    option_concept: np.ndarray,
    modality: np.ndarray,
    val_reading: np.ndarray,
    val_concept: np.ndarray,
    alarm: np.ndarray,
    seed: int,
    val_clip: np.ndarray | None = None,
    val_option_concept: np.ndarray | None = None,
    partner: np.ndarray | None = None,
    val_partner: np.ndarray | None = None,
) -> Targets:
    """Build targets from the readings of the train items.

    Steps: restrict each reading to expressible concepts, set it against its twin's
    (``targets.twins``), apply the operating point, filter by confidence, sharpen, apply Jeffrey's
    rule. An item is not trained on when it has no option for the concepts that hold the whole
    reading; ``silent`` counts these.

    Args:
        reading: (N, C) of the train items. scores, option_concept: (N, O) of the base model.
            modality: (N,).
        val_reading: (M, C) readings of the items of val, which set the operating point.
            val_concept, val_clip: (M,) their concepts and clips.
        val_option_concept: (M, P) option concepts of the items of val, to restrict their readings
            likewise; None: every item has options for all concepts.
        partner: (N,) row of every train item's twin, -1 without one; read only with
            ``targets.twins``, None: no item has a twin. val_partner: (M,) the same of val.
        alarm: (C,) bool.
    """
    if config.control == "shuffled":
        if config.twins and partner is not None:  # first, so that a control has the same readings, of other items
            reading, partner = differ(reading, partner), None
        reading = reading[shuffle_evenly(reading.argmax(1), modality, seed)]
    reading, silent = restrict_and_pair(config, reading, option_concept, partner)
    point = Point()
    if config.false_alarm_budget is not None and alarm.any():
        val_reading, _ = restrict_and_pair(config, val_reading, val_option_concept, val_partner)
        point = operating_point(val_reading, val_concept, alarm, config.false_alarm_budget, val_clip)
    target, shifted = target_of(config, reading, scores, option_concept, alarm, point.factor)
    keep = np.zeros(len(ids), dtype=bool)
    keep[~silent] = confident(shifted[~silent], config.gate)
    return Targets(ids=ids, target=target, keep=keep, reading=shifted, factor=point.factor, point=point, silent=int(silent.sum()))
