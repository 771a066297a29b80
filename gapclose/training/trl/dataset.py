"""Shared by the objectives that TRL trains: dataset rows, unsupported media, figures per epoch.

Shapes: N items, O options.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import transformers

from gapclose.core.errors import ErrorCollector, LossNotFinite
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item
from gapclose.data.jsonl import line_of
from gapclose.data.media import MediaLoader
from gapclose.models.loading import LoadedModel

if TYPE_CHECKING:
    from datasets import Dataset


TAKEN = ("image",)
"""kinds of media that TRL's trainers support; others would be dropped silently"""
EPOCH_FIGURES = ("loss", "reward", "kl", "entropy", "logps/", "completions/mean_length", "frac_reward_zero_std")
"""prefixes of TRL's log names that an epoch's record keeps"""


def check_supported_media(items: ItemSet, objective: str, trainer: str, problems: ErrorCollector) -> None:
    """Add to ``problems`` what TRL's trainer does not support, with the first train item concerned.

    These are kinds of media, and for GRPO items without images among items with images: TRL 1.16
    passes None for them to the processor, which fails.
    """
    train, file = items.select(split="train", purpose="gap"), items.root / "items.jsonl"
    for kind in sorted({k for i in train for k, _ in i.media} - set(TAKEN)):
        having = [i.id for i in train if kind in (k for k, _ in i.media)]
        problems.add(
            f"objective {objective}: TRL's {trainer} takes no {kind}; {len(having)} train items have it (first: {having[0]!r}, "
            f"{file}:{line_of(file, having[0])}); leave their {kind} out, or choose objective consistency, gold or consistency+gold"
        )
    bare = [i.id for i in train if not i.media]
    if objective == "grpo" and 0 < len(bare) < len(train):
        problems.add(
            f"objective grpo: TRL's {trainer} takes no train items without an image among others with one; {len(bare)} have none (first: "
            f"{bare[0]!r}, {file}:{line_of(file, bare[0])}); leave them out, or choose another objective"
        )


def messages_for_trl(item: Item, *, multimodal: bool) -> list[dict[str, Any]]:
    """Return the item's messages without paths (TRL inserts the images); plain strings for a
    tokenizer."""
    if not multimodal:
        return [{"role": m["role"], "content": _plain(m["content"])} for m in item.messages]
    return [{"role": m["role"], "content": _parts(m["content"])} for m in item.messages]


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [{k: v for k, v in part.items() if k != "path"} for part in parts]


def _plain(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def make_dataset(loaded: LoadedModel, items: Sequence[Item], media: MediaLoader, columns: Callable[[int], Mapping[str, Any]]) -> Dataset:
    """Build one row per item: its messages as ``prompt``, its images (decoded when the row is
    read) and ``columns(n)`` for item n."""
    from datasets import Dataset

    multimodal = isinstance(loaded.processor, transformers.ProcessorMixin)
    rows = [{"prompt": messages_for_trl(i, multimodal=multimodal), **columns(n)} for n, i in enumerate(items)]
    if not any(i.media for i in items):
        return Dataset.from_list(rows)

    def fill(places: dict[str, list[int]]) -> dict[str, list[Any]]:
        chosen = [rows[n] for n in places["place"]]
        images = [[media.load(k, path) for k, path in items[n].media] for n in places["place"]]
        return {key: [row[key] for row in chosen] for key in rows[0]} | {"images": images}

    return Dataset.from_dict({"place": list(range(len(items)))}).with_transform(fill)


class EpochFigures(transformers.TrainerCallback):
    """Log at the last step of every epoch, so that :func:`epoch_figures` covers complete epochs;
    stop at a non-finite loss."""

    def __init__(self, finite_only: bool) -> None:
        self.finite_only = finite_only

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if float(state.epoch).is_integer():
            control.should_log = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if self.finite_only and not math.isfinite(loss):
            raise LossNotFinite(f"the loss is {loss} at step {state.global_step}; lower train.learning_rate or use float32")


class OrderOfEpoch(transformers.TrainerCallback):
    """Set the epoch of the innermost sampler of TRL's data loader at the start of every epoch.

    The reason is that of :class:`gapclose.training.callbacks.SetSamplerEpoch`: when several
    processes resume within an epoch, transformers 5.23 and accelerate 1.15 do not set it. Remove
    when they do.
    """

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        sampler = train_dataloader.batch_sampler
        while hasattr(sampler, "batch_sampler"):
            sampler = sampler.batch_sampler
        sampler.sampler.set_epoch(math.floor(state.epoch + 1e-6))


def epoch_figures(history: Sequence[Mapping[str, Any]], epoch: int) -> dict[str, float]:
    """Average TRL's figures (rewards, KL, log-probabilities) over the steps of one epoch.

    Args:
        history: the trainer's log; every line is a mean over the steps since the line before.
    """
    lines = [line for line in history if "loss" in line]
    starts = [0, *(line["step"] for line in lines)]
    sums: dict[str, float] = {}
    steps: dict[str, int] = {}
    for line, start in zip(lines, starts, strict=False):
        if not epoch - 1 < line["epoch"] <= epoch:
            continue
        for name, value in line.items():
            if name.startswith(EPOCH_FIGURES) and value is not None and math.isfinite(value):
                sums[name] = sums.get(name, 0.0) + value * (line["step"] - start)
                steps[name] = steps.get(name, 0) + line["step"] - start
    return {name: total / steps[name] for name, total in sums.items()}


def forget_reference(model: Any) -> None:
    """Delete TRL's copy of the adapter, so that the reference is the base model.

    The copy would also be saved, hashed and exported with the adapter, and after a resume it would
    copy a trained adapter.
    """
    if "ref" in model.peft_config:
        model.delete_adapter("ref")
