"""What a run trains on: which terms of the loss act, or which of TRL's trainers takes the items instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from gapclose.core.imports import require
from gapclose.core.registry import Registry
from gapclose.training.config import TERMS, TrainConfig

LOSS_TERMS = {
    "consistency": ("consistency", "retain"),
    "gold": ("gold", "retain"),
    "consistency+gold": ("consistency", "gold", "retain"),
}
"""objective -> the terms of the loss that it has"""
BY_TRL = {"dpo": "DPOTrainer", "grpo": "GRPOTrainer"}
"""objective -> the class of TRL that trains it; both keep to the base model by a KL of their own, so retain items stay out"""
OBJECTIVES = (*LOSS_TERMS, *BY_TRL)
ObjectiveFunction = Callable[[Any, Any], np.ndarray]
"""(:class:`gapclose.training.targets.Targets`, the train items) -> (N, O) answer distribution to aim for, rows that sum to one"""
CUSTOM: Registry[ObjectiveFunction] = Registry("objective", "objective", OBJECTIVES)


def require_trl(objective: str) -> None:
    """Import what an objective that TRL trains is trained with.

    Raises:
        MissingPackage: when it is not installed.
    """
    for module in ("trl", "datasets"):
        require(module, "trl", f"objective {objective}")


def register_objective(name: str, aim: ObjectiveFunction) -> ObjectiveFunction:
    """Add an objective, to be named in ``objective``: it trains like ``consistency``, towards other answer distributions.

    Args:
        aim: takes the :class:`gapclose.training.targets.Targets` of the N train items (their readings, and the targets by Jeffrey's rule) and
            the item set; returns the distribution over the options (N, O) that training aims for, 0 beyond an item's options.

    Raises:
        ValueError: when the name is taken.
    """
    return CUSTOM.register(name, aim)


def loss_terms(objective: str) -> tuple[str, ...]:
    """The terms of the loss that an objective has; empty for those that TRL trains. One that a user added has those of ``consistency``."""
    return LOSS_TERMS.get(objective, () if objective in BY_TRL else LOSS_TERMS["consistency"])


READING = "a frozen probe's reading of the base model's own residual stream"
IN_WORDS = {
    "consistency": f"the answer distribution was aligned with {READING}",
    "gold": "cross-entropy on the labelled items",
    "consistency+gold": f"the answer distribution was aligned with {READING}, beside cross-entropy on the labelled items",
    "dpo": f"TRL's DPOTrainer, preferring the option that agrees with {READING} over what the base model says",
    "grpo": f"TRL's GRPOTrainer, sampled answers rewarded by {READING}",
}
"""objective -> what a model card says of it"""


def idle_terms(objective: str, train: TrainConfig) -> str:
    """What is wrong where a term that the objective is about has the weight 0 (retain may have it); empty otherwise."""
    named = " and ".join(f"train.{t}" for t in loss_terms(objective) if t != "retain" and not getattr(train, t))
    words = f"objective {objective}: the weight {named} is 0; make it positive, or choose another of {list(OBJECTIVES)}"
    return words if named else ""


def active_terms(objective: str, train: TrainConfig) -> TrainConfig:
    """``train`` with the weight of every term that the objective does not have set to 0."""
    terms = loss_terms(objective)
    return replace(train, **{t: 0.0 for t in TERMS if t not in terms})


def settings_in_words(objective: str, train: TrainConfig) -> str:
    """The weights that act, for a model card; TRL's objectives have settings of their own."""
    terms = [f"{t} {getattr(train, t):g}" for t in TERMS if getattr(train, t)]
    return f"objective {objective}" + (f", weights {', '.join(terms)}" if terms else "")


def in_words(objective: str) -> str:
    """What a model card says of an objective."""
    return IN_WORDS.get(objective, f"the answer distribution was aligned with targets of {objective}, made from {READING}")


def needs_reading(objective: str) -> bool:
    """Whether training uses what the probe reads: all but ``gold`` do."""
    return objective != "gold"
