"""Build one of TRL's trainers from targets."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import transformers

from gapclose.data.item_set import ItemSet
from gapclose.data.media import MediaLoader
from gapclose.models.loading import LoadedModel
from gapclose.probes.posterior import sharpen
from gapclose.training.callbacks import EvaluateAfterEpoch
from gapclose.training.context import TrainingSettings
from gapclose.training.lora import enable_checkpointing
from gapclose.training.targets import Targets
from gapclose.training.trl.dataset import EpochFigures, OrderOfEpoch
from gapclose.training.trl.dpo import make_dpo_trainer, preference_pairs
from gapclose.training.trl.grpo import Reward, make_grpo_trainer


def make_trl_trainer(
    loaded: LoadedModel,
    targets: Targets,
    items: ItemSet,
    scores: np.ndarray,
    media: MediaLoader,
    config: TrainingSettings,
    directory: Path,
    *,
    after_epoch: Callable[[int], bool | None],
    finite_only: bool = True,
    callbacks: Sequence[transformers.TrainerCallback],
) -> transformers.Trainer:
    """Build the trainer of ``config.objective`` over train items that pass the confidence filter.

    ``after_epoch(epoch)`` is called after every epoch and returns whether training must stop.

    Args:
        targets: of ``items``. scores: (N, O) of the base model. finite_only: raise LossNotFinite if
            a logged loss is not finite.
    """
    # TRL 1.16 uses names that transformers 5.23 deprecates; remove when it does not
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)
    if config.train.gradient_checkpointing:
        enable_checkpointing(loaded)
    common = {"seed": config.seed, "callbacks": [OrderOfEpoch(), EpochFigures(finite_only), *callbacks, EvaluateAfterEpoch(after_epoch)]}
    if config.objective == "dpo":
        pairs = preference_pairs(items.items, targets.target, scores, targets.keep, anchors=config.dpo.anchors)
        return make_dpo_trainer(loaded, pairs, media, config.train, config.dpo, directory, **common)
    kept = np.flatnonzero(targets.keep)
    reading = sharpen(targets.reading, config.targets.sharpen)[kept]
    match = config.prompts.matching(config.prompts.asked)
    reward = Reward(items=[items.items[n] for n in kept], reading=reading, concepts=items.concepts, match=match)
    limit = config.observe.max_new_tokens
    return make_grpo_trainer(loaded, reward, media, config.train, config.grpo, directory, max_new_tokens=limit, **common)
