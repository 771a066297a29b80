"""Training data of a round: targets of the train items, examples of the loss terms, their order.

The epochs of a round are also compared with targets of ``val``, on which nothing is trained.

Shapes: N train items, M val items, C concepts, O options, K tokens.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from gapclose.core.logging import get_logger
from gapclose.data.media import SUPPORTED
from gapclose.evaluation.measurement import SplitMeasurement
from gapclose.evaluation.summary_text import target_words
from gapclose.metrics.bootstrap import ClipBootstrap, Interval
from gapclose.metrics.labels import Labels, option_concepts
from gapclose.training.checkpoint_selection import EpochRecords
from gapclose.training.config import TargetsConfig
from gapclose.training.context import TrainingContext
from gapclose.training.objectives import CUSTOM, OBJECTIVES, loss_terms
from gapclose.training.sampler import Example
from gapclose.training.target_rounds import ProbeReadings, train_items, val_items
from gapclose.training.targets import Targets, build_targets, constant_loss, excess_loss, restrict_and_pair, target_of

logger = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ValTargets:
    """Targets of the val items, to measure how far a model is from them."""

    target: np.ndarray
    """(M, O)"""
    silent: np.ndarray
    """(M,) bool, items without an option for any concept that is read; they do not count"""
    constant: float
    """mean excess loss in nats of a model that cannot tell items apart"""


class RoundTargets:
    """Builds the targets of every round, and measures how far the model is from them on val."""

    def __init__(self, run: TrainingContext, epochs: EpochRecords) -> None:
        self.run, self.epochs = run, epochs
        self.made = list[dict[str, Any]]()
        """facts about the targets of every round"""
        self.val: ValTargets | None = None
        """targets of val in the current round; None for controls and user-defined objectives, and
        until a round trains on targets from readings"""

    def build(self, number: int, teacher: ProbeReadings, scores: np.ndarray, base: SplitMeasurement) -> Targets:
        """Build the targets of the train items for a round, and store them in a file of its own.

        Args:
            number: the round, from 1.
            teacher: readings of the round's target probe, (N, C) and (M, C).
            scores: (N, O) the base model's option scores of the train items.
            base: measurement of the base model on val.

        Raises:
            ValueError: when a user-defined objective returns no valid targets.
        """
        config = self.run.config
        # always rebuilt: it is cheap, and a stored file may be older than the labels
        train, val = train_items(self.run), val_items(self.run)
        known = Labels.of(val)
        targets = build_targets(
            config.targets,
            ids=[i.id for i in train],
            reading=teacher.train,
            scores=scores,
            option_concept=option_concepts(train.items, train.concepts),
            modality=np.array([i.modality for i in train]),
            val_reading=teacher.val,
            val_concept=known.concept,
            val_clip=known.clip,
            val_option_concept=known.option_concept,
            partner=train.partners,
            val_partner=val.partners,
            alarm=np.isin(train.concepts, train.alarm),
            seed=config.seed,
        )
        if config.objective not in OBJECTIVES:
            targets = dataclasses.replace(targets, target=self._custom_target(targets))
        elif "consistency" in loss_terms(config.objective) and config.targets.control == "none":
            self.val = self._val_targets(teacher, base, targets.factor)
        name = "targets" if number == 1 else f"targets-round-{number}"
        self.run.on_main(lambda: targets.save(self.run.directory / f"{name}.safetensors"))
        facts = targets.summary(train.concepts)
        logger.info(
            f"targets: {facts['kept']} of {facts['items']} train items, {facts['kept_by_concept']}, alarm prior x{facts['prior_factor']:.3g}"
        )
        self.made.append({"round": number, **facts})
        for line in target_words(self.made[-1:]):
            logger.warning(f"  {line}")
        return targets

    def _custom_target(self, targets: Targets) -> np.ndarray:
        """Return the targets (N, O) of a user-defined objective.

        Raises:
            ValueError: when their shape is wrong, or a row is not a distribution over the options.
        """
        objective = self.run.config.objective
        aim = np.asarray(CUSTOM.get(objective)(targets, train_items(self.run)), dtype=float)
        if aim.shape != targets.target.shape:
            raise ValueError(
                f"objective {objective!r} returned targets of shape {aim.shape}; they must be {targets.target.shape}, items x options"
            )
        bad = np.flatnonzero((aim < 0).any(1) | (np.abs(aim.sum(1) - 1) > 1e-6) | ~np.isfinite(aim).all(1))
        if len(bad):
            raise ValueError(
                f"objective {objective!r} returned no distribution for item {targets.ids[bad[0]]!r}: {aim[bad[0]].tolist()}; give shares of its "
                "options that sum to one"
            )
        return aim

    def _val_targets(self, teacher: ProbeReadings, base: SplitMeasurement, factor: float) -> ValTargets:
        """Return the targets of val at the operating point of the train items.

        Args:
            factor: prior factor on alarm concepts.
        """
        config, val = self.run.config.targets, val_items(self.run)
        known = Labels.of(val)
        reading, silent = restrict_and_pair(config, teacher.val, known.option_concept, val.partners)
        target, _ = target_of(config, reading, base.scores, known.option_concept, np.isin(val.concepts, val.alarm), factor)
        alike = constant_loss(target[~silent], known.option_concept[~silent], known.modality[~silent])
        return ValTargets(target=target, silent=silent, constant=float(alike.mean()))

    def consistency(self, number: int, epoch: int, now: SplitMeasurement, base: SplitMeasurement) -> dict[str, Any]:
        """Return the consistency loss on val, for the record of an epoch; empty if there are no
        targets of val.

        Args:
            number, epoch: the round and the epoch, which counts on through the rounds.
            now, base: measurements on val, of the model after ``epoch`` and of the base model.
        """
        if self.val is None:
            return {}
        target, counts, constant = self.val.target, ~self.val.silent, self.val.constant
        clips = ClipBootstrap(now.labels.clip, self.run.config.gap.replicates, self.run.config.seed)
        excess, at_base = (excess_loss(target, of.scores) for of in (now, base))
        interval = Interval.of(clips.mean(excess, counts))
        found = self.epochs.consistency(number, epoch, interval, float(at_base[counts].mean()), constant)
        logger.info(
            f"  consistency loss on val: {interval.value:.3f} nats above its floor (base model: {found['base']:.3f}; a model that cannot tell "
            f"items apart: {constant:.3f})"
        )
        return {"consistency": found}


def blanked_media(config: TargetsConfig) -> tuple[str, ...]:
    """Return the kinds of media blanked in training: all for the control ``blank_media``, else
    none."""
    return SUPPORTED if config.control == "blank_media" else ()


def consistency_examples(run: TrainingContext, targets: Targets) -> list[Example]:
    """Return the train items that pass the confidence filter, with their targets (O,)."""
    kept = zip(train_items(run), targets.target, targets.keep, strict=True)
    return [Example(item=i, term="consistency", weights=t) for i, t, keep in kept if keep]


def other_examples(run: TrainingContext) -> list[Example]:
    """Return the examples of the terms gold (labels, (O,)) and retain (the base model's
    predictions, (K,)).

    Call it before adapters are added: it observes the retention items under the current model.
    """
    config, examples = run.config, list[Example]()
    if config.train.gold:
        fit = run.items.select(split="fit", purpose="gap").items
        examples += [Example(item=i, term="gold", weights=np.eye(len(i.options))[i.gold]) for i in fit]
    if config.train.retain:
        retain = run.items.select(split="train", purpose="retain").unlabelled()
        seen = run.observe("base-retain", retain, blank=blanked_media(config.targets), top_tokens=config.train.retain_tokens)
        assert seen.top_logps is not None and seen.top_tokens is not None
        kept = zip(retain, seen.top_logps, seen.top_tokens, strict=True)
        examples += [Example(item=i, term="retain", base_logps=p, base_tokens=t) for i, p, t in kept]
    return examples


def order_seed(seed: int, number: int) -> int:
    """Return a round's seed of batch order; no later round repeats the first of another seed."""
    return seed if number == 1 else int(np.random.SeedSequence([seed, number]).generate_state(1)[0] // 2)
