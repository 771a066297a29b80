"""Settings of training: losses, batches, LoRA, targets, guards, TRL's objectives and tracking."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gapclose.core.config_checks import Checks
from gapclose.core.settings import AUTO


@dataclass(kw_only=True)
class LoraConfig:
    """Position and size of the LoRA adapters."""

    r: int = 16
    """rank"""
    alpha: int = 32
    """scale: updates are multiplied by alpha / r"""
    layers: str | list[int] = "after_probe"
    """after_probe (the frozen probe still reads the base model's residuals), all, or a list of
    decoder layers counted from 1"""
    dropout: float = 0.0
    """dropout on the adapters' input, at least 0 and below 1"""
    use_rslora: bool = False
    """scale by alpha / sqrt(r) instead"""
    use_dora: bool = False
    """weight-decomposed LoRA: more memory and time"""
    experts: bool = True
    """also adapt the experts of mixture-of-experts layers, each with rank r; memory grows with
    their number"""

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
        """Return the decoder layers that get adapters.

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
    """share of the standard items of val on which the reading may raise a false alarm, allowing
    for the uncertainty of the count (:mod:`gapclose.probes.posterior`); null: keep the reading's
    own threshold"""
    gate: float = 1.0
    """confidence filter: share of the items of every read concept that is kept, most confident
    first; 1 keeps all"""
    sharpen: float = 1.0
    """exponent on the reading; .inf gives hard targets"""
    control: str = "none"
    """none; shuffled (readings permuted among the train items of a modality, evenly over the
    read concepts, in every round, of which ``patience`` ends none); blank_targets (targets from
    blanked media, training on the real media); blank_media (targets and training from blanked
    media)"""
    twins: bool = False
    """use that twins (tag ``twin``) have different right concepts: the reading of an item is set
    against that of its twin before the operating point. Every gap item of train and val needs a
    twin"""
    first: str = "readings"
    """what the first round trains on: readings (targets from the base model's reading), or labels
    (the labelled items of fit alone, for a reading too faint to teach; needs objective
    consistency+gold and at least two rounds, which read the model so trained)"""
    rounds: int = 1
    """rounds of making targets and training on them, each ``train.epochs`` long. Before each
    later round a probe is fitted again, with the same labels, on the adapted model, and chosen
    on val; ``patience`` may end the rounds earlier"""
    patience: int = 1
    """the rounds end after this many in a row whose probe reads val no better than the best
    probe before (mean log-likelihood, point estimate); the last of these rounds is not trained"""

    def __post_init__(self) -> None:
        with Checks(self, "targets", infinite=("sharpen",)) as check:
            check.choice("control", CONTROLS)
            check.choice("first", ("readings", "labels"))
            check.number("gate", above=0, most=1)
            check.number("rounds", "patience", least=1)
            check.number("sharpen", above=0, why=".inf for hard targets")
            check.number("false_alarm_budget", least=0, below=1, why="null leaves the reading's own threshold")
            if check.sound("rounds", "control") and self.rounds > 1 and self.control.startswith("blank"):
                check.add(
                    f"{check.named('rounds')}, and a control with blanks ({check.named('control')}) has one round", "rounds", "control"
                )


@dataclass(kw_only=True)
class GuardsConfig:
    """Early stopping: which guards are on and when they end training."""

    off: list[str] | None = None
    """guards to turn off: over-rejection, parsing, retention, fresh, sentinel, loss, adapter.
    null: none under ``objective: grpo``, whose reward is a probe; otherwise the sentinel,
    because it reads the last layer, which adapters change even in successful training"""
    patience: int = 2
    """consecutive epochs in which a guard must object; a first epoch that rejects too often
    usually recovers"""
    retention_budget: float = 0.05
    """accuracy on the retention items that may be lost, 0..1"""

    def __post_init__(self) -> None:
        with Checks(self, "guards") as check:
            check.choice("off", GUARDS, null="the objective's own")
            check.number("patience", least=1)
            check.number("retention_budget", least=0, most=1, why="0.05 for five points")

    def under(self, objective: str) -> GuardsConfig:
        """Return the settings with ``off`` filled in: the guards named there, or the objective's
        default."""
        return self if self.off is not None else replace(self, off=[] if objective == "grpo" else ["sentinel"])

    @property
    def silent(self) -> list[str]:
        """The guards that are off; only those named until an objective is known (:meth:`under`)."""
        return self.off or []


@dataclass(kw_only=True)
class DpoConfig:
    """Settings of ``objective: dpo``."""

    beta: float = 0.1
    """strength of the pull towards the base model, > 0; a larger value stays closer to it"""
    anchors: bool = False
    """also make a pair for every train item on which reading and model agree: the agreed option
    over the most probable one of another concept. Without these, a model that never objects only
    learns to object"""

    def __post_init__(self) -> None:
        with Checks(self, "dpo") as check:
            check.number("beta", above=0)


@dataclass(kw_only=True)
class GrpoConfig:
    """Settings of ``objective: grpo``."""

    num_generations: int = 8
    """answers sampled per prompt, at least 2; must divide train.global_batch_size, which counts
    answers"""
    beta: float = 0.04
    """weight of KL(adapted || base) per token, > 0"""
    temperature: float = 1.0
    """sampling temperature, > 0"""

    def __post_init__(self) -> None:
        with Checks(self, "grpo") as check:
            check.number("num_generations", least=2, why="else answers cannot be compared")
            check.number("beta", "temperature", above=0)

    def prompts(self, train: TrainConfig) -> int:
        """Return the number of prompts in a global batch.

        Raises:
            ValueError: when the global batch is no multiple of ``num_generations``.
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
"""the schedulers of transformers that have no required settings"""
STEADY = ("constant", "constant_with_warmup", "inverse_sqrt")
"""schedulers that do not depend on the number of epochs, so that training may end before the last"""
POLYNOMIAL_END = 1e-7
"""final learning rate of transformers' polynomial decay; the peak must be above it"""


@dataclass(kw_only=True)
class TrainConfig:
    """How adapters are trained."""

    epochs: int = 3
    """number of epochs. For the objectives consistency, gold and consistency+gold, an epoch has
    as many steps as one pass of the train items takes, with the retention items in every batch;
    so these objectives are compared at equal steps. For dpo and grpo the pairs or prompts
    determine the steps. The gap is measured after each epoch"""
    learning_rate: float = 2e-4
    """peak learning rate of AdamW, at least 0"""
    patience: int | None = None
    """end a round after this many epochs in a row without a lower consistency loss on val (for
    other objectives: without a better action on val); null: train all epochs. Controls of training
    always train all. Needs a scheduler that does not depend on the number of epochs, such as
    constant_with_warmup"""
    global_batch_size: int = 72
    """items per optimiser step, over all processes and terms"""
    micro_batch_size: int = 8
    """items per forward on one process; affects memory, not results"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, about a third more time"""
    cache_trunk: bool | str = AUTO
    """hidden-state cache: compute everything below the first adapted layer once (towers
    included), keep it on disk during training, and start training and measurement from there;
    ``gapclose validate`` prints its size. Skipped with a message if it does not fit or the model
    does not support it. auto: true if training has several epochs, its files take at most a
    quarter of the free disk, and a first try gives the model's own results; ``auto.json`` of the
    run keeps the decision"""
    lr_scheduler_type: str = "cosine"
    """scheduler of transformers: linear, cosine, cosine_with_restarts, polynomial, constant,
    constant_with_warmup or inverse_sqrt"""
    warmup: float = 0.1
    """share of all steps during which the learning rate rises, at least 0 and below 1"""
    weight_decay: float = 0.0
    """weight decay of AdamW on the adapter weights"""
    max_grad_norm: float = 1.0
    """largest gradient norm, above which gradients are clipped; 0: no clipping"""
    logging_steps: int = 10
    """optimiser steps between loss lines"""
    save_steps: int = 0
    """optimiser steps between checkpoints, in addition to the one after every epoch; 0: only
    after epochs"""
    consistency: float = 1.0
    """weight of the consistency term, if the objective has it"""
    gold: float = 1.0
    """weight of cross-entropy on the labelled fit items, if the objective has it"""
    retain: float = 1.0
    """weight of KL(base || adapted) on the retention items, if the objective has it; 0 omits
    them"""
    retain_share: float = 0.333
    """share of retention items in every global batch, 0..1"""
    gold_share: float = 0.25
    """share of labelled items in every global batch under objective consistency+gold, 0..1"""
    twins: bool = False
    """put both items of a twin pair (tag ``twin``) into the same global batch if the confidence
    filter keeps both; false: sample items independently"""
    retain_tokens: int = 512
    """number of the base model's most probable next tokens that the KL compares; a smaller
    vocabulary is compared completely"""

    def __post_init__(self) -> None:
        with Checks(self, "train") as check:
            check.number("epochs", "patience", "global_batch_size", "micro_batch_size", "retain_tokens", "logging_steps", least=1)
            check.number("save_steps", "learning_rate", "weight_decay", "max_grad_norm", *TERMS, least=0)
            check.number("warmup", least=0, below=1, why="a share of all steps; a number of steps is not taken")
            check.number("retain_share", "gold_share", least=0, most=1)
            check.choice("lr_scheduler_type", SCHEDULERS)
            check.choice("cache_trunk", (AUTO, True, False))
            if self.patience is not None and check.sound("patience", "lr_scheduler_type") and self.lr_scheduler_type not in STEADY:
                message = f"{check.named('patience')} with train.lr_scheduler_type {self.lr_scheduler_type}, which decays over train.epochs"
                check.add(f"{message}; choose one of {list(STEADY)}", "patience", "lr_scheduler_type")
            if self.lr_scheduler_type == "polynomial" and check.sound("learning_rate") and self.learning_rate <= POLYNOMIAL_END:
                message = (
                    f"train.lr_scheduler_type polynomial ends at {POLYNOMIAL_END:g}, and train.learning_rate is {self.learning_rate:g}"
                )
                check.add(f"{message}; raise it, or take another scheduler", "lr_scheduler_type", "learning_rate")

    def accumulation(self, processes: int) -> int:
        """Return the micro-batches per optimiser step on each process.

        Raises:
            ValueError: when the global batch does not divide evenly; names micro-batch sizes that
                fit.
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
        """Return the items of each term in a global batch; they add up to ``global_batch_size``.

        Raises:
            ValueError: when a term with a positive weight gets no item.
        """
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
        """Return the optimiser steps of an epoch over ``n_train`` items."""
        return max(1, n_train // (self.global_batch_size - self.counts()["retain"]))
