"""Trackers mirror the records of ``gap.jsonl``; the file remains authoritative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers

from gapclose.core.errors import in_one_line
from gapclose.core.imports import require
from gapclose.core.logging import get_logger, is_main
from gapclose.training.context import TrainingSettings
from gapclose.training.trackers.base import Tracker
from gapclose.training.trackers.by_accelerate import MLflow, TensorBoard, Trackio
from gapclose.training.trackers.config import TRACKERS
from gapclose.training.trackers.wandb_service import mode, service, why_unreached
from gapclose.training.trackers.wandb_tracker import WandbTracker

logger = get_logger(__name__)

CLASSES: dict[str, type[Tracker]] = dict(zip(TRACKERS, (WandbTracker, TensorBoard, Trackio, MLflow), strict=True))
"""name in ``tracking`` -> its class"""


class Trackers:
    """The trackers of a run. Without any it does nothing, so callers need not check whether tracking is on."""

    def __init__(self, members: Sequence[Tracker] = ()) -> None:
        self.members = tuple(members)

    def record(self, record: Mapping[str, Any]) -> None:
        """Send the figures of one measurement."""
        for tracker in self.members:
            tracker.record(record)

    def losses(self, step: int, values: Mapping[str, float]) -> None:
        """Send the trainer's figures of one optimiser step."""
        for tracker in self.members:
            tracker.losses(step, values)

    def finish(self, summary: Mapping[str, Any], adapter: Path | None) -> None:
        """Send the results and the exported adapter, and close all runs."""
        for tracker in self.members:
            tracker.finish(summary, adapter)


def chosen_trackers(config: TrainingSettings) -> list[str]:
    """Return the names in ``config.tracking``, which may be one of them, a list, or none."""
    return config.tracking if isinstance(config.tracking, list) else [config.tracking] if config.tracking in TRACKERS else []


def make_trackers(config: TrainingSettings, settings: dict[str, Any]) -> Trackers:
    """Open the configured trackers on the main process; elsewhere there are none.

    Weights & Biases is left out where WANDB_MODE disables it.

    Args:
        settings: the complete configuration, as the trackers show it.
    """
    names = chosen_trackers(config) if is_main() else []
    return Trackers([CLASSES[name](config, settings) for name in names if name != "wandb" or _wanted()])


def _wanted() -> bool:
    """Return whether WANDB_MODE leaves Weights & Biases on."""
    try:
        if mode() != "disabled":
            return True
        logger.info("tracking is wandb, and WANDB_MODE is disabled: nothing is sent")
    except Exception as error:  # an error of wandb's settings, already reported by tracking_doubts
        logger.warning(f"  tracking: {in_one_line(error)}; nothing is sent")
    return False


def refuse_missing_trackers(config: TrainingSettings) -> None:
    """Look whether the packages of the configured trackers are installed; unlike a service that cannot be reached, that never mends itself.

    Raises:
        MissingPackage: when one is not.
    """
    for name in chosen_trackers(config):
        service() if name == "wandb" else require(CLASSES[name].package, name, f"tracking {name}")


def tracking_doubts(config: TrainingSettings) -> list[str]:
    """Return warnings for a tracker that cannot send, before anything loads; runs continue
    without it."""
    reason = why_unreached() if "wandb" in chosen_trackers(config) else None
    return [f"tracking: {reason}. A run goes on without it, and sends what is missing once it can"] if reason else []


MIRRORED = (
    "loss",
    "reward",
    "kl",
    "entropy",
    "logps/",
    "completions/",
    "frac_reward_zero_std",
    "clip_ratio/",
    "learning_rate",
    "grad_norm",
)
"""prefixes of the trainer's log names that are mirrored"""
PRINTED = ("loss", "kl", "rewards/accuracies", "rewards/margins")
"""prefixes of those that are also printed, next to the mean reward"""


class LossLines(transformers.TrainerCallback):
    """Prints and mirrors the trainer's losses, rewards and KL."""

    def __init__(self, trackers: Trackers, number: int = 1) -> None:
        """``number``: the round of targets; its steps continue those of earlier rounds."""
        self.trackers, self.number = trackers, number

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        values = {k: float(v) for k, v in (logs or {}).items() if k.startswith(MIRRORED) and v is not None}
        if "loss" in values:
            shown = {k: v for k, v in values.items() if k.startswith(PRINTED) or k == "reward"}
            of_round = f"round {self.number}, " if self.number > 1 else ""
            logger.info(
                f"{of_round}step {state.global_step}/{state.max_steps}: "
                + ", ".join(f"{k.removeprefix('loss/')} {v:.4f}" for k, v in shown.items())
            )
            self.trackers.losses((self.number - 1) * state.max_steps + state.global_step, values)
