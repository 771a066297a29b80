"""Settings of training: loss terms and batches, LoRA, targets, guards, the objectives that TRL trains, and tracking."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gapclose.core.config_checks import Checks
from gapclose.training.wandb_service import LONGEST, NOT_IN_PROJECTS


@dataclass(kw_only=True)
class LoraConfig:
    """Where adapters sit and how large they are."""

    r: int = 16
    """rank"""
    alpha: int = 32
    """scale: updates are multiplied by alpha / r"""
    layers: str | list[int] = "after_probe"
    """after_probe (the frozen probe's input stays the base model's own), all, or a list of decoder layers counted from 1"""
    dropout: float = 0.0
    """dropout on the adapters' input, at least 0 and below 1"""
    use_rslora: bool = False
    """scale by alpha / sqrt(r) instead"""
    use_dora: bool = False
    """weight-decomposed LoRA: more memory and time"""
    experts: bool = True
    """adapt the experts of mixture-of-experts layers too, each with rank r: as many adapters as experts, so mind the memory"""

    def __post_init__(self) -> None:
        with Checks(self, "lora") as check:
            check.number("r", least=1)
            check.number("alpha", above=0, why="twice lora.r for example")
            check.number("dropout", least=0, below=1, why="0 for none")
            if isinstance(self.layers, str):
                if check.sound("layers") and self.layers not in ("after_probe", "all"):
                    check.add(f"{check.named('layers')}; choose after_probe, all, or a list of layer numbers such as [5, 6]", "layers")
            elif check.sound("layers") and (not self.layers or min(self.layers) < 1):
                check.add(f"{check.named('layers')}; name some layers, counted from 1", "layers")

    def chosen(self, n_layers: int, probe_layer: int) -> list[int]:
        """Decoder layers that get adapters.

        Raises:
            ValueError: when a listed layer does not exist.
        """
        if self.layers == "after_probe":
            return list(range(probe_layer + 1, n_layers + 1))
        if self.layers == "all":
            return list(range(1, n_layers + 1))
        assert not isinstance(self.layers, str)
        bad = [layer for layer in self.layers if not 1 <= layer <= n_layers]
        if bad or not self.layers:
            raise ValueError(f"lora.layers {self.layers}: this decoder has layers 1..{n_layers}")
        return sorted(set(self.layers))


CONTROLS = ("none", "shuffled", "blank_targets", "blank_media")


@dataclass(kw_only=True)
class TargetsConfig:
    """How readings become targets."""

    false_alarm_budget: float | None = 0.03
    """share of the standard items of val on which the reading itself may raise an alarm, as far as so many items can tell
    (:mod:`gapclose.probes.posterior`); null: leave the reading's own threshold"""
    gate: float = 1.0
    """share of the items of every read concept that is kept, the most confident first; 1 keeps all"""
    sharpen: float = 1.0
    """exponent on the reading; .inf gives hard targets"""
    control: str = "none"
    """none; shuffled (readings permuted among the train items of a modality, evenly over what was read); blank_targets (targets from
    blanked media, training on the real ones) or blank_media (targets and training from blanked media)"""
    rounds: int = 1
    """times that targets are made and trained on: after each but the last, a probe is fitted again with the same labels on what the adapted
    model carries, chosen on val, and training goes on for as many epochs; ``patience`` may end it before"""
    patience: int = 1
    """rounds in a row whose probe reads val no better than the best one before (mean log-likelihood, as estimated) that end the rounds; the
    round that ends them is not trained"""

    def __post_init__(self) -> None:
        with Checks(self, "targets", infinite=("sharpen",)) as check:
            check.choice("control", CONTROLS)
            check.number("gate", above=0, most=1)
            check.number("rounds", "patience", least=1)
            check.number("sharpen", above=0, why=".inf for hard targets")
            check.number("false_alarm_budget", least=0, below=1, why="null leaves the reading's own threshold")
            if check.sound("rounds", "control") and self.rounds > 1 and self.control != "none":
                check.add(f"{check.named('rounds')}, and a control ({check.named('control')}) has one round", "rounds", "control")


@dataclass(kw_only=True)
class GuardsConfig:
    """What stops a training."""

    off: list[str] | None = None
    """guards that are turned off by name: over-rejection, parsing, retention, fresh, sentinel, loss, adapter. null: none under ``objective:
    grpo``, whose reward is a probe; else the sentinel's, since adapters change the last layer, where it reads, so that it also falls in
    trainings that do what they should"""
    patience: int = 2
    """epochs in a row in which a guard must object; a first epoch that rejects too much often recovers"""
    retention_budget: float = 0.05
    """accuracy on the items that must not change that may be lost, 0..1"""

    def __post_init__(self) -> None:
        with Checks(self, "guards") as check:
            check.choice("off", GUARDS, null="the objective's own")
            check.number("patience", least=1)
            check.number("retention_budget", least=0, most=1, why="0.05 for five points")

    def under(self, objective: str) -> GuardsConfig:
        """With the guards that are off written out: those that were named, or the objective's."""
        return self if self.off is not None else replace(self, off=[] if objective == "grpo" else ["sentinel"])

    @property
    def silent(self) -> list[str]:
        """The guards that are off; before an objective is known (:meth:`under`), those that were named."""
        return self.off or []


@dataclass(kw_only=True)
class DpoConfig:
    """Settings of ``objective: dpo``."""

    beta: float = 0.1
    """how strongly the base model holds the adapted one back, > 0: larger stays nearer"""
    anchors: bool = False
    """also a pair for every train item on which reading and model agree: that option over the likeliest one of another concept. Without
    them a model that never objects is only ever taught to object"""

    def __post_init__(self) -> None:
        with Checks(self, "dpo") as check:
            check.number("beta", above=0)


@dataclass(kw_only=True)
class GrpoConfig:
    """Settings of ``objective: grpo``."""

    num_generations: int = 8
    """answers sampled to each prompt, at least 2; must divide train.global_batch_size, which counts answers"""
    beta: float = 0.04
    """weight of KL(adapted || base) per token, > 0"""
    temperature: float = 1.0
    """of sampling, > 0"""

    def __post_init__(self) -> None:
        with Checks(self, "grpo") as check:
            check.number("num_generations", least=2, why="else answers cannot be compared")
            check.number("beta", "temperature", above=0)

    def prompts(self, train: TrainConfig) -> int:
        """Prompts in a global batch.

        Raises:
            ValueError: when it does not hold whole groups of answers.
        """
        if train.global_batch_size % self.num_generations:
            fitting = [n for n in range(2, train.global_batch_size + 1) if train.global_batch_size % n == 0]
            raise ValueError(
                f"train.global_batch_size {train.global_batch_size} counts answers and is no multiple of grpo.num_generations "
                f"{self.num_generations}, which may be {fitting}"
            )
        return train.global_batch_size // self.num_generations


GUARDS = ("over-rejection", "parsing", "retention", "fresh", "sentinel", "loss", "adapter")
"""names of the guards, see :mod:`gapclose.training.early_stopping`"""

TERMS = ("consistency", "gold", "retain")

SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt")
"""the schedulers of transformers that need no settings of their own"""
POLYNOMIAL_END = 1e-7
"""where transformers ends a polynomial decay; it refuses to start at or below it"""


@dataclass(kw_only=True)
class TrainConfig:
    """How adapters are trained."""

    epochs: int = 3
    """each of as many steps as one pass of the train items takes when they fill the batch beside the retained, with objective consistency, gold
    and consistency+gold alike: so they are compared at equal steps (dpo and grpo take as many as their pairs or prompts fill). The gap is
    measured again after each"""
    learning_rate: float = 2e-4
    """peak learning rate of AdamW, at least 0"""
    global_batch_size: int = 72
    """items per optimiser step over all processes, all terms together"""
    micro_batch_size: int = 8
    """items per forward on one process; memory, not results, depends on it"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, about a third more time"""
    cache_trunk: bool = False
    """compute once what lies below the first adapted layer (towers included), keep it on disk while training, and train and re-measure from
    there; ``gapclose validate`` says what it takes. Left off with a message where it does not fit or the model cannot"""
    lr_scheduler_type: str = "cosine"
    """scheduler of transformers: linear, cosine, cosine_with_restarts, polynomial, constant, constant_with_warmup or inverse_sqrt"""
    warmup: float = 0.1
    """share of all steps with rising learning rate, at least 0 and below 1"""
    weight_decay: float = 0.0
    """AdamW's, on adapter weights"""
    max_grad_norm: float = 1.0
    """gradient clipping; 0 switches it off"""
    logging_steps: int = 10
    """optimiser steps between loss lines"""
    save_steps: int = 0
    """checkpoint every so many optimiser steps besides the end of every epoch; 0: only then"""
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
    """Where ``tracking: wandb`` mirrors records to."""

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
