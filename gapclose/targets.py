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
from scipy.special import softmax

from gapclose.checks import Checks
from gapclose.files import write_tensors
from gapclose.prior import Point, operating_point, shift_prior
from gapclose.stored import read_tensor, reading

CONTROLS = ("none", "shuffled", "blank_targets", "blank_media")
NOTHING = 1e-12
"""belief in all concepts that an item can express, 0..1, below which nothing is read about them"""


@dataclass(kw_only=True)
class TargetsConfig:
    """From readings to targets."""

    false_alarm_budget: float | None = 0.03
    """share of the standard items of val on which the reading itself may raise an alarm, as far as so many items can tell
    (:mod:`gapclose.prior`); null: leave the reading's own threshold"""
    sharpen: float = 1.0
    """exponent on the reading; .inf gives hard targets"""
    gate: float = 1.0
    """share of the items of every read concept that is kept, the most confident first; 1 keeps all"""
    rounds: int = 1
    """times that targets are made and trained on: after each but the last, a probe is fitted again with the same labels on what the adapted
    model carries, chosen on val, and training goes on for as many epochs; ``patience`` may end it before"""
    patience: int = 1
    """rounds in a row whose probe reads val no better than the best one before (mean log-likelihood, as estimated) that end the rounds; the
    round that ends them is not trained"""
    control: str = "none"
    """none; shuffled (readings permuted among the train items of a modality, evenly over what was read); blank_targets (targets from
    blanked media, training on the real ones) or blank_media (targets and training from blanked media)"""

    def __post_init__(self) -> None:
        with Checks(self, "targets", infinite=("sharpen",)) as check:
            check.choice("control", CONTROLS)
            check.number("gate", above=0, most=1)
            check.number("rounds", "patience", least=1)
            check.number("sharpen", above=0, why=".inf for hard targets")
            check.number("false_alarm_budget", least=0, below=1, why="null leaves the reading's own threshold")
            if check.sound("rounds", "control") and self.rounds > 1 and self.control != "none":
                check.add(f"{check.named('rounds')}, and a control ({check.named('control')}) has one round", "rounds", "control")


def expressible(option_concept: np.ndarray, concepts: int) -> np.ndarray:
    """(N, C) bool: which concepts the options (N, O) of an item express."""
    return (option_concept[:, :, None] == np.arange(concepts)).any(1)


def restrict(reading: np.ndarray, can: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The reading among the concepts that an item can express, renormalised, (N, C).

    Args:
        reading, can: (N, C), the latter :func:`expressible`.

    Returns:
        The reading, and (N,) bool where it said nothing about any of them (less than :data:`NOTHING` together): there it is even.
    """
    kept = np.where(can, reading, 0.0)
    total = kept.sum(1, keepdims=True)
    silent = total[:, 0] < NOTHING
    even = can / can.sum(1, keepdims=True)
    return np.where(silent[:, None], even, kept / np.where(silent[:, None], 1.0, total)), silent


def sharpen(reading: np.ndarray, exponent: float) -> np.ndarray:
    """r(c)^exponent, renormalised; an infinite exponent puts everything on the most probable concept, equally where several are, (N, C)."""
    if np.isinf(exponent):
        top = (reading == reading.max(1, keepdims=True)).astype(float)
        return top / top.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        log = exponent * np.log(reading)
    return softmax(log, axis=1)


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


def jeffrey(reading: np.ndarray, scores: np.ndarray, option_concept: np.ndarray) -> np.ndarray:
    """t(o|x) = r(c(o)|x) pi0(o|x) / q0(c(o)|x): the closest distribution in KL to the base's whose concept marginal is the reading.

    Source: Jeffrey (1965), probability kinematics; the KL property is Csiszar (1967). Computed as r(c) times the softmax of the scores
    *within* the concept, so that a concept the base never utters is no division by zero; where it gives all options of a concept a
    probability of zero (-inf), they share equally. Concepts that no option of an item expresses give their share to the others in proportion.

    Args:
        reading: (N, C). scores: (N, O) of the base model, -inf beyond an item's options. option_concept: (N, O), -1 beyond.

    Returns:
        (N, O), rows sum to one.

    Raises:
        ValueError: when an item's reading lies wholly on concepts that none of its options expresses (:func:`restrict` comes before), or a
            reading or score is nan or a score infinitely high.
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
        return {**counts, **self.point.facts(), "prior_factor": self.factor}


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
