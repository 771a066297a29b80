"""Targets: the answer distribution that training aims for, built from stored readings and scores by Jeffrey's rule.

Shapes: N items, C concepts, O options.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from scipy.special import softmax

from gapclose.files import write_tensors
from gapclose.stored import read_tensor, reading

CONTROLS = ("none", "shuffled", "blank_targets", "blank_media")


@dataclass(kw_only=True)
class TargetsConfig:
    """From readings to targets."""

    false_alarm_budget: float | None = 0.03
    """share of the standard items of val on which the reading itself may raise an alarm; null: leave the reading's own threshold"""
    sharpen: float = 1.0
    """exponent on the reading; .inf gives hard targets"""
    gate: float = 1.0
    """share of the items of every read concept that is kept, the most confident first; 1 keeps all"""
    rounds: int = 1
    """times that targets are made and trained on: after each but the last, a probe is fitted again with the same labels on what the adapted
    model carries, chosen on val, and training goes on for as many epochs if it is shown to read val better"""
    control: str = "none"
    """none; shuffled (readings permuted among the train items of a modality, evenly over what was read); blank_targets (targets from
    blanked media, training on the real ones) or blank_media (targets and training from blanked media)"""

    def __post_init__(self) -> None:
        if self.control not in CONTROLS:
            raise ValueError(f"targets.control is {self.control!r}; choose one of {list(CONTROLS)}")
        if not 0 < self.gate <= 1:
            raise ValueError(f"targets.gate is {self.gate}; it must lie in (0, 1]")
        if self.rounds < 1:
            raise ValueError(f"targets.rounds is {self.rounds}; it must be at least 1")
        if self.rounds > 1 and self.control != "none":
            raise ValueError(f"targets.rounds {self.rounds}: a control (targets.control {self.control}) has one round")
        if self.sharpen <= 0:
            raise ValueError(f"targets.sharpen is {self.sharpen}; it must be positive (.inf for hard targets)")
        if self.false_alarm_budget is not None and not 0 <= self.false_alarm_budget < 1:
            raise ValueError(f"targets.false_alarm_budget is {self.false_alarm_budget}; it must lie in [0, 1) or be null")


def shift_prior(reading: np.ndarray, alarm: np.ndarray, factor: float) -> np.ndarray:
    """r'(c) proportional to r(c) w_c with w = ``factor`` on alarm concepts (C,) bool and 1 elsewhere, (N, C)."""
    shifted = reading * np.where(alarm, factor, 1.0)
    return shifted / shifted.sum(1, keepdims=True)


def operating_point(reading: np.ndarray, concept: np.ndarray, alarm: np.ndarray, budget: float) -> float:
    """The prior factor that makes the reading most accurate while its false alarms stay within ``budget``.

    Args:
        reading: (N, C) readings of labelled items that the probe was not fitted on.
        concept: (N,) their concepts.
        alarm: (C,) bool.
        budget: share of standard items whose most probable concept may be an alarm.

    Returns:
        The factor with the highest mean recall over concepts among those within the budget; the smallest one tried when none is.
    """
    factors = np.geomspace(1e-4, 1e4, 401)
    standard = ~alarm[concept]
    best, best_accuracy = factors[0], -1.0
    for factor in factors:
        said = shift_prior(reading, alarm, factor).argmax(1)
        if alarm[said][standard].mean() > budget:
            break  # false alarms only rise with the factor
        accuracy = float(np.mean([(said == c)[concept == c].mean() for c in np.unique(concept)]))
        if accuracy > best_accuracy:
            best, best_accuracy = factor, accuracy
    return float(best)


def sharpen(reading: np.ndarray, exponent: float) -> np.ndarray:
    """r(c)^exponent, renormalised; an infinite exponent puts everything on the most probable concept, (N, C)."""
    if np.isinf(exponent):
        return np.eye(reading.shape[1])[reading.argmax(1)]
    with np.errstate(divide="ignore"):
        log = exponent * np.log(reading)
    return softmax(log, axis=1)


def confident(reading: np.ndarray, share: float) -> np.ndarray:
    """(N,) bool: the ``share`` of the items of every read concept on which the reading is most confident."""
    keep = np.zeros(len(reading), dtype=bool)
    read, confidence = reading.argmax(1), reading.max(1)
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
    *within* the concept, so that a concept the base never utters is no division by zero. Concepts that no option of an item expresses
    give their share to the others in proportion.

    Args:
        reading: (N, C). scores: (N, O) of the base model, -inf beyond an item's options. option_concept: (N, O), -1 beyond.

    Returns:
        (N, O), rows sum to one.

    Raises:
        ValueError: when an item's reading lies wholly on concepts that none of its options expresses.
    """
    target = np.zeros_like(scores, dtype=np.float64)
    for c in range(reading.shape[1]):
        member = option_concept == c
        within = np.where(member, scores, -np.inf)
        some = member.any(1)
        if some.any():
            target[some] += reading[some, c, None] * softmax(within[some], axis=1)
    total = target.sum(1, keepdims=True)
    if (total < 1e-12).any():
        rows = np.flatnonzero(total[:, 0] < 1e-12)
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
    """(N,) bool, the gate"""
    reading: np.ndarray
    """(N, C) after operating point, before sharpening"""
    factor: float
    """prior factor on alarm concepts"""

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
        arrays = {k: tensors[k].numpy() for k in ("target", "keep", "reading")}
        return cls(ids=ids, **arrays, factor=float(tensors["factor"]))

    def summary(self, concepts: tuple[str, ...]) -> dict[str, Any]:
        """What was kept, by read concept."""
        read = self.reading.argmax(1)
        kept = {c: int((self.keep & (read == k)).sum()) for k, c in enumerate(concepts)}
        return {"items": len(self.ids), "kept": int(self.keep.sum()), "kept_by_concept": kept, "prior_factor": self.factor}


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
) -> Targets:
    """Readings of the train items -> operating point -> gate -> sharpening -> Jeffrey's rule.

    Args:
        reading: (N, C) of the train items. scores, option_concept: (N, O) of the base model. modality: (N,).
        val_reading: (M, C) readings of the items of val, val_concept: (M,) their concepts; they set the operating point. Out-of-fold
            readings of fit do worse with few labels: one false alarm among 25 standard items exceeds a budget of 3 %, and the factor that
            avoids it may silence a reading that is right on 97 % of them.
        alarm: (C,) bool.
    """
    if config.control == "shuffled":
        reading = reading[shuffle_evenly(reading.argmax(1), modality, seed)]
    factor = 1.0
    if config.false_alarm_budget is not None and alarm.any():
        factor = operating_point(val_reading, val_concept, alarm, config.false_alarm_budget)
    shifted = shift_prior(reading, alarm, factor)
    target = jeffrey(sharpen(shifted, config.sharpen), scores, option_concept)
    return Targets(ids=ids, target=target, keep=confident(shifted, config.gate), reading=shifted, factor=factor)
