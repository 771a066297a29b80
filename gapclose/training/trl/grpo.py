"""Group relative policy optimisation by TRL: sampled answers, rewarded by the frozen reading.

Every prompt is answered G times. An answer's advantage is its reward minus the group's mean,
divided by the group's standard deviation. The loss adds beta KL(adapted || base), with the adapter
switched off as the base (Shao et al. 2024, arXiv 2402.03300, section 4.1).

Shapes: N items, C concepts, G generations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from gapclose.core.logging import get_logger
from gapclose.data.answer_matching import AnswerMatcher
from gapclose.data.items import Item
from gapclose.data.media import MediaLoader
from gapclose.models.loading import LoadedModel
from gapclose.training.config import GrpoConfig, TrainConfig
from gapclose.training.objectives import require_trl
from gapclose.training.trainer import training_arguments, use_one_device
from gapclose.training.trl.dataset import forget_reference, make_dataset

logger = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Reward:
    """Posterior of the concept that an answer expresses; 0 for an answer that matches no option
    or several."""

    items: Sequence[Item]
    reading: np.ndarray
    """(N, C) of the base model's residuals, fixed before training; independent of the adapted
    model, without gradient"""
    concepts: tuple[str, ...]
    match: AnswerMatcher = AnswerMatcher()  # noqa: RUF009 (frozen)
    """matcher of answers to options; ``make_trl_trainer`` passes the run's own"""

    def of(self, place: int, answer: str) -> float:
        """Return the reward of one answer to item ``place``."""
        item = self.items[place]
        option = int(self.match([answer], [item])[0])
        return 0.0 if option < 0 else float(self.reading[place, self.concepts.index(item.options[option].concept)])


def never_sampled(loaded: LoadedModel) -> list[int]:
    """Return the ids of special tokens that do not end an answer, which sampling must exclude.

    A sampled image token would be taken for an image, and the forward would fail. TRL excludes only
    the image token itself.
    """
    ends = loaded.model.generation_config.eos_token_id
    ends = {loaded.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    image = getattr(loaded.model.config, "image_token_id", None)
    return sorted(({*loaded.tokenizer.all_special_ids, image} - ends) - {None})


def make_grpo_trainer(
    loaded: LoadedModel,
    reward: Reward,
    media: MediaLoader,
    train: TrainConfig,
    config: GrpoConfig,
    directory: Path,
    *,
    max_new_tokens: int,
    seed: int,
    callbacks: Sequence[transformers.TrainerCallback],
) -> transformers.Trainer:
    """Build TRL's trainer over the items of ``reward``.

    Answers have at most ``max_new_tokens`` tokens. There are no retention items.

    Raises:
        ValueError: when there are fewer items than prompts in a global batch.
    """
    require_trl("grpo")
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer.utils import RepeatSampler

    class Sampler(RepeatSampler):
        """TRL's order of prompts, shuffled by seed and epoch alone, so that a resumed training
        continues the same order."""

        def set_epoch(self, epoch: int) -> None:
            self.generator.manual_seed(seed * 10_007 + int(epoch))

    class Trainer(GRPOTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> Sampler:
            given = super()._get_train_sampler(dataset)
            assert isinstance(given, RepeatSampler)
            return Sampler(given.data_source, given.mini_repeat_count, given.batch_size, given.repeat_count, given.shuffle, given.seed)

    def reading(completions: Sequence[Any], place: Sequence[int], **columns: Any) -> list[float | None]:
        """Reward function for TRL, which names its figures after it. Completions are one
        assistant message each; ``place`` is the column of their rows."""
        return [reward.of(n, said[0]["content"]) for n, said in zip(place, completions, strict=True)]

    prompts, items = config.prompts(train), reward.items
    if len(items) < prompts:
        raise ValueError(
            f"objective grpo: a global batch of {train.global_batch_size} answers asks {prompts} prompts {config.num_generations} times, "
            f"and there are {len(items)} train items; lower train.global_batch_size or raise grpo.num_generations"
        )
    logger.info(f"grpo: {len(items)} prompts, {prompts} a step, {config.num_generations} answers to each")
    arguments = GRPOConfig(
        **training_arguments(train, directory, seed=seed, steps=len(items) // prompts * train.epochs),
        beta=config.beta,
        num_generations=config.num_generations,
        temperature=config.temperature,
        max_completion_length=max_new_tokens,
        generation_kwargs={"suppress_tokens": never_sampled(loaded)},
        bf16=False,  # model.dtype decides
        gradient_checkpointing=False,  # enabled by lora.enable_checkpointing
        gradient_checkpointing_kwargs={"use_reentrant": False},
        logging_nan_inf_filter=False,
    )
    use_one_device(arguments)
    trainer = Trainer(
        model=loaded.model, reward_funcs=reading, args=arguments, processing_class=loaded.processor,
        train_dataset=make_dataset(loaded, items, media, lambda n: {"place": n}),
        callbacks=list(callbacks),
    )  # fmt: skip
    forget_reference(trainer.model)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer
