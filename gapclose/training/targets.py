"""Targets: the answer distribution that training aims for, built from stored readings and scores by Jeffrey's rule.

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
from gapclose.probes.posterior import Point, expressible, jeffrey, operating_point, restrict, sharpen, shift_prior
from gapclose.training.config import TargetsConfig


def confident(reading: np.ndarray, share: float) -> np.ndarray:
    """(N,) bool: the ``share`` of the items of every read concept on which the reading is most confident; of equals the first.

    Confidence is what is left for the other concepts together, which tells items apart where the most probable one is 1 up to rounding.
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
    """A permutation (N,) within strata that carries nothing over: whatever an item was read as, it gets every reading equally often.

    A plain permutation of n items leaves a chance correlation of about 1 / sqrt(n) between an item's own reading and the one it gets. Here
    the items that were read as one concept get each concept's readings in the proportions of the whole stratum, up to rounding.

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
        # lay every concept's readings out evenly from 0 to 1, each from a random start: any run of them has the whole's proportions
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
    """(N,) bool, the gate; never an item that can express nothing of what is read"""
    reading: np.ndarray
    """(N, C) among the concepts that an item can express, after operating point, before sharpening"""
    factor: float
    """prior factor on alarm concepts"""
    point: Point = field(default_factory=Point)
    """how that was chosen; not stored, targets are made at every start"""
    silent: int = 0
    """items that can express nothing of what is read; not stored"""

    def save(self, path: Path) -> None:
        tensors = {"target": torch.tensor(self.target), "keep": torch.tensor(self.keep), "reading": torch.tensor(self.reading)}
        write_tensors(path, {**tensors, "factor": torch.tensor(self.factor, dtype=torch.float64)}, {"ids": json.dumps(self.ids)})

    @classmethod
    def load(cls, path: Path, ids: list[str]) -> Targets:
        """Raises: ValueError when the file is damaged, or about other items than ``ids``."""
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
        """What was kept, by read concept, and where the operating point lies; for the record of a run."""
        read = self.reading.argmax(1)
        kept = {c: int((self.keep & (read == k)).sum()) for k, c in enumerate(concepts)}
        counts = {"items": len(self.ids), "kept": int(self.keep.sum()), "kept_by_concept": kept, "not_expressible": self.silent}
        return {**counts, **self.point.to_dict(), "prior_factor": self.factor}


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
) -> Targets:
    """Readings of the train items -> what they can express -> operating point -> gate -> sharpening -> Jeffrey's rule.

    An item whose reading lies wholly on concepts that it has no option for is not trained on; ``silent`` counts them.

    Args:
        reading: (N, C) of the train items. scores, option_concept: (N, O) of the base model. modality: (N,).
        val_reading: (M, C) readings of the items of val, val_concept, val_clip: (M,) their concepts and clips; they set the operating point.
        val_option_concept: (M, P) of the items of val, whose readings are restricted like those of the train items; None: they have all options.
        alarm: (C,) bool.
    """
    if config.control == "shuffled":
        reading = reading[shuffle_evenly(reading.argmax(1), modality, seed)]
    reading, silent = restrict(reading, expressible(option_concept, reading.shape[1]))
    point = Point()
    if config.false_alarm_budget is not None and alarm.any():
        if val_option_concept is not None:
            val_reading, _ = restrict(val_reading, expressible(val_option_concept, val_reading.shape[1]))
        point = operating_point(val_reading, val_concept, alarm, config.false_alarm_budget, val_clip)
    shifted = shift_prior(reading, alarm, point.factor)
    target = jeffrey(sharpen(shifted, config.sharpen), scores, option_concept)
    keep = np.zeros(len(ids), dtype=bool)
    keep[~silent] = confident(shifted[~silent], config.gate)
    return Targets(ids=ids, target=target, keep=keep, reading=shifted, factor=point.factor, point=point, silent=int(silent.sum()))
