"""Objectives: which terms of the loss are active, or which of TRL's trainers replaces ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gapclose.core.imports import require
from gapclose.core.registry import Registry
from gapclose.training.config import TERMS, TargetsConfig, TrainConfig

LOSS_TERMS = {
    "consistency": ("consistency", "retain"),
    "gold": ("gold", "retain"),
    "consistency+gold": ("consistency", "gold", "retain"),
}
"""objective -> its terms of the loss"""
BY_TRL = {"dpo": "DPOTrainer", "grpo": "GRPOTrainer"}
"""objective -> the TRL class that trains it; both have their own KL to the base model, so
retention items are not used"""
OBJECTIVES = (*LOSS_TERMS, *BY_TRL)
ObjectiveFunction = Callable[[Any, Any], np.ndarray]
"""(:class:`gapclose.training.targets.Targets`, the train items) -> target distribution (N, O),
rows sum to one"""
CUSTOM: Registry[ObjectiveFunction] = Registry("objective", "objective", OBJECTIVES)


def require_trl(objective: str) -> None:
    """Import what an objective that TRL trains is trained with.

    Raises:
        MissingPackage: when it is not installed.
    """
    for module in ("trl", "datasets"):
        require(module, "trl", f"objective {objective}")


def register_objective(name: str, aim: ObjectiveFunction) -> ObjectiveFunction:
    """Add an objective that ``objective`` can name; it trains like ``consistency``.

    Args:
        aim: takes the :class:`gapclose.training.targets.Targets` of the N train items (readings,
            and targets by Jeffrey's rule) and the item set; returns the target distribution over
            the options (N, O), 0 beyond an item's options.

    Raises:
        ValueError: when the name is taken.
    """
    return CUSTOM.register(name, aim)


def loss_terms(objective: str) -> tuple[str, ...]:
    """Return an objective's terms of the loss: none for TRL's, those of ``consistency`` for a
    user's."""
    return LOSS_TERMS.get(objective, () if objective in BY_TRL else LOSS_TERMS["consistency"])


READING = "a frozen probe's reading of the base model's own residual stream"
IN_WORDS = {
    "consistency": f"the answer distribution was aligned with {READING}",
    "gold": "cross-entropy on the labelled items",
    "consistency+gold": f"the answer distribution was aligned with {READING}, beside cross-entropy on the labelled items",
    "dpo": f"TRL's DPOTrainer, preferring the option that agrees with {READING} over what the base model says",
    "grpo": f"TRL's GRPOTrainer, sampled answers rewarded by {READING}",
}
"""objective -> its description in a model card"""


def idle_terms(objective: str, train: TrainConfig) -> str:
    """Return an error message if a term of the objective (except retain) has weight 0, else an
    empty string."""
    named = " and ".join(f"train.{t}" for t in loss_terms(objective) if t != "retain" and not getattr(train, t))
    words = f"objective {objective}: the weight {named} is 0; make it positive, or choose another of {list(OBJECTIVES)}"
    return words if named else ""


def active_terms(objective: str, train: TrainConfig) -> TrainConfig:
    """Return ``train`` with weight 0 for every term that the objective does not have."""
    terms = loss_terms(objective)
    return replace(train, **{t: 0.0 for t in TERMS if t not in terms})


def settings_in_words(objective: str, train: TrainConfig) -> str:
    """Return the objective and its positive weights for a model card (none for TRL's
    objectives)."""
    terms = [f"{t} {getattr(train, t):g}" for t in TERMS if getattr(train, t)]
    return f"objective {objective}" + (f", weights {', '.join(terms)}" if terms else "")


def in_words(objective: str) -> str:
    """Return an objective's description for a model card."""
    return IN_WORDS.get(objective, f"the answer distribution was aligned with targets of {objective}, made from {READING}")


def training_in_words(objective: str, targets: TargetsConfig, rounds: Sequence[int]) -> str:
    """Return what the exported epoch was trained on, for a model card.

    Args:
        rounds: up to that of the exported epoch; readings of later rounds have no verdict.
    """
    later = f"round{'s' if len(rounds) > 2 else ''} {' and '.join(str(n) for n in rounds[1:])}"
    again = "the reading of a probe fitted again on the adapted model, which has no verdict"
    twins = ". Readings of twins were set against each other" if targets.twins else ""
    if targets.first == "labels":
        words = f"{IN_WORDS['gold']} alone in round 1"
        aligned = f"; in {later} the answer distribution was also aligned with {again}{twins}"
        return words + (aligned if rounds[1:] else "")
    return in_words(objective) + (f"; in {later} with {again}" if rounds[1:] else "") + (twins if needs_reading(objective) else "")


def needs_reading(objective: str) -> bool:
    """Return whether training uses the probe's reading; only ``gold`` does not."""
    return objective != "gold"
