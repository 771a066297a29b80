"""What a tracker shows of a record and of an optimiser step, and the names under which it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gapclose.evaluation.run_records import headlines

EPOCH_FIGURES = (
    "gap/balanced",
    "gap/auroc",
    "action/balanced",
    "action/auroc",
    "action/generated",
    "reading/balanced",
    "reading/fresh",
    "standard_accuracy",
    "rejection_rate",
    "false_alarms",
    "retention",
    "closure",
    "excess",
)
"""headline figures of a measurement of val, one point per epoch; epoch 0 is the base model"""
TEST_FIGURES = ("gap/balanced", "action/balanced", "reading/balanced", "closure")
"""headline figures of a measurement of test, shown as ``test/NAME``"""
STEP_FIGURES = {
    "loss": "train/loss",
    "loss/consistency": "train/consistency",
    "loss/gold": "train/gold",
    "loss/retain": "train/retain",
    "loss/excess": "train/excess",
    "learning_rate": "train/lr",
    "reward": "train/reward",
    "kl": "train/kl",
    "rewards/accuracies": "train/preference_accuracy",
}
"""name in the trainer's log -> headline figure of an optimiser step"""
DETAIL = "detail/"
"""prefix of all other figures, which only Weights & Biases gets and hides from its workspace"""


def scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a record under slash-separated names; an interval's ends are /lower
    and /upper."""
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            if set(value) == {"value", "lower", "upper"}:
                yield from (
                    (n, v)
                    for n, v in ((name, value["value"]), (f"{name}/lower", value["lower"]), (f"{name}/upper", value["upper"]))
                    if v is not None
                )
            else:
                yield from scalars(value, f"{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def split_of(record: Mapping[str, Any]) -> str:
    """Return the split that a record measures: val or test."""
    return record["stage"].split("/")[-1]


def epoch_figures(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the headline figures of a record; those of test are below ``test/``."""
    found: dict[str, Any] = headlines(record)
    if split_of(record) == "val":
        return {name: found[name] for name in EPOCH_FIGURES if name in found}
    return {f"test/{name}": found[name] for name in TEST_FIGURES if name in found}


def epoch_details(record: Mapping[str, Any]) -> dict[str, float]:
    """Return every number of a record as ``detail/SPLIT/NAME``."""
    body = {k: v for k, v in record.items() if k not in ("stage", "epoch", "seed")}
    return {f"{DETAIL}{split_of(record)}/{name}": value for name, value in scalars(body)}


def step_figures(values: Mapping[str, float]) -> dict[str, float]:
    """Return the headline figures of an optimiser step, as ``train/NAME``."""
    return {STEP_FIGURES[name]: value for name, value in values.items() if name in STEP_FIGURES}


def step_details(values: Mapping[str, float]) -> dict[str, float]:
    """Return the other figures of an optimiser step, as ``detail/train/NAME``."""
    return {f"{DETAIL}train/{name}": value for name, value in values.items() if name not in STEP_FIGURES}
