"""Align: train adapters on frozen readings, measure after every epoch, apply guards, and export."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from gapclose.core.distributed import run_on_main
from gapclose.core.errors import LossNotFinite
from gapclose.core.files import read_json, write_json
from gapclose.core.logging import get_logger
from gapclose.core.tensor_files import read_tensors, refuse_damaged, seal
from gapclose.data.media import SUPPORTED
from gapclose.evaluation.change_file import measure_change
from gapclose.evaluation.measurement import SplitMeasurement
from gapclose.evaluation.prompt_variants import measure_prompt_variants
from gapclose.evaluation.record import make_record
from gapclose.evaluation.run_records import read_records, record_of, round_words, summarise, target_words, unimproved_words, write_records
from gapclose.export.run import export_run
from gapclose.metrics.bootstrap import ClipBootstrap, Interval
from gapclose.metrics.labels import Labels, option_concepts
from gapclose.metrics.verdict import not_established
from gapclose.models.loading import LoadedModel
from gapclose.models.sharding import is_sharded, is_wrapped, shard
from gapclose.observe.frozen_cache import HiddenStateCache
from gapclose.pipeline.training_cache import training_caches
from gapclose.report.example_figure import draw_example
from gapclose.report.html import write_page
from gapclose.training.adapter_io import load_adapter_tensors, save_adapter
from gapclose.training.checkpoint_selection import EpochRecords, state_at_end
from gapclose.training.lora import adapter_changed, adapter_fingerprint, add_lora, load_adapter
from gapclose.training.objectives import BY_TRL, CUSTOM, OBJECTIVES, loss_terms, needs_reading
from gapclose.training.resume import epochs_done, last_complete_checkpoint, whole_checkpoints
from gapclose.training.sampler import Example
from gapclose.training.target_rounds import (
    ProbeReadings,
    compare_rounds,
    first_teacher,
    next_teacher,
    search,
    sentinel_reading,
    train_items,
    val_items,
)
from gapclose.training.targets import Targets, build_targets, constant_loss, excess_loss, restrict_and_pair, target_of
from gapclose.training.tracking import LossLines
from gapclose.training.trainer import make_trainer
from gapclose.training.trl.dataset import epoch_figures
from gapclose.training.trl.factory import make_trl_trainer

if TYPE_CHECKING:
    from gapclose.pipeline.context import RunContext

logger = get_logger(__name__)

REFUSED_WITH_LABELS = ("explained by text", "not judgeable")
"""verdicts with which a training whose first round is on labels is refused as well"""


def _seed(seed: int, number: int) -> int:
    """Return a round's seed of batch order; no later round repeats the first of another seed."""
    return seed if number == 1 else int(np.random.SeedSequence([seed, number]).generate_state(1)[0] // 2)


class AlignStage:
    """The second half of a run, after ``gate.json`` was written: train, measure and export."""

    def __init__(self, run: RunContext) -> None:
        self.run, self.forced, self.begun, self.frozen = run, dict[str, str](), 1, 0
        self.epochs = EpochRecords(run.directory, run.config)
        self.val_target: np.ndarray | None = None  # (M, O) of the round, to measure how far val is from it
        self.val_constant = 0.0  # the loss on them of a model that cannot tell items apart
        self.val_silent: np.ndarray  # (M,) bool: items without an option for what is read of them
        self.made = list[dict[str, Any]]()  # facts about the targets of every round
        self.base_scores: np.ndarray

    def refuse_unproven(self) -> None:
        """Refuse targets from a reading that is not ``real`` on val, unless ``force`` is set.

        Where labels come first, only a reading that the text explains, and a model that does not
        answer such questions, are refused. Other readings that are not ``real`` are recorded: the
        later rounds train on readings without a verdict.

        Raises:
            ValueError: naming every modality of the train items that is refused, and why.
        """
        path, config = self.run.directory / "gate.json", self.run.config
        verdicts = run_on_main(lambda: read_json(path, "verdicts")["verdicts"])
        if not needs_reading(config.objective):
            return
        train = self.run.items.select(split="train", purpose="gap")
        self.forced = not_established(sorted({i.modality for i in train}), verdicts)
        refused = self.forced
        if self.labels_first:
            refused = {name: why for name, why in refused.items() if verdicts.get(name, {}).get("word") in REFUSED_WITH_LABELS}
        if refused and not config.force:
            listed = "\n".join(f"  - {name}: {why}" for name, why in refused.items())
            raise ValueError(
                f"{self.run.directory}: on val the gap is not shown to be real, so nothing is trained on its reading:\n{listed}\n"
                "Label more clips (splits fit and val), leave the train items of such a modality out, or give --force to train all the "
                f"same; the evidence will say so. gate.json holds the figures; `gapclose measure` tries all controls, on test"
            )
        for name, why in self.forced.items():
            kind = "forced" if config.force else "labels first, then"
            logger.warning(f"  {kind}: training on the reading of {name}: {why}")

    @property
    def labels_first(self) -> bool:
        """Whether the first round trains on labels alone; later rounds read the model so trained."""
        return self.run.config.targets.first == "labels"

    @property
    def blanked(self) -> tuple[str, ...]:
        """Kinds of media blanked in training: all for the control ``blank_media``, else none."""
        return SUPPORTED if self.run.config.targets.control == "blank_media" else ()

    def aimed_at(self, targets: Targets) -> list[Example]:
        """Return the train items that pass the confidence filter, with their targets."""
        kept = zip(train_items(self.run), targets.target, targets.keep, strict=True)
        return [Example(item=i, term="consistency", weights=t) for i, t, keep in kept if keep]

    def other_examples(self) -> list[Example]:
        """Return the examples of the terms gold (labels) and retain (base model's predictions)."""
        config, examples = self.run.config, list[Example]()
        if config.train.gold:
            fit = self.run.items.select(split="fit", purpose="gap").items
            examples += [Example(item=i, term="gold", weights=np.eye(len(i.options))[i.gold]) for i in fit]
        if config.train.retain:
            retain = self.run.items.select(split="train", purpose="retain").unlabelled()
            seen = self.run.observe("base-retain", retain, blank=self.blanked, top_tokens=config.train.retain_tokens)
            assert seen.top_logps is not None and seen.top_tokens is not None
            kept = zip(retain, seen.top_logps, seen.top_tokens, strict=True)
            examples += [Example(item=i, term="retain", base_logps=p, base_tokens=t) for i, p, t in kept]
        return examples

    def build_targets(self, number: int, teacher: ProbeReadings, base: SplitMeasurement) -> Targets:
        """Build the targets of the train items for a round, and store them in a file of its own."""
        config = self.run.config
        # always rebuilt: it is cheap, and a stored file may be older than the labels
        train, known = train_items(self.run), Labels.of(val_items(self.run))
        targets = build_targets(
            self.run.config.targets,
            ids=[i.id for i in train],
            reading=teacher.train,
            scores=self.base_scores,
            option_concept=option_concepts(train.items, train.concepts),
            modality=np.array([i.modality for i in train]),
            val_reading=teacher.val,
            val_concept=known.concept,
            val_clip=known.clip,
            val_option_concept=known.option_concept,
            partner=train.partners,
            val_partner=val_items(self.run).partners,
            alarm=np.isin(train.concepts, train.alarm),
            seed=self.run.config.seed,
        )
        if config.objective not in OBJECTIVES:
            targets = dataclasses.replace(targets, target=self._custom_target(targets))
        elif "consistency" in loss_terms(config.objective) and config.targets.control == "none":
            reading, self.val_silent = restrict_and_pair(config.targets, teacher.val, known.option_concept, val_items(self.run).partners)
            alarm = np.isin(train.concepts, train.alarm)
            self.val_target, _ = target_of(config.targets, reading, base.scores, known.option_concept, alarm, targets.factor)
            heard = ~self.val_silent
            alike = constant_loss(self.val_target[heard], known.option_concept[heard], known.modality[heard])
            self.val_constant = float(alike.mean())
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

    def train(self, base: SplitMeasurement) -> None:
        """Train adapters round by round, measuring ``val`` after every epoch.

        An interrupted training continues from its last complete checkpoint.
        """
        config, targets, teacher = self.run.config, None, None
        if needs_reading(config.objective):
            teacher, self.base_scores = first_teacher(self.run)
            targets = None if self.labels_first else self.build_targets(1, teacher, base)
        several = config.targets.rounds > 1
        reference, sentinel = (search(self.run, 1)[1], sentinel_reading(self.run)) if several else (np.empty(0), np.empty(0))
        others = self.other_examples()
        layers = config.lora.chosen(len(self.run.loaded.layers), self.run.probe.layer)
        self.frozen = layers[0] - 1
        self.run.read_again()
        add_lora(self.run.loaded, config.lora, layers, config.seed)
        trainable = sum(p.numel() for p in self.run.loaded.model.parameters() if p.requires_grad)
        logger.info(f"adapters: {trainable:,} parameters on decoder layers {layers[0]}..{layers[-1]}")
        self.train_round(1, base, targets, others)
        rounds, without = list[dict[str, Any]](), 0
        for number in range(2, config.targets.rounds + 1):
            assert teacher is not None
            if objecting := self.epochs.triggered(number - 1):
                logger.info(f"no round {number}: {', '.join(objecting)} objected to the end of the one before")
                break
            # not the best of all rounds: from the same epoch the same probe and targets would follow
            # a round on labels has no operating point yet, so its epochs are compared at the best one
            self.load_epoch(self.epochs.best([number - 1], shifted=self.labels_first and number == 2)["epoch"])
            following = next_teacher(self.run, number)
            rounds.append(compare_rounds(self.run, number, following, teacher, reference, sentinel))
            without = 0 if rounds[-1]["helps"] else without + 1
            rounds[-1]["ended"] = without >= config.targets.patience and config.targets.control == "none"
            logger.info(round_words(rounds)[-1])
            if rounds[-1]["ended"]:
                break
            teacher, reference = following, following.val if rounds[-1]["helps"] else reference
            self.run.on_main(lambda number=number: self.begin(number))
            self.train_round(number, base, self.build_targets(number, teacher, base), others)
            if self.epochs.records(number):
                best = {"before": self.best(), "now": self.epochs.best([number])}
                rounds[-1]["action"] = {name: r["action"]["balanced"] for name, r in best.items()}
                self.begun = number
        if several:
            self.run.on_main(lambda: write_json(self.run.directory / "rounds.json", rounds))
        stopped, off = self.epochs.stopped(), config.guards.silent
        remedy = f'  the same command with --guards.off "[{", ".join(sorted({*off, *stopped}))}]" goes on'
        for name, reason in stopped.items():
            logger.warning(f"  stopped by the guard {name}: {reason}" + (f"\n{remedy}" if name == list(stopped)[-1] else ""))

    def begin(self, number: int) -> None:
        """Delete the files of a later round that began with another adapter or target probe."""
        path = self.run.directory / "checkpoints" / f"round-{number}" / "start.json"
        probe = (self.run.directory / "probes" / f"round-{number}.safetensors").read_bytes()
        start = {"adapter": self.run.adapter, "probe": hashlib.sha256(probe).hexdigest()[:16]}
        if path.is_file() and read_json(path) == start:
            return
        shutil.rmtree(path.parent, ignore_errors=True)
        stale = {r["stage"] for r in self.epochs.read(number)}
        kept = [r for r in read_records(self.run.directory) if r["stage"] not in stale]
        write_records(self.run.directory, kept)
        write_json(path, start)

    def train_round(self, number: int, base: SplitMeasurement, targets: Targets | None, others: list[Example]) -> None:
        """Train for ``train.epochs`` epochs from the adapter that the model has.

        Args:
            base: measurement of the base model on val.
            targets: targets of the train items; None if the round uses no reading.
            others: examples of the other loss terms.
        """
        config, checkpoints = self.run.config, self.run.directory / "checkpoints"
        directory = checkpoints if number == 1 else checkpoints / f"round-{number}"
        past = (number - 1) * config.train.epochs

        def lost(of_round: int) -> str | None:
            epoch = past + of_round
            if record_of(self.run.directory, f"epoch-{epoch}/val") is None:
                return f"gap.jsonl has no record of epoch {epoch}"
            weights = checkpoints / f"epoch-{epoch}" / "adapter_model.safetensors"
            return None if weights.is_file() else f"{weights} is not there"

        resume = run_on_main(lambda: last_complete_checkpoint(directory, lost))
        # an epoch whose adapter is gone is trained again, from the checkpoint before it
        done = self.epochs.finished(number) and epochs_done(resume) >= len(self.epochs.records(number))
        ended = bool(self.epochs.triggered(number)) or done

        def after_epoch(of_round: int) -> bool:
            epoch = past + of_round
            self.set_adapter_fingerprint()
            save_adapter(self.run.loaded.model, checkpoints / f"epoch-{epoch}")
            self.run.on_main(lambda: seal(checkpoints / f"epoch-{epoch}"))
            self.run.loaded.model.eval()
            now = self.run.measure(f"epoch-{epoch}", "val", replace=True, trunk=trunks.get("val"))
            record = self.run.epoch_record(f"epoch-{epoch}/val", epoch, now, base)
            record |= {"round": number} if config.targets.rounds > 1 else {}
            record |= {"training": epoch_figures(trainer.state.log_history, of_round)} if by_trl else {}
            record["adapter_changed"] = adapter_changed(self.run.loaded.model)
            record |= self.consistency(number, epoch, now, base)
            self.run.record(self.epochs.guarded(record))
            return self.epochs.finished(number, epoch)

        by_trl, finite = config.objective in BY_TRL, "loss" not in config.guards.silent
        common: dict[str, Any] = {"after_epoch": after_epoch, "finite_only": finite, "callbacks": [LossLines(self.run.trackers, number)]}
        media, trunks = self.run.loaded.media(self.run.items, blank=self.blanked), dict[str, HiddenStateCache | None]()
        if by_trl:
            assert targets is not None
            if config.train.cache_trunk is True:
                logger.info(f"train.cache_trunk does nothing for objective {config.objective}, whose steps are TRL's")
            trainer = make_trl_trainer(
                self.run.loaded, targets, train_items(self.run), self.base_scores, media, config, directory, **common
            )
        else:
            examples = [*(self.aimed_at(targets) if targets else []), *others]
            settings = config.train if targets else dataclasses.replace(config.train, consistency=0.0)
            if not ended:
                trunks = training_caches(self.run, [e.item for e in examples], frozen=self.frozen, blank=self.blanked)
            trainer = make_trainer(
                self.run.loaded, examples, media, settings, directory, n_train=len(train_items(self.run)),
                seed=_seed(config.seed, number), trunk=trunks.get("train"), branch_trial=not (ended or config.model.sharded), **common,
            )  # fmt: skip
        if resume is not None:
            logger.info(f"going on from {resume.name}")
        try:
            if not ended:
                with whole_checkpoints(directory, trainer):
                    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except LossNotFinite as error:  # raised in all processes together
            if not finite or not self.epochs.records(1):
                raise
            reason = str(error)
            self.run.on_main(lambda: self.epochs.stop(number, reason))
        self.run.loaded.model.eval()

    def consistency(self, number: int, epoch: int, now: SplitMeasurement, base: SplitMeasurement) -> dict[str, Any]:
        """Return how far the model is from the targets on val; empty if nothing trains on targets."""
        if self.val_target is None:
            return {}
        clips = ClipBootstrap(now.labels.clip, self.run.config.gap.replicates, self.run.config.seed)
        excess, at_base = (excess_loss(self.val_target, of.scores) for of in (now, base))
        counts = ~self.val_silent
        interval = Interval.of(clips.mean(excess, counts))
        found = self.epochs.consistency(number, epoch, interval, float(at_base[counts].mean()), self.val_constant)
        logger.info(
            f"  consistency loss on val: {interval.value:.3f} nats above its floor (base model: {found['base']:.3f}; a model that cannot tell "
            f"items apart: {self.val_constant:.3f})"
        )
        return {"consistency": found}

    def best(self) -> dict[str, Any]:
        """Return the record of the best epoch over all rounds that have trained."""
        return self.epochs.best(range(1, self.begun + 1))

    def set_adapter_fingerprint(self) -> None:
        """Set the run's adapter fingerprint, which keeps observations of adapters apart."""
        self.run.adapter = adapter_fingerprint(self.run.loaded.model)

    def load_epoch(self, epoch: int) -> None:
        """Load the adapter of an epoch into the model.

        Raises:
            ValueError: when a file is damaged, or its keys do not match the model's.
        """
        folder = self.run.directory / "checkpoints" / f"epoch-{epoch}"
        remedy = f"delete {folder} and run the same command again, which trains that epoch again"
        run_on_main(lambda: refuse_damaged(folder, remedy))
        weights, _ = read_tensors(folder / "adapter_model.safetensors", remedy)
        if lacking := load_adapter_tensors(self.run.loaded.model, weights):
            raise ValueError(f"the adapter of epoch {epoch} does not fit this model: {lacking[:3]}")
        self.set_adapter_fingerprint()

    def for_export(self, epoch: int) -> LoadedModel:
        """Return the complete adapted model.

        If an engine holds the parameters, the model is reloaded on the CPU, with the adapter of
        ``epoch``.
        """
        if not is_wrapped(self.run.loaded.model):
            return self.run.loaded
        unset_hf_deepspeed_config()  # otherwise transformers gives each process only a part of the weights
        return load_adapter(self.run.config.model, self.run.directory / "checkpoints" / f"epoch-{epoch}")

    def finish(self, base: SplitMeasurement) -> None:
        """Measure the best epoch's adapter on test once, export it, and close the trackers.

        It is exported only if it improves on the base model on val, or with ``export.unimproved``.
        """
        rounds = range(1, self.begun + 1)
        epoch, without, unfinished = self.best()["epoch"], self.epochs.unimproved(rounds), self.epochs.unfinished(rounds)
        if run_on_main(lambda: record_of(self.run.directory, "adapted/test")):
            logger.info("this run was finished before; its last measurement and its exports are written again")
        if self.run.config.model.sharded and not is_sharded(self.run.loaded.model):  # this start trained nothing
            shard(self.run.loaded.model)
        self.load_epoch(epoch)
        now = self.run.measure("adapted", "test", replace=True)
        record = make_record("adapted/test", epoch, now, base, self.run.config.gap, self.run.config.seed)
        prompts, _ = measure_prompt_variants(self.run, "adapted", self.run.prompted)
        record |= {"prompts": prompts} if prompts else {}
        facts = None if without is None else without.to_dict()
        record |= {"unimproved": facts, "unfinished": unfinished, "targets": self.made, "state": state_at_end(record, unfinished)}
        self.run.record(
            record | {"forced": sorted(self.forced), "stopped": self.epochs.stopped(), "guards_off": self.run.config.guards.silent}
        )
        self.run.on_main(lambda: write_json(self.run.directory / "change.json", measure_change(self.run, epoch).to_dict()))
        self.run.on_main(lambda: shutil.rmtree(self.run.directory / "trunk", ignore_errors=True))  # no longer needed
        summary = run_on_main(lambda: summarise(self.run.directory))
        if exported := without is None or self.run.config.export.unimproved:
            self.run.on_main(lambda: export_run(self.run.directory, self.run.config, self.for_export(epoch), summary, self.run.items))
        if unfinished:
            logger.warning(f"  {unfinished}")
        for line in unimproved_words(facts):
            told = "" if exported else f"; nothing is exported (--export.unimproved true exports epoch {epoch} without training again)"
            logger.warning(f"  {line}{told}")
        self.run.on_main(lambda: draw_example(self.run.directory))
        self.run.on_main(lambda: write_page(self.run.directory))
        self.run.on_main(lambda: self.run.trackers.finish(summary, self.run.directory / "adapter" if exported else None))
