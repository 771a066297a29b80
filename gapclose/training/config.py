"""The settings of a training, and what follows from them: items of each term in a batch, micro-batches of a step, steps of an epoch."""

from __future__ import annotations

from dataclasses import dataclass

from gapclose.core.config_checks import Checks
from gapclose.training.wandb_service import LONGEST, NOT_IN_PROJECTS

TERMS = ("consistency", "gold", "retain")

SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt")
"""the schedulers of transformers that need no settings of their own"""
POLYNOMIAL_END = 1e-7
"""where transformers ends a polynomial decay; it refuses to start at or below it"""


@dataclass(kw_only=True)
class TrainConfig:
    """Optimisation."""

    epochs: int = 3
    """each of as many steps as one pass of the train items takes when they fill the batch beside the retained, with objective consistency, gold
    and consistency+gold alike: so they are compared at equal steps (dpo and grpo take as many as their pairs or prompts fill). The gap is
    measured again after each"""
    global_batch_size: int = 72
    """items per optimiser step over all processes, all terms together"""
    micro_batch_size: int = 8
    """items per forward on one process; memory, not results, depends on it"""
    learning_rate: float = 2e-4
    """peak learning rate of AdamW, at least 0"""
    lr_scheduler_type: str = "cosine"
    """scheduler of transformers: linear, cosine, cosine_with_restarts, polynomial, constant, constant_with_warmup or inverse_sqrt"""
    warmup: float = 0.1
    """share of all steps with rising learning rate, at least 0 and below 1"""
    weight_decay: float = 0.0
    """AdamW's, on adapter weights"""
    max_grad_norm: float = 1.0
    """gradient clipping; 0 switches it off"""
    consistency: float = 1.0
    """weight of the consistency term, where the objective has it"""
    gold: float = 1.0
    """weight of cross-entropy on the labelled fit items, where the objective has it"""
    retain: float = 1.0
    """weight of KL(base || adapted) on the retain items, where the objective has it; 0 leaves it out"""
    retain_share: float = 0.333
    """share of every global batch that is retain items, 0..1"""
    gold_share: float = 0.25
    """share of every global batch that is labelled items under objective consistency+gold, 0..1"""
    twins: bool = False
    """deal both items of a pair of twins (tag ``twin``) into the same global batch, where the gate keeps both; false: every item by itself"""
    retain_tokens: int = 512
    """most probable next tokens kept of the base model for the KL; a smaller vocabulary is kept whole"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, about a third more time"""
    cache_trunk: bool = False
    """compute once what lies below the first adapted layer (towers included), keep it on disk while training, and train and re-measure from
    there; ``gapclose validate`` says what it takes. Left off with a message where it does not fit or the model cannot"""
    save_steps: int = 0
    """checkpoint every so many optimiser steps besides the end of every epoch; 0: only then"""
    logging_steps: int = 10
    """optimiser steps between loss lines"""

    def __post_init__(self) -> None:
        with Checks(self, "train") as check:
            check.number("epochs", "global_batch_size", "micro_batch_size", "retain_tokens", "logging_steps", least=1)
            check.number("save_steps", "learning_rate", "weight_decay", "max_grad_norm", *TERMS, least=0)
            check.number("warmup", least=0, below=1, why="a share of all steps; a number of steps is not taken")
            check.number("retain_share", "gold_share", least=0, most=1)
            check.choice("lr_scheduler_type", SCHEDULERS)
            if self.lr_scheduler_type == "polynomial" and check.sound("learning_rate") and self.learning_rate <= POLYNOMIAL_END:
                message = (
                    f"train.lr_scheduler_type polynomial ends at {POLYNOMIAL_END:g}, and train.learning_rate is {self.learning_rate:g}"
                )
                check.add(f"{message}; raise it, or take another scheduler", "lr_scheduler_type", "learning_rate")

    def accumulation(self, processes: int) -> int:
        """Micro-batches per optimiser step on each process.

        Raises:
            ValueError: when the global batch cannot be cut evenly, with sizes that can.
        """
        per_round = self.micro_batch_size * processes
        if self.global_batch_size % per_round:
            fitting = [m for m in range(1, self.global_batch_size + 1) if self.global_batch_size % (m * processes) == 0]
            raise ValueError(
                f"train.global_batch_size {self.global_batch_size} cannot be cut into micro-batches of {self.micro_batch_size} on "
                f"{processes} processes; train.micro_batch_size may be {fitting}"
                if fitting
                else f"train.global_batch_size {self.global_batch_size} cannot be shared by {processes} processes; make it a multiple of {processes}"
            )
        return self.global_batch_size // per_round

    def counts(self) -> dict[str, int]:
        """Items of each term in a global batch; they add up to ``global_batch_size``."""
        total = self.global_batch_size
        counts = {
            "retain": round(total * self.retain_share) if self.retain else 0,
            "gold": round(total * self.gold_share) if self.gold else 0,
        }
        if not self.consistency:
            counts["gold"] = total - counts["retain"]
        counts["consistency"] = total - counts["retain"] - counts["gold"]
        short = [t for t in TERMS if getattr(self, t) > 0 and counts[t] < 1]
        if short:
            shares = f"train.retain_share {self.retain_share:g} and train.gold_share {self.gold_share:g}"
            remedy = "raise train.global_batch_size, or change the shares, which must leave something for every term"
            raise ValueError(f"train.global_batch_size {total} with {shares} leaves no room for {short}; {remedy}")
        return {t: counts[t] for t in TERMS}

    def epoch_steps(self, n_train: int) -> int:
        """Optimiser steps of an epoch over ``n_train`` items."""
        return max(1, n_train // (self.global_batch_size - self.counts()["retain"]))


@dataclass(kw_only=True)
class TrackingConfig:
    """Where records are mirrored to."""

    project: str = "gapclose"
    """Weights & Biases project, at most 128 characters without any of / \\ # ? % :"""
    name: str | None = None
    """run name, at most 128 characters; null: the run directory's name"""

    def __post_init__(self) -> None:
        with Checks(self, "wandb") as check:
            for name in ("project", "name"):
                if check.sound(name) and len(getattr(self, name) or "") > LONGEST:
                    check.add(f"{check.named(name)}; Weights & Biases takes at most {LONGEST} characters", name)
            if check.sound("project") and (wrong := sorted(set(self.project) & set(NOT_IN_PROJECTS))):
                message = f"{check.named('project')}; Weights & Biases takes no {' '.join(wrong)} in it"
                check.add(f"{message} (an owner is named by WANDB_ENTITY, not here)" if "/" in wrong else message, "project")
