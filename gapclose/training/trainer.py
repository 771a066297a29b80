"""Training: a transformers.Trainer whose loss does not depend on how batches are split.

A step's global batch mixes terms (consistency, gold, retain) in a fixed proportion. Each term is
summed over its items and divided by their number in the accumulated step over all processes.
Gradient accumulation, micro-batch size and number of processes therefore change only rounding.

Shapes: P answer positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import DistributedType

from gapclose.core.distributed import refuse_other_engine
from gapclose.core.errors import LossNotFinite
from gapclose.core.logging import get_logger, shows_bars
from gapclose.data.media import MediaLoader
from gapclose.models.loading import LoadedModel
from gapclose.models.sharding import is_sharded, is_zero3, wrap_layers
from gapclose.models.structure import train_adapters_alone
from gapclose.observe.branch_trial import can_branch
from gapclose.observe.forward import forward_part
from gapclose.observe.frozen_cache import HiddenStateCache
from gapclose.training.adapter_io import save_adapter
from gapclose.training.callbacks import EvaluateAfterEpoch, ProgressCallback, SetSamplerEpoch
from gapclose.training.collator import Collator
from gapclose.training.config import TERMS, TrainConfig
from gapclose.training.lora import enable_checkpointing
from gapclose.training.losses import answer_nll, topk_kl
from gapclose.training.sampler import Example, MixedSampler

logger = get_logger(__name__)

FEW_STEPS = 10
"""a warning is printed below this number of optimiser steps, because the model hardly changes"""


class GapTrainer(transformers.Trainer):
    """Trainer of :class:`Example`; the loss is the sum of the terms, weighted by
    :class:`TrainConfig`."""

    # attribute of transformers.Trainer: compute_loss already divides by the items of the whole step
    loss_is_scaled_for_ga = True

    def __init__(self, *, train: TrainConfig, sampler: MixedSampler, finite_only: bool, **kwargs: Any) -> None:
        self.finite_only = finite_only
        self.term_weights = torch.tensor([getattr(train, t) for t in TERMS])
        self.sampler = sampler
        self.step_counts = torch.zeros(len(TERMS))
        self.logged, self.logged_steps = torch.zeros(len(TERMS) + 1), 0  # the terms, and the floor of the first
        super().__init__(**kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> MixedSampler:
        return self.sampler

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Count the items of every term in the step, over all processes; give sharded ones equal
        parts."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            mine = torch.stack([b["counts"] for b in batches]).sum(0).to(device)
            self.logged_steps += 1
            self.step_counts = self._over_processes(mine, "sum")
            if is_sharded(cast(torch.nn.Module, self.model)):
                cast(Collator, self.data_collator).level(batches)
        return batches, items

    def _over_processes(self, values: torch.Tensor, reduction: str) -> torch.Tensor:
        if self.args.world_size == 1:
            return values
        return cast(torch.Tensor, self.accelerator.reduce(values.clone(), reduction=reduction))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save only the adapter; under an engine transformers would gather the complete base
        model."""
        save_adapter(cast(torch.nn.Module, self.model), Path(output_dir or cast(str, self.args.output_dir)))

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Under ZeRO-3, run the backward pass of each part right after its forward.

        DeepSpeed's hooks count a module's pending gradients from one forward to the next backward
        pass.
        """
        parts, state = inputs["parts"], self.accelerator.gradient_state
        if len(parts) == 1 or not is_zero3(model):
            return super().training_step(model, inputs, num_items_in_batch)
        last, losses = state.sync_gradients, list[torch.Tensor]()
        try:
            for n, part in enumerate(parts, start=1):  # step on the last part
                state._set_sync_gradients(last and n == len(parts))
                losses.append(super().training_step(model, inputs | {"parts": [part]}, num_items_in_batch))
        finally:
            state._set_sync_gradients(last)
        return torch.stack(losses).sum()

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Return this micro-batch's share of the step's loss, times the number of processes.

        The factor is there because DDP averages gradients.

        Raises:
            LossNotFinite: in all processes, under ``finite_only``.
        """
        train_adapters_alone(model)  # transformers has just put all modules into training mode
        sums = [term_sums(model, part) for part in inputs["parts"]]
        per_item = torch.stack(sums).sum(0) / self.step_counts.clamp_min(1).to(sums[0].device)
        entropy = torch.stack([part["entropy"] for part in inputs["parts"]]).sum().to(per_item)
        floor = entropy / self.step_counts[0].clamp_min(1).to(per_item)
        self.logged = self.logged.to(per_item) + torch.cat([per_item.detach(), floor[None]]) * self.args.world_size
        loss = (per_item * self.term_weights.to(per_item.device)).sum() * self.args.world_size
        if self.finite_only:
            whole = self._over_processes(loss.detach(), "mean")  # all processes stop alike
            if not torch.isfinite(whole):
                raise LossNotFinite(
                    f"the loss is {whole.item()} at step {self.state.global_step}; lower train.learning_rate or use float32"
                )
        return (loss, None) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean of every term since the last log line, and the consistency loss above its
        floor, the entropy of the targets."""
        steps = self.logged_steps  # not the global step, which includes steps before a resume
        if "loss" in logs and steps > 0:
            terms = self._over_processes(self.logged, "mean")
            logs |= {f"loss/{t}": round(float(v) / steps, 6) for t, v, w in zip(TERMS, terms[:-1], self.term_weights, strict=True) if w > 0}
            if self.term_weights[0] > 0:
                logs["loss/excess"] = round(float(terms[0] - terms[-1]) / steps, 6)
            self.logged, self.logged_steps = torch.zeros(len(TERMS) + 1), 0
        super().log(logs, *args, **kwargs)


def term_sums(model: Any, part: dict[str, Any]) -> torch.Tensor:
    """Return the sums of the three terms over one part, (3,), with gradient."""
    logp = forward_part(model, part)  # (P, V)
    sums = [answer_nll(logp, *(part[k][part["term"] == t] for k in ("place", "token", "weight"))) for t in (0, 1)]
    retain = topk_kl(logp[part["retain_place"]], part["base_logps"], part["base_tokens"]) if "base_logps" in part else logp.new_zeros(())
    return torch.stack([*sums, retain])


def training_arguments(config: TrainConfig, directory: Path, *, seed: int, steps: int) -> dict[str, Any]:
    """Return the arguments shared by all trainers, including TRL's.

    ``steps`` is the total of optimiser steps; a warning is printed below :data:`FEW_STEPS`.
    """
    if steps < FEW_STEPS:
        logger.warning(f"{steps} optimiser steps in all; for more, lower train.global_batch_size or raise train.epochs")
    return {
        "output_dir": str(directory),
        "per_device_train_batch_size": config.micro_batch_size,
        "gradient_accumulation_steps": config.accumulation(PartialState().num_processes),
        "num_train_epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler_type,
        "warmup_steps": config.warmup if steps > 1 else 0,  # a single step must not have learning rate 0
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "logging_steps": config.logging_steps,
        "save_strategy": "steps" if config.save_steps else "no",
        "save_steps": config.save_steps or 500,
        "save_total_limit": 2,
        "seed": seed,
        "data_seed": seed,
        "report_to": [],
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": PartialState().distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU) and not on_gpu(),
        "disable_tqdm": True,
    }


def on_gpu() -> bool:
    """Return whether the launch provides a device other than the CPU."""
    return PartialState().device.type != "cpu"  # pyright: ignore[reportOptionalMemberAccess]


def use_one_device(arguments: transformers.TrainingArguments) -> None:
    """Use one GPU per process: with several visible GPUs transformers would use DataParallel,
    which cannot split our batches. ``accelerate launch`` uses them all."""
    arguments._n_gpu = min(arguments.n_gpu, 1)


def make_trainer(
    loaded: LoadedModel,
    examples: Sequence[Example],
    media: MediaLoader,
    config: TrainConfig,
    directory: Path,
    *,
    n_train: int,
    seed: int,
    after_epoch: Callable[[int], bool | None],
    finite_only: bool = True,
    callbacks: Sequence[transformers.TrainerCallback] = (),
    trunk: HiddenStateCache | None = None,
    branch_trial: bool = True,
) -> GapTrainer:
    """Build a trainer over ``examples`` that writes checkpoints to ``directory``.

    Args:
        n_train: items of the train split without retention items, before the confidence filter;
            determines the length of an epoch.
        after_epoch: called with the epoch after every epoch; returns whether training must stop.
        finite_only: raise LossNotFinite, in all processes together, if the loss is not finite.
        trunk: hidden-state cache of all examples; None: every step computes everything.
        branch_trial: whether to try if the answers of an item can share a row; False: they do not.
    """
    if config.gradient_checkpointing:
        enable_checkpointing(loaded)
    sampler = MixedSampler(examples, config.counts(), seed, steps=config.epoch_steps(n_train), twins=config.twins)
    steps = sampler.steps * config.epochs
    arguments = transformers.TrainingArguments(**training_arguments(config, directory, seed=seed, steps=steps))
    use_one_device(arguments)
    bar = [ProgressCallback()] if shows_bars() else []
    branching = branch_trial and can_branch(loaded, [e.item for e in examples], media) if trunk is None else trunk.branching
    trainer = GapTrainer(
        train=config, sampler=sampler, finite_only=finite_only, model=loaded.model, args=arguments, train_dataset=list(examples),
        data_collator=Collator(loaded, media, trunk, examples, branching=branching), callbacks=[*bar, SetSamplerEpoch(sampler), *callbacks, EvaluateAfterEpoch(after_epoch)],
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    refuse_other_engine(trainer.accelerator)
    wrap_layers(trainer.accelerator, loaded.model)
    return trainer
