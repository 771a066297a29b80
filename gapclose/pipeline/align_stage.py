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
from gapclose.evaluation.change_file import measure_change
from gapclose.evaluation.measurement import SplitMeasurement
from gapclose.evaluation.prompt_variants import measure_prompt_variants
from gapclose.evaluation.record import make_record
from gapclose.evaluation.run_records import read_records, record_of, summarise, write_records
from gapclose.evaluation.summary_text import round_words, unimproved_words
from gapclose.export.run import export_run
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
from gapclose.training.objectives import BY_TRL, needs_reading
from gapclose.training.resume import epochs_done, last_complete_checkpoint, whole_checkpoints
from gapclose.training.round_data import RoundTargets, blanked_media, consistency_examples, order_seed, other_examples
from gapclose.training.sampler import Example
from gapclose.training.target_rounds import compare_rounds, first_teacher, next_teacher, search, sentinel_reading, train_items
from gapclose.training.targets import Targets
from gapclose.training.tracking import LossLines
from gapclose.training.trainer import make_trainer
from gapclose.training.trl.dataset import epoch_figures
from gapclose.training.trl.factory import make_trl_trainer

if TYPE_CHECKING:
    from gapclose.pipeline.context import RunContext

logger = get_logger(__name__)

REFUSED_WITH_LABELS = ("explained by text", "not judgeable")
"""verdicts with which a training whose first round is on labels is refused as well"""


class AlignStage:
    """The second half of a run, after ``gate.json`` was written: train, measure and export."""

    def __init__(self, run: RunContext) -> None:
        self.run, self.forced, self.begun, self.frozen = run, dict[str, str](), 1, 0
        self.epochs = EpochRecords(run.directory, run.config)
        self.builder = RoundTargets(run, self.epochs)
        self.base_scores: np.ndarray  # (N, O) the base model's option scores of the train items

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

    def train(self, base: SplitMeasurement) -> None:
        """Train adapters round by round, measuring ``val`` after every epoch.

        An interrupted training continues from its last complete checkpoint.
        """
        config, targets, teacher = self.run.config, None, None
        if needs_reading(config.objective):
            teacher, self.base_scores = first_teacher(self.run)
            targets = None if self.labels_first else self.builder.build(1, teacher, self.base_scores, base)
        several = config.targets.rounds > 1
        reference, sentinel = (search(self.run, 1)[1], sentinel_reading(self.run)) if several else (np.empty(0), np.empty(0))
        others = other_examples(self.run)
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
            self.train_round(number, base, self.builder.build(number, teacher, self.base_scores, base), others)
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
            record |= self.builder.consistency(number, epoch, now, base)
            self.run.record(self.epochs.guarded(record))
            return self.epochs.finished(number, epoch)

        by_trl, finite = config.objective in BY_TRL, "loss" not in config.guards.silent
        common: dict[str, Any] = {"after_epoch": after_epoch, "finite_only": finite, "callbacks": [LossLines(self.run.trackers, number)]}
        blank, trunks = blanked_media(config.targets), dict[str, HiddenStateCache | None]()
        media = self.run.loaded.media(self.run.items, blank=blank)
        if by_trl:
            assert targets is not None
            if config.train.cache_trunk is True:
                logger.info(f"train.cache_trunk does nothing for objective {config.objective}, whose steps are TRL's")
            trainer = make_trl_trainer(
                self.run.loaded, targets, train_items(self.run), self.base_scores, media, config, directory, **common
            )
        else:
            examples = [*(consistency_examples(self.run, targets) if targets else []), *others]
            settings = config.train if targets else dataclasses.replace(config.train, consistency=0.0)
            if not ended:
                trunks = training_caches(self.run, [e.item for e in examples], frozen=self.frozen, blank=blank)
            trainer = make_trainer(
                self.run.loaded, examples, media, settings, directory, n_train=len(train_items(self.run)),
                seed=order_seed(config.seed, number), trunk=trunks.get("train"), branch_trial=not (ended or config.model.sharded), **common,
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
        record |= {"unimproved": facts, "unfinished": unfinished, "targets": self.builder.made, "state": state_at_end(record, unfinished)}
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
