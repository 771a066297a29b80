"""Direct preference optimisation by TRL: prefer the reading's option to the base model's answer.

For a pair (chosen w, rejected l) the loss is ``- log sigmoid(beta [log p(w|x)/p0(w|x) - log
p(l|x)/p0(l|x)])``, with p0 the base model, i.e. the adapter switched off (Rafailov et al. 2023,
arXiv 2305.18290, equation 7).

Shapes: N items, O options.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from gapclose.core.logging import get_logger
from gapclose.data.items import Item
from gapclose.data.media import MediaLoader
from gapclose.models.chat_template import chat_text
from gapclose.models.loading import LoadedModel
from gapclose.training.config import DpoConfig, TrainConfig
from gapclose.training.objectives import require_trl
from gapclose.training.trainer import training_arguments, use_one_device
from gapclose.training.trl.dataset import forget_reference, make_dataset

logger = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One preference: indices of two options of an item."""

    item: Item
    chosen: int
    rejected: int


def preference_pairs(
    items: Sequence[Item], target: np.ndarray, scores: np.ndarray, keep: np.ndarray, *, anchors: bool = False
) -> list[Pair]:
    """Pair the target's best option with the base model's best one, where they differ.

    Args:
        target: (N, O) Jeffrey targets, 0 beyond an item's options. scores: (N, O) of the base
            model, -inf beyond. keep: (N,) bool.
        anchors: where they agree, pair that option with the highest-scored one of another concept.

    Raises:
        ValueError: when they differ on no kept item.
    """
    wanted, said = target.argmax(1), scores.argmax(1)
    if not (keep & (wanted != said)).any():
        raise ValueError(
            f"objective dpo: on all {int(keep.sum())} train items the reading prefers what the model says anyway, so there are no pairs; "
            "choose objective consistency, or another targets.false_alarm_budget"
        )
    pairs = []
    for n in np.flatnonzero(keep).tolist():
        item, chosen, rejected = items[n], int(wanted[n]), int(said[n])
        if chosen == rejected:
            others = [o for o, option in enumerate(item.options) if option.concept != item.options[chosen].concept]
            if not anchors or not others:
                continue
            rejected = max(others, key=lambda o: scores[n, o])
        pairs.append(Pair(item=item, chosen=chosen, rejected=rejected))
    return pairs


def count_by_concept(pairs: Sequence[Pair]) -> dict[str, int]:
    """Count the pairs by preferred concept."""
    return dict(Counter(p.item.options[p.chosen].concept for p in pairs))


def in_text(loaded: LoadedModel, pair: Pair) -> dict[str, str]:
    """Return prompt, chosen and rejected answer as text, up to the end-of-turn token.

    Templates put a line break after that token, which no model has to predict. With the line break,
    a preference could be satisfied by it alone.
    """
    prompt = chat_text(loaded.processor, pair.item.messages)

    def answer(option: int) -> str:
        text = pair.item.options[option].text
        whole = chat_text(loaded.processor, pair.item.messages, text)
        return whole.removeprefix(prompt).rstrip() if whole.startswith(prompt) else text + loaded.tokenizer.eos_token

    return {"prompt": prompt, "chosen": answer(pair.chosen), "rejected": answer(pair.rejected)}


def in_messages(loaded: LoadedModel, pair: Pair) -> dict[str, Any]:
    """Return chosen and rejected as chat messages, for items without images: TRL would add its
    own special tokens to text."""
    answers = {"chosen": pair.chosen, "rejected": pair.rejected}
    return {k: [{"role": "assistant", "content": pair.item.options[o].text}] for k, o in answers.items()}


def make_dpo_trainer(
    loaded: LoadedModel,
    pairs: Sequence[Pair],
    media: MediaLoader,
    train: TrainConfig,
    config: DpoConfig,
    directory: Path,
    *,
    seed: int,
    callbacks: Sequence[transformers.TrainerCallback],
) -> transformers.Trainer:
    """Build TRL's trainer over ``pairs``.

    A global batch counts pairs; each pair is two rows of a forward with the adapter and two
    without. There are no retention items; the only constraint elsewhere is the KL to the base model
    that the loss implies.
    """
    require_trl("dpo")
    from trl import DPOConfig, DPOTrainer

    logger.info(f"dpo: {len(pairs)} pairs, preferring {count_by_concept(pairs)}")

    seen = any(p.item.media for p in pairs)
    row = in_text if seen else in_messages
    dataset = make_dataset(loaded, [p.item for p in pairs], media, lambda n: row(loaded, pairs[n]))
    steps = math.ceil(len(pairs) / train.global_batch_size) * train.epochs
    arguments = DPOConfig(
        **training_arguments(train, directory, seed=seed, steps=steps),
        beta=config.beta,
        bf16=False,  # model.dtype decides
        gradient_checkpointing=False,  # enabled by lora.enable_checkpointing
        gradient_checkpointing_kwargs={"use_reentrant": False},
        disable_dropout=False,
        max_length=None,  # truncation would cut images
        logging_nan_inf_filter=False,
    )
    use_one_device(arguments)
    trainer = DPOTrainer(
        model=loaded.model, args=arguments, train_dataset=dataset, processing_class=loaded.processor,
        callbacks=list(callbacks),
    )  # fmt: skip
    forget_reference(trainer.model)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer
