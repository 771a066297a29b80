"""The state of a run: its items, model, probes and measurements so far."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from filelock import BaseFileLock

from gapclose.core.distributed import engine_given, run_on_main
from gapclose.core.files import read_json, remove_leftovers, write_json, write_text
from gapclose.core.logging import get_logger, shows_bars
from gapclose.core.versions import refuse_other_versions, say_other_environment
from gapclose.data.item_set import ItemSet
from gapclose.data.prompt_templates import apply_prompt
from gapclose.evaluation.controls.features import Chosen
from gapclose.evaluation.controls.run_controls import gate, run_controls
from gapclose.evaluation.controls.text import read_text, text_control
from gapclose.evaluation.measurement import SplitMeasurement, measure
from gapclose.evaluation.prompt_variants import Measures, measure_prompt_variants
from gapclose.evaluation.record import make_record
from gapclose.evaluation.run_records import layer_words, read_records
from gapclose.export.run import check_export
from gapclose.metrics.judgeable import ADVICE
from gapclose.metrics.labels import Labels
from gapclose.metrics.status import STATES
from gapclose.models.checkpoint import memory_fingerprint
from gapclose.models.loading import LoadedModel, assemble, load_model
from gapclose.models.quantization import refuse_quantisation
from gapclose.models.sharding import shard
from gapclose.observe.extract import observe
from gapclose.observe.frozen_cache import HiddenStateCache
from gapclose.observe.request import ObservationRequest
from gapclose.observe.store import Observations
from gapclose.pipeline.config import Config, refuse_other_run, save_config
from gapclose.pipeline.items import Given, prepare_plain
from gapclose.pipeline.launch import check_launch, refuse_under_engine
from gapclose.pipeline.memory_estimate import refuse_small_disk
from gapclose.pipeline.run_dir import bind_items, environment, lock_run_dir, refuse_other_items, unlock_run_dir
from gapclose.pipeline.run_files import refuse_damaged_files
from gapclose.probes.config import ProbeConfig
from gapclose.probes.linear import FrozenProbe
from gapclose.probes.search import choose_probe, not_asked_words
from gapclose.report.figures import draw_epochs
from gapclose.training.lora import adapted_experts
from gapclose.training.objectives import loss_terms
from gapclose.training.tracking import NoTracker, make_tracker, refuse_missing_tracker, tracking_doubts

logger = get_logger(__name__)

MEASURED = ("gap", "transfer", "retain")


class RunContext:
    """The state of one run: its items, model, probes and measurements so far."""

    def __init__(self, config: Config, *, closing: bool, given: Given | None = None) -> None:
        """Check launch, configuration, items and media, then load the model.

        Args:
            given: items and model that are already in memory.

        Raises:
            ValueError: for all faults of these before the model loads; after loading, for
                configured layers that do not exist and experts that cannot be adapted.
        """
        transformers.logging.set_verbosity_error()
        if not shows_bars():
            transformers.logging.disable_progress_bar()
        self.config, self.directory, self.given = config, Path(config.run_dir), given
        self.weights = dict[str, Any]()
        """copy of the weights of a model in memory, while a control may replace them"""
        refuse_quantisation(config.model.quantisation)
        refuse_missing_tracker(config)
        self.process = check_launch()
        engine = engine_given(self.process)
        refuse_under_engine(config, engine, self.process.num_processes, closing=closing)
        if given and engine != "ddp":
            raise ValueError(f"a model in memory runs on one process or under DDP, not under {engine}; save it, and use the command")
        if closing:
            if config.model.dtype == "float16":
                raise ValueError("model.dtype float16 cannot be trained without a loss scaler; choose bfloat16 or float32")
            check_export(config)
            config.train.accumulation(self.process.num_processes)
            if loss_terms(config.objective):
                config.train.counts()
        self.lock: BaseFileLock | None = None
        made = not self.directory.exists()
        self.on_main(self._take)
        try:
            self._load(closing)
        except BaseException:
            if self.lock is not None:
                unlock_run_dir(self.directory, self.lock, made=made)
            raise
        self.adapter = ""
        """name of weights other than the base's: fingerprint of an adapter, or a random draw"""
        self.tracker: NoTracker = NoTracker()
        self.probe: FrozenProbe
        self.sentinel: FrozenProbe
        self.fit_reading: np.ndarray
        self.text: Chosen
        self.prompted: Measures
        self.measured = dict[str, SplitMeasurement]()

    def _take(self) -> None:
        """Lock the run directory before anything is written, unless its run has other settings."""
        refuse_other_run(self.config, self.directory / "config.yaml")
        self.lock = lock_run_dir(self.directory)

    def _load(self, closing: bool) -> None:
        """Check items and media, load the model, and bind the locked directory to the run."""
        config = self.config
        self.on_main(lambda: refuse_damaged_files(self.directory))
        self.on_main(lambda: refuse_other_versions(self.directory, config.observe.versions))
        self.plain = prepare_plain(config, closing=closing, alone=self.on_main, given=self.given)
        self.items = apply_prompt(self.plain, config.prompts.asked, config.prompts)
        refuse_other_items(self.items, self.directory / "items.json")
        for line in tracking_doubts(config) if self.process.is_main_process else ():
            logger.warning(f"  {line}")
        self.loaded = self._from_memory(self.given) if self.given else load_model(config.model)
        batch = f", global batch {config.train.global_batch_size} in micro-batches of {config.train.micro_batch_size}" if closing else ""
        logger.info(f"precision {str(self.loaded.model.dtype).removeprefix('torch.')}{batch}")
        n_layers = len(self.loaded.layers)
        candidates = config.probe.candidates(n_layers)
        if closing:  # the lowest candidate: covers every layer that may get adapters
            adapted_experts(self.loaded.model, config.lora, config.lora.chosen(n_layers, candidates[0]))
        refuse_small_disk(self.loaded, self.items, config, closing=closing)
        # only now: a refused configuration must not bind the directory
        self.on_main(lambda: save_config(config, self.directory / "config.yaml"))
        if self.lock is not None:
            remove_leftovers(self.directory)
        self.on_main(lambda: bind_items(self.items, self.directory / "items.json"))
        self.on_main(self._keep_environment)
        self.place(self.loaded.model)

    def _from_memory(self, given: Given) -> LoadedModel:
        """Wrap the user's model, and copy its weights if a control will replace them."""
        model = given.model.eval()
        if self.config.controls.random_weights:
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        loaded = assemble(model, given.processor, path=self.config.model.path, fingerprint="")
        loaded.fingerprint = memory_fingerprint(model, given.processor)  # after ``assemble``, so that a second call finds the same
        return loaded

    @property
    def in_memory(self) -> bool:
        """Whether the model is the user's own object and was not loaded from a checkpoint."""
        return self.given is not None

    def reload(self) -> None:
        """Restore the weights of the run's model after a control has replaced them."""
        self.adapter = ""
        if self.given:
            self.loaded.model.load_state_dict(self.weights)
            return
        self.loaded.model = None  # one model in memory at a time
        self.place(load_model(self.config.model).model)

    def _keep_environment(self) -> None:
        """Write the environment of this start; different earlier ones stay below ``earlier``."""
        path, now = self.directory / "environment.json", environment(self.config.seed, self.process)
        before = read_json(path) if path.is_file() else {}
        say_other_environment(before, now)
        earlier = before.pop("earlier", [])
        earlier += [before] if before and before != now else []
        write_json(path, now | ({"earlier": earlier} if earlier else {}))

    def place(self, model: Any) -> None:
        """Set the run's model, and move it from the CPU to its device or shard it."""
        self.loaded.model = model
        if self.config.model.sharded:
            shard(model)
        elif self.config.model.quantisation is None:  # a quantised model was loaded onto its device
            model.to(self.process.device)

    def read_again(self) -> None:
        """Reload a base model that was observed in shards: adapters are added before sharding."""
        if self.config.model.sharded:
            self.loaded.model = None  # free the shards first
            self.loaded.model = load_model(self.config.model).model

    def on_main(self, write: Callable[[], object]) -> None:
        """Run ``write`` in the main process while the others wait; its error is raised in all."""

        def alone() -> None:
            write()

        run_on_main(alone)

    def observe(
        self, stage: str, items: ItemSet, *, replace: bool = False, max_new_tokens: int | None = None, **wanted: Any
    ) -> Observations:
        """Observe ``items`` under the current model into ``observations/STAGE``.

        Args:
            max_new_tokens: replaces ``observe.max_new_tokens``, if given.
        """
        extra, how = {"adapter": self.adapter}, self.config.observe
        if max_new_tokens is not None:
            how = dataclasses.replace(how, max_new_tokens=max_new_tokens)
        directory = self.directory / "observations" / stage
        shared = Path(how.shared) if how.shared and not self.adapter else None
        return observe(self.loaded, items, directory, how, ObservationRequest(**wanted, extra=extra), replace=replace, shared=shared)

    def fit_probes(self) -> None:
        """Choose and freeze probe and sentinel on fit, from one observation of all their layers."""
        fit, n_layers = self.items.select(split="fit", purpose="gap"), len(self.loaded.layers)
        candidates = self.config.probe.candidates(n_layers)
        observed = self.observe("base-fit", fit, layers=[*candidates, n_layers])
        labels = Labels.of(fit)
        known = (labels.concept, labels.clip, fit.concepts, self.config.probe)
        given: dict[str, Any] = {"modality": labels.modality, "seed": self.config.seed, "spread": True}
        choice = choose_probe(observed.residuals, *known, layers=candidates, **given)
        self.probe, self.fit_reading = choice.probe, choice.reading
        # The sentinel makes no targets: another family, at the last layer, which the adapters change.
        family = "logistic" if self.probe.family == "lda" else "lda"
        settings = ProbeConfig(families=[family]).settings()
        guard = choose_probe(observed.residuals, *known, layers=[n_layers], settings=settings, label="fitting the sentinel", **given)
        self.sentinel = guard.probe

        def save() -> None:
            evidence = {"chosen_from": choice.table, "n_fit": len(fit), "seed": self.config.seed, "not_asked": choice.not_asked}
            self.probe.save(self.directory / "probes" / "frozen", evidence)
            self.sentinel.save(self.directory / "probes" / "sentinel", {"chosen_from": guard.table, "n_fit": len(fit)})

        self.on_main(save)
        if choice.not_asked:
            logger.warning(f"  {not_asked_words(choice.not_asked)}")
        found = max(choice.table, key=lambda r: r["given_modality"])
        logger.info(
            f"probe: {layer_words(self.probe.layers)} of {n_layers}, {self.probe.family} ({self.probe.strength:g}), "
            f"out-of-fold accuracy {found['accuracy']:.3f} on {len(fit)} labelled items"
        )

    def measured_items(self, split: str) -> ItemSet:
        """Return the items that are measured on a split: gap, transfer and retention items."""
        return self.items.select(split=split, purpose=MEASURED)

    @property
    def measured_layers(self) -> list[int]:
        """The layers of both probes."""
        return sorted({*self.probe.layers, *self.sentinel.layers})

    def observe_measured(self, stage: str, split: str, *, replace: bool = False, trunk: HiddenStateCache | None = None) -> Observations:
        """Observe the measured items of a split: scores, answers, residuals of both probes."""
        wanted: dict[str, Any] = {"layers": self.measured_layers, "generate": True, "trunk": trunk}
        return self.observe(f"{stage}-{split}", self.measured_items(split), replace=replace, **wanted)

    def measure(self, stage: str, split: str, *, replace: bool = False, trunk: HiddenStateCache | None = None) -> SplitMeasurement:
        """Observe a split under the current model and measure it.

        Args:
            trunk: hidden-state cache of its items, if there is one.
        """
        items, observed = self.measured_items(split), self.observe_measured(stage, split, replace=replace, trunk=trunk)
        how = {"folds": self.config.probe.folds, "seed": self.config.seed, "match": self.config.prompts.matching(self.config.prompts.asked)}
        return measure(items, observed, self.probe, self.sentinel, self.config.gap, **how)

    def record(self, record: dict[str, Any]) -> None:
        """Write a record to ``gap.jsonl`` and the tracker, redraw the figure, and print a line.

        It replaces an earlier record of the same stage.
        """
        if self.items.skipped:
            record["n_skipped"] = len(self.items.skipped)

        def write() -> None:
            path = self.directory / "gap.jsonl"
            records = {r["stage"]: r for r in read_records(self.directory)} | {record["stage"]: record}  # a replaced record keeps its place
            write_text(path, "".join(json.dumps(r, allow_nan=False) + "\n" for r in records.values()))
            self.tracker.record(record)
            draw_epochs(self.directory)

        self.on_main(write)
        action, reading = record["action"]["balanced"]["value"], record["reading"]["balanced"]["value"]
        line = f"{record['stage']}: action {action:.3f}, reading {reading:.3f} (balanced)"
        if "change" in record:
            line += f", closure {_number(record['change']['closure'])}, standard accuracy {0.0 - record['change']['standard_drop']['value']:+.3f}"
        logger.info(f"{line}, state: {record['state']}")
        if record["state"] not in ("open", "closed"):
            logger.warning(f"  {record['state']}: {STATES[record['state']]}")

    def measure_base(self, splits: Sequence[str]) -> dict[str, SplitMeasurement]:
        """Measure the base model; on test, also the text-only control and the prompt variants."""
        found = {}
        for split in splits:
            found[split] = self.measure("base", split)
            for fault in found[split].acting["all"].faults:
                logger.warning(f"  on {split} {fault}. {ADVICE}")
            record = make_record(f"base/{split}", 0, found[split], None, self.config.gap, self.config.seed)
            if split == "test":
                fit, items = self.items.select(split="fit"), self.measured_items(split)
                self.text = read_text(fit, items, folds=self.config.probe.folds, seed=self.config.seed)
                record["controls"] = text_control(
                    fit, items, found[split], self.config.gap, reading=self.text.reading, seed=self.config.seed
                )
                prompts, self.prompted = measure_prompt_variants(self, "base")
                record |= {"prompts": prompts} if prompts else {}
            self.record(record)
        self.measured |= found
        return found

    def examine(self, *, thorough: bool) -> None:
        """Write ``measurement.json`` with controls, and print its verdicts.

        Args:
            thorough: use all configured controls, not only text and random weights. A thorough file
                is replaced only by another thorough one.
        """
        path = self.directory / "measurement.json"
        before = run_on_main(lambda: read_json(path) if path.is_file() else {})
        if thorough or not before.get("thorough"):
            found = run_controls(self, thorough=thorough).to_dict()
            gone = [key for key, value in before.items() if value and not found.get(key)]
            if gone:
                logger.info(f"measurement.json held {', '.join(gone)} and does not any more: the configuration asks for less")
            self.on_main(lambda: write_json(path, found))
        for name, verdict in run_on_main(lambda: read_json(path, "verdicts")["verdicts"]).items():
            logger.info(f"{name} on test: {verdict['word']}")

    def gate(self) -> None:
        """Write ``gate.json``: the verdicts on val, which allow or refuse training."""
        found = gate(self)
        self.on_main(lambda: write_json(self.directory / "gate.json", found.to_dict()))
        for name, verdict in found.verdicts.items():
            logger.info(f"{name} on val: {verdict.word}")

    def track(self) -> None:
        """Start the configured tracker in the main process."""

        def start() -> None:
            self.tracker = make_tracker(self.config, dataclasses.asdict(self.config))

        self.on_main(start)


def _number(interval: dict[str, float | None]) -> str:
    return "undefined" if interval["value"] is None else f"{interval['value']:.2f}"
