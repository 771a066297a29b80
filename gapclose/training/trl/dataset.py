"""What the two objectives that TRL trains share: items as rows of a dataset, what TRL cannot take, figures of every epoch.

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
"""kinds of media that the rows of TRL's trainers can carry; another kind would be dropped without a word"""
EPOCH_FIGURES = ("loss", "reward", "kl", "entropy", "logps/", "completions/mean_length", "frac_reward_zero_std")
"""beginnings of the names, among all that TRL logs, that an epoch's record keeps"""


def check_supported_media(items: ItemSet, objective: str, trainer: str, problems: ErrorCollector) -> None:
    """Add to ``problems`` what TRL's trainer cannot take, with the first train item concerned: kinds of media, and for GRPO text alone
    among images (TRL 1.16 hands the processor a None for them, and it fails)."""
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
    """The item's messages without paths (TRL puts the images in); plain strings where there is only a tokenizer."""
    if not multimodal:
        return [{"role": m["role"], "content": _plain(m["content"])} for m in item.messages]
    return [{"role": m["role"], "content": _parts(m["content"])} for m in item.messages]


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [{k: v for k, v in part.items() if k != "path"} for part in parts]


def _plain(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def make_dataset(loaded: LoadedModel, items: Sequence[Item], media: MediaLoader, columns: Callable[[int], Mapping[str, Any]]) -> Dataset:
    """One row per item: its messages as ``prompt``, its images (decoded when the row is read), and what ``columns(n)`` gives for item n."""
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
    """Has the last step of every epoch logged, so that :func:`epoch_figures` is about whole epochs; stops at a loss that is not finite."""

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
    """Tells the innermost sampler of TRL's data loader its epoch, as :class:`gapclose.training.callbacks.SetSamplerEpoch` does for the own trainer: of several
    processes that go on from within an epoch, transformers 5.23 and accelerate 1.15 tell nobody. Remove when they do."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        sampler = train_dataloader.batch_sampler
        while hasattr(sampler, "batch_sampler"):
            sampler = sampler.batch_sampler
        sampler.sampler.set_epoch(math.floor(state.epoch + 1e-6))


def epoch_figures(history: Sequence[Mapping[str, Any]], epoch: int) -> dict[str, float]:
    """Means over the optimiser steps of one epoch of what TRL logged: rewards, KL, log-probabilities.

    Args:
        history: the trainer's log, whose every line is a mean over the steps since the line before.
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
    """Take out the copy of the adapter that TRL keeps as its reference, which then is the base model: the adapter switched off.

    The copy would also be saved, hashed and exported with the adapter, and after a resumption be a copy of a trained one.
    """
    if "ref" in model.peft_config:
        model.delete_adapter("ref")
