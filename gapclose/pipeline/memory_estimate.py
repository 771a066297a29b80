"""Estimate the memory of a run before any weight is read.

The forward and backward pass of a training step (:mod:`gapclose.training.trainer`) run on tensors
that have sizes and no values. The model has the real architecture and the configured adapters.
Every tensor is counted as long as it lives (:mod:`gapclose.core.memory_meter`).

The figures include fused attention, media towers, gradients that stop at the lowest adapter,
recomputed activations, and adapters of experts, which PEFT adds up into a copy of all experts of a
layer. They do not include workspace of kernels, the CUDA context (half a GB), memory lost to
fragmentation, and under data parallelism one more copy of the gradients.

Shapes: B batch, T tokens, O options.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gapclose.core.files import format_bytes, free_bytes, size_of
from gapclose.core.memory_meter import Meter
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item
from gapclose.models.branches import branches_unsupported
from gapclose.models.hooks import answer_logits, last_logits
from gapclose.models.loading import LoadedModel
from gapclose.models.quantization import bytes_saved
from gapclose.models.structure import decoder_layers, train_adapters_alone, unwrap
from gapclose.pipeline.auto_settings import costliest, stores_measured
from gapclose.pipeline.config import Config
from gapclose.training.collator import Collator
from gapclose.training.config import TERMS
from gapclose.training.lora import enable_checkpointing
from gapclose.training.sampler import Example
from gapclose.training.trainer import term_sums

SAVED = 34
"""bytes per token and unit of width that a decoder layer keeps for the backward pass in half
precision, without the attention matrix (Korthikanti et al., arXiv 2205.05198, equation 1)"""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Peak memory of one process, in bytes."""

    weights: int
    adapters: int
    """adapters, their gradients, and both AdamW states"""
    peak: int
    by_formula: bool = False
    """whether a formula estimates the activations, because the computation depends on values"""

    @property
    def activations(self) -> int:
        """The rest: tensors kept for the backward pass, inputs, logits."""
        return self.peak - self.weights - self.adapters


def weight_bytes(model: Any, quantisation: str | None) -> int:
    """Return the bytes of all weights and buffers without adapters; shared tensors count once."""
    kept = [t for n, t in [*model.named_parameters(), *model.named_buffers()] if "lora_" not in n]
    sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in kept}
    return sum(sizes.values()) - bytes_saved(quantisation, decoder_layers(model))


def training_step(loaded: LoadedModel, parts: Sequence[dict[str, Any]], config: Config) -> Memory:
    """Estimate the memory of a training step on one process.

    Args:
        loaded: model on the meta device, with adapters.
        parts: parts of one micro-batch from :class:`gapclose.training.collator.Collator`.
    """
    model, weights = loaded.model, weight_bytes(loaded.model, config.model.quantisation)
    if config.train.gradient_checkpointing:
        enable_checkpointing(loaded)
    train_adapters_alone(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    own, rounds = sum(p.nbytes for p in trained), config.train.accumulation(1)
    inputs = [t for part in parts for t in _tensors(part)]
    with Meter() as meter:
        states = [torch.empty_like(p) for p in trained for _ in range(2)]
        if rounds > 1:  # gradients of earlier micro-batches
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
        meter.count(*model.parameters(), *model.buffers(), *inputs)
        try:
            torch.stack([term_sums(model, sized(part)) for part in parts]).sum().backward()
        except (NotImplementedError, RuntimeError):
            return _by_formula(loaded, parts, weights, 4 * own, recomputed=config.train.gradient_checkpointing)
    del states
    model.zero_grad(set_to_none=True)
    waiting = (rounds - 1) * sum(t.nbytes for t in inputs)  # the trainer prepares all micro-batches of a step at once
    saved = bytes_saved(config.model.quantisation, decoder_layers(model))
    return Memory(weights=weights, adapters=4 * own, peak=meter.peak + waiting - saved)


def _by_formula(loaded: LoadedModel, parts: Sequence[dict[str, Any]], weights: int, adapters: int, *, recomputed: bool) -> Memory:
    """Estimate the memory by formula.

    Counts :data:`SAVED` for every layer from the lowest adapted one on, and twice the float32
    logits of the answer positions.

    With recomputed activations, :data:`SAVED` counts for one layer, plus the input of every layer.
    """
    base = unwrap(loaded.model)
    adapted = [any(p.requires_grad for p in block.parameters()) for block in decoder_layers(base)]
    layers = len(adapted) - adapted.index(True)
    tokens = sum(part["prompt"]["input_ids"].numel() for part in parts)
    kept = tokens * loaded.width * base.dtype.itemsize * (layers + SAVED // 2 if recomputed else layers * SAVED // 2)
    logits = 2 * 4 * sum(len(part["rows"]) for part in parts) * base.get_input_embeddings().weight.shape[0]
    return Memory(weights=weights, adapters=adapters, peak=weights + adapters + kept + logits, by_formula=True)


@torch.no_grad()
def observed_batch(loaded: LoadedModel, prompt: dict[str, torch.Tensor], quantisation: str | None, *, longer: int = 0) -> int | None:
    """Estimate the bytes of observing one batch (:mod:`gapclose.observe.extract`) with weights.

    Counts the forward that scores options and the forward that starts an answer.

    Args:
        longer: number of options with several tokens. Each is scored on a copy of the key-value
            cache, which is made while the previous copy still lives.

    Returns:
        Bytes, or None if the model's computation depends on values.
    """
    model, size = loaded.model, len(prompt["input_ids"])
    last = torch.full((size,), prompt["input_ids"].shape[1] - 1)
    with Meter() as meter:
        meter.count(*model.parameters(), *model.buffers(), *prompt.values())
        inputs = sized({"prompt": prompt})["prompt"]
        try:
            with answer_logits(model, torch.arange(size), last):
                output = model(**inputs, use_cache=longer > 0)
            output.logits.float().log_softmax(-1)
            copies = [copy.deepcopy(output.past_key_values) for _ in range(min(longer, 2))]
            del copies
            with last_logits(model):  # the scores are still in memory
                model(**inputs, use_cache=True).logits.float()
        except (NotImplementedError, RuntimeError):
            return None
    return meter.peak - bytes_saved(quantisation, decoder_layers(model))


def micro_batch(loaded: LoadedModel, gap: Item, retain: Item | None, items: ItemSet, config: Config) -> list[dict[str, Any]]:
    """Make the parts of a micro-batch of one gap and one retention item, repeated by share."""
    size, counts = config.train.micro_batch_size, config.train.counts()
    kept = min(config.train.retain_tokens, loaded.model.get_input_embeddings().weight.shape[0])
    held = round(size * counts["retain"] / config.train.global_batch_size) if retain else 0
    term = "consistency" if counts["consistency"] else "gold"
    options = len(gap.options)
    aimed = np.full(options, 1 / options)
    examples = [Example(item=gap, term=term, weights=aimed) for _ in range(size - held)]
    if retain:
        logps, tokens = torch.zeros(kept), torch.zeros(kept, dtype=torch.int32)
        examples += [Example(item=retain, term="retain", base_logps=logps, base_tokens=tokens) for _ in range(held)]
    return Collator(loaded, loaded.media(items), branching=branches_unsupported(loaded.model) is None)(examples)["parts"]


def text_batch(size: int, tokens: int, options: int = 6) -> dict[str, Any]:
    """Make a part of ``size`` text prompts of ``tokens`` tokens, without a processor.

    Args:
        options: number of one-token options of each prompt.
    """
    rows = torch.arange(size)
    return {
        "prompt": {key: torch.ones(size, tokens, dtype=torch.long) for key in ("input_ids", "attention_mask")},
        "rows": rows,
        "positions": torch.full((size,), tokens - 1),
        "place": rows.repeat_interleave(options),
        "token": torch.zeros(size * options, dtype=torch.long),
        "weight": torch.full((size * options,), 1 / options),
        "term": torch.full((size * options,), TERMS.index("consistency")),
        "retain_place": torch.zeros(0, dtype=torch.long),
    }


def sized(part: dict[str, Any]) -> dict[str, Any]:
    """Move pixels, audio and weights of a part to the meta device.

    Integers and masks stay, because models compute shapes from them.
    """

    def bare(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: bare(k, v) for k, v in value.items()}
        known = not isinstance(value, torch.Tensor) or not value.is_floating_point() or "mask" in key
        return value if known else value.to("meta")

    return {key: bare(key, value) for key, value in part.items()}


def _tensors(part: dict[str, Any]) -> Iterator[torch.Tensor]:
    for value in part.values():
        if isinstance(value, dict):
            yield from _tensors(value)
        elif isinstance(value, torch.Tensor):
            yield value


def observation_bytes(items: ItemSet, config: Config, *, n_layers: int, width: int, itemsize: int) -> dict[str, int]:
    """Estimate the bytes that `measure` and `close` store: residuals and scores, for all prompts.

    Controls with blanked media are not counted.

    Args:
        itemsize: bytes per value in the model's dtype.
    """

    def stored(split: str, layers: int, purpose: Sequence[str] = ("gap", "transfer", "retain")) -> int:
        chosen = items.select(split=split, purpose=purpose)
        return len(chosen) * layers * width * itemsize + 4 * sum(len(i.options) for i in chosen)

    candidates = {*config.probe.candidates(n_layers), n_layers}
    fit = stored("fit", len(candidates), ("gap",))
    everywhere = sum(stored(s, n_layers + 1, ("gap",)) for s in ("fit", "test")) if config.controls.layers else 0
    retained = len(items.select(split="train", purpose="retain")) * 8 * config.train.retain_tokens if config.train.retain else 0
    config = costliest(config)
    epochs = config.train.epochs * config.targets.rounds
    closing = stored("val", 2) * (1 + epochs) + stored("test", 2) * 2 + stored("train", 1, ("gap",)) + retained
    if config.targets.rounds > 1:  # each is read at every layer
        closing += config.targets.rounds * (sum(stored(s, n_layers, ("gap",)) for s in ("fit", "val")) + stored("train", 1, ("gap",)))
    one_draw = stored("fit", len(candidates) - 1, ("gap",)) + stored("val", 1, ("gap",)) + stored("test", 1, ("gap",))
    random = one_draw if config.controls.random_weights else 0  # one network at a time
    others = len(config.prompts.names) - 1
    again = others * stored("test", 1, ("gap",))
    fit += others * stored("fit", 1, ("gap",)) if config.prompts.refit else 0
    return {"measure": fit + stored("test", 2) + everywhere + again + random, "close": fit + closing + 2 * again + random}


def refuse_small_disk(loaded: LoadedModel, items: ItemSet, config: Config, *, closing: bool) -> None:
    """Refuse a run whose remaining observations and complete exports do not fit on the disk.

    Its other files are not counted. Nothing is checked with ``observe.shared``, because then
    observations may come from other runs.

    Raises:
        ValueError: with the free and the needed space.
    """
    if config.observe.shared:
        return
    directory, size = Path(config.run_dir), next(unwrap(loaded.model).parameters()).element_size()
    stored = observation_bytes(items, config, n_layers=len(loaded.layers), width=loaded.width, itemsize=size)
    wholes = exported_bytes(loaded, config) if closing else 0
    there = sum(size_of(path) for path in (directory / "observations").rglob("*"))
    needed = stored["close" if closing else "measure"] + wholes - there
    if needed > (free := free_bytes(directory)):
        raise ValueError(
            f"{directory}: {format_bytes(free)} are free there, and this run still writes {format_bytes(needed)} of observations"
            f"{' and models' if wholes else ''}; make room, or name another place (--run_dir)"
        )


def refuse_small_disk_for_exports(loaded: LoadedModel, config: Config) -> None:
    """Refuse merged and omni exports that do not fit on the disk in addition to existing files.

    A merged export replaces an earlier one only when it is complete.

    Raises:
        ValueError: with the free and the needed space.
    """
    directory, needed = Path(config.run_dir), exported_bytes(loaded, config)
    if needed > (free := free_bytes(directory)):
        raise ValueError(
            f"{directory}: {format_bytes(free)} are free there, and the models that are exported take {format_bytes(needed)}; make room"
        )


def exported_bytes(loaded: LoadedModel, config: Config) -> int:
    """Estimate the bytes of the merged and omni exports from the loaded weights."""
    return weight_bytes(loaded.model, config.model.quantisation) * (config.export.merged + config.export.omni)


def cached_items(items: ItemSet, config: Config) -> int:
    """Return how many items ``train.cache_trunk`` stores at most.

    These are the training items, if all pass the confidence filter, and without
    ``observe.share_prefix`` the items of val.
    """
    gap = ["gap"] if config.train.consistency else []
    trained = items.select(split="train", purpose=[*gap, *(["retain"] if config.train.retain else [])])
    labelled = len(items.select(split="fit", purpose="gap")) if config.train.gold else 0
    measured = len(items.select(split="val", purpose=("gap", "transfer", "retain"))) if stores_measured(config.observe) else 0
    return len(trained) + labelled + measured
