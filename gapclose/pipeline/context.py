"""The state of a run: its items, model, probes and measurements so far."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import transformers
from filelock import BaseFileLock

from gapclose.core.distributed import engine_given, run_on_main
from gapclose.core.files import read_json, remove_leftovers, write_json
from gapclose.core.logging import get_logger, shows_bars
from gapclose.core.versions import refuse_other_versions, say_other_environment
from gapclose.data.prompt_templates import apply_prompt
from gapclose.evaluation.controls.run_controls import gate, run_controls
from gapclose.export.run import check_export
from gapclose.models.checkpoint import memory_fingerprint
from gapclose.models.loading import LoadedModel, assemble, load_model
from gapclose.models.quantization import refuse_quantisation
from gapclose.models.sharding import shard
from gapclose.pipeline.auto_settings import costliest, take_over
from gapclose.pipeline.config import Config, refuse_other_run, save_config
from gapclose.pipeline.items import Given, prepare_plain
from gapclose.pipeline.launch import check_launch, refuse_under_engine
from gapclose.pipeline.measure_context import MeasureContext
from gapclose.pipeline.memory_estimate import refuse_small_disk
from gapclose.pipeline.run_dir import bind_items, environment, lock_run_dir, refuse_other_items, unlock_run_dir
from gapclose.pipeline.run_files import refuse_damaged_files
from gapclose.report.figures import draw_epochs
from gapclose.training.lora import adapted_experts
from gapclose.training.objectives import loss_terms
from gapclose.training.tracking import Trackers, make_trackers, refuse_missing_trackers, tracking_doubts

logger = get_logger(__name__)


class RunContext(MeasureContext):
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
        super().__init__(config, Path(config.run_dir))
        self.given = given
        self.weights = dict[str, Any]()
        """copy of the weights of a model in memory, while a control may replace them"""
        refuse_quantisation(config.model.quantisation)
        refuse_missing_trackers(config)
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
        self.trackers = Trackers()

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
            lora = costliest(config).lora
            adapted_experts(self.loaded.model, lora, lora.chosen(n_layers, candidates[0]))
        refuse_small_disk(self.loaded, self.items, config, closing=closing)
        take_over(config)
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

    def on_record(self, record: dict[str, Any]) -> None:
        """Send a new record to the trackers, and redraw the figure."""
        self.trackers.record(record)
        draw_epochs(self.directory)

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
        """Start the configured trackers in the main process."""

        def start() -> None:
            self.trackers = make_trackers(self.config, dataclasses.asdict(self.config))

        self.on_main(start)
