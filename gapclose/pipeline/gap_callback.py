"""Re-measurement of the gap in anyone's training: :class:`GapCallback`."""

from __future__ import annotations

import copy
import dataclasses
import math
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from peft import PeftModel

from gapclose.core.distributed import run_on_main
from gapclose.core.logging import get_logger, show_warnings
from gapclose.data.item_set import ItemSet
from gapclose.data.load import load_items
from gapclose.data.prompt_templates import apply_prompt
from gapclose.evaluation.record import make_record
from gapclose.evaluation.run_records import CALLBACK_FOLDER, HEADLINES, headlines, read_records, record_of, val_record_after
from gapclose.export.monitor import monitor_of_observations
from gapclose.models.checkpoint import memory_fingerprint
from gapclose.models.loading import assemble
from gapclose.models.training_state import training_set_aside
from gapclose.pipeline.callback_start import (
    SETTINGS,
    claim_callback_directory,
    lora_above,
    only_lora,
    refuse_metric,
    refuse_unmeasurable,
    step_that_is_left,
    warn_of_training_below,
)
from gapclose.pipeline.config import config_of, missing_functions
from gapclose.pipeline.items import Given, prepare_plain
from gapclose.pipeline.measure_context import MeasureContext
from gapclose.pipeline.monitor import Monitor
from gapclose.pipeline.monitored_model import reaches_probe
from gapclose.training.callbacks import running_trainer
from gapclose.training.config import GUARDS as KNOWN_GUARDS
from gapclose.training.config import GuardsConfig
from gapclose.training.early_stopping import GUARDS, check_guards, triggered
from gapclose.training.lora import adapter_changed, adapter_fingerprint

logger = get_logger(__name__)

SAME_READING = 1e-3
"""largest relative change of the probe's residuals under which the base model's calibration holds"""


class GapCallback(transformers.TrainerCallback):
    """Measures the gap before a training, after its epochs or every N steps, and at its end.

    It works in ``transformers.Trainer`` and its subclasses, such as TRL's, on one process and under
    DDP, FSDP2, ZeRO-2 and ZeRO-3. The training takes the same steps as without it, bit for bit.

    At the beginning the base model is observed: a ``PeftModel`` with its adapters disabled, any other
    model as it is. The frozen probe is chosen on ``fit``, as :func:`gapclose.measure` does. ``val``
    is measured then and again as ``every`` says; ``test``, if the items have it, at the beginning and
    at the end. Every record goes to ``OUT/gap.jsonl``, and its headline figures to the trainer's
    ``log``, so to every tracker in ``report_to``. The trainer's own evaluations have those of ``val``
    among their metrics, so that ``metric_for_best_model="action/balanced"`` works.
    :func:`gapclose.load_run` reads a directory with ``test``. Warnings go to standard error, unless
    the application has configured logging.

    Args:
        items: item set with labelled splits ``fit`` and ``val``, or the directory of one.
        processor: the model's processor, or the tokenizer of a text-only model; it is copied. None:
            the trainer's ``processing_class``.
        every: ``"epoch"``, or a number of optimiser steps.
        out: directory for all files; None: ``gapclose`` in the trainer's ``output_dir``. A training
            that starts anew replaces them; one that resumes goes on from them.
        stop_on: guards that end the training when they object in ``guards.patience`` (2) measurements
            in a row: over-rejection, parsing, retention, fresh, sentinel, adapter. With parsing, numbers
            that are not finite end it at once.
        settings: configuration groups as dictionaries or dataclasses: ``probe``, ``observe``, ``gap``,
            ``prompts``, ``labelling`` and ``guards``, as for :func:`gapclose.measure`, and ``seed``.

    Raises:
        ValueError: for settings that do not exist or do not fit. At the beginning of the training,
            for faults of the items, for engines other than those above, for tensor, context and
            sequence parallelism, and for a model on several devices.
    """

    def __init__(
        self,
        items: ItemSet | str | Path,
        *,
        processor: Any = None,
        every: str | int = "epoch",
        out: str | Path | None = None,
        stop_on: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        if every != "epoch" and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
            raise ValueError(f"every is {every!r}; it must be 'epoch' or a number of optimiser steps, 1 or more")
        if unknown := sorted(set(stop_on) - set(GUARDS)):
            raise ValueError(f"stop_on names {unknown}; choose some of {list(GUARDS)}")
        guards = settings.get("guards", {})
        guards = dataclasses.asdict(guards) if isinstance(guards, GuardsConfig) else guards
        if guards.get("off") is not None:
            raise ValueError("guards.off is not taken here; stop_on names the guards that are on")
        settings |= {"guards": guards | {"off": [name for name in KNOWN_GUARDS if name not in stop_on]}}
        self.config = config_of(settings, (*SETTINGS, "guards"))
        if faults := list(missing_functions(self.config)):
            raise ValueError("; ".join(faults))
        self.items = items if isinstance(items, ItemSet) else load_items(items)
        self.processor, self.every, self.out = processor, every, out
        self.run: MeasureContext | None = None
        self.trainer: transformers.Trainer | None = None
        self.last_step, self.stopped, self.place = -1, dict[str, str](), 0
        self.figures = dict[str, float]()
        """of val after ``last_step``, by their names in the trainer's log"""
        self.lora, self.ended = False, False  # whether all weights that are trained are LoRA's; whether the training is over

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the base model.

        Raises:
            ValueError: see the class.
        """
        show_warnings()
        model, processor = kwargs["model"], self.processor or kwargs.get("processing_class")
        self.trainer, self.last_step, self.stopped, self.ended = running_trainer(), -1, {}, False
        if self.trainer is None:
            logger.warning("GapCallback: no transformers.Trainer called it, so its figures are in gap.jsonl alone")
        else:
            self.place = self._take_place(0)  # before the trackers, which close at the end of the training
        refuse_unmeasurable(model, self.trainer)
        refuse_metric(args)
        if processor is None:
            raise ValueError("GapCallback needs a processor: give it one (processor=...), or the trainer its processing_class")
        directory = Path(self.out) if self.out is not None else Path(args.output_dir) / CALLBACK_FOLDER
        self.config.run_dir, self.config.data.path = str(directory), str(self.items.root)
        self.config.model.path = str(getattr(model, "name_or_path", "") or type(model).__name__)
        given = Given(items=self.items, model=model, processor=copy.deepcopy(processor))
        splits = {"fit": True, "val": True} | ({"test": True} if self.items.select(split="test").items else {})
        self.run = run = MeasureContext(self.config, directory)
        run.plain = prepare_plain(self.config, closing=False, given=given, splits=splits)
        run.items = apply_prompt(run.plain, self.config.prompts.asked, self.config.prompts)
        with training_set_aside(model):
            run.loaded = assemble(model, given.processor, path=self.config.model.path, fingerprint="")
            base, resumed = memory_fingerprint(model, given.processor), state.global_step
            self.lora = only_lora(model)
            run.loaded.fingerprint = run_on_main(lambda: claim_callback_directory(run, base, resumed, [*splits], base_known=self.lora))
            with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
                run.fit_probes()
                run.measure_base([split for split in splits if split != "fit"])
            warn_of_training_below(model, run.probe.layer)
            for split in () if resumed else run.measured:
                self._log(split, f"base/{split}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Measure every N steps."""
        if self.every != "epoch" and state.global_step % int(self.every) == 0:
            self._measure_val(state, control, kwargs["model"])
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Measure after every epoch."""
        if self.every == "epoch" and self.last_step != state.global_step:
            self._measure_val(state, control, kwargs["model"], f"epoch-{math.ceil(round(state.epoch, 6))}/val")
        return control

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the figures of ``val`` after the same step to the metrics, and measure them first if they choose the best checkpoint."""
        if self.run is None or self.ended or state.global_step == 0:  # there is nothing to choose
            return
        chosen = (args.metric_for_best_model or "").removeprefix("eval_")
        if self.last_step != state.global_step and chosen in HEADLINES:
            self._measure_val(state, control, kwargs["model"])
        if self.last_step == state.global_step:
            missing = {f"eval_{chosen}": math.nan} if chosen in HEADLINES else {}  # never the best one
            kwargs["metrics"].update(missing | self.figures)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the model that is left, the last or the best one: ``val`` unless it was measured then, and ``test``."""
        assert self.run is not None
        directory, model, step = self.run.directory, kwargs["model"], step_that_is_left(args, state)
        if run_on_main(lambda: val_record_after(directory, step)) is None:
            self._measure(state, model, "val", f"step-{step}/val", step)
        if "test" in self.run.measured:
            self._measure(state, model, "test", "adapted/test", step)
        self.last_step, self.ended = step, True
        if self.trainer is not None:
            self._take_place(self.place)

    def monitor(self, *, false_alarm_rate: float | None = None) -> Monitor:
        """Return a monitor of the model that was trained, with a threshold chosen on ``val``.

        It also serves the base model. Call it after the training, in one process.

        Args:
            false_alarm_rate: largest share of the standard items of ``val`` that may be flagged, 0..1;
                None: 0.05.

        Raises:
            ValueError: before a training, and where the training changed what the probe reads: the
                monitor would have no calibration for the trained model.
        """
        if self.run is None or self.trainer is None:
            raise ValueError("there is no monitor before the training; call trainer.train() first")
        model, probe = self.trainer.model, self.run.probe
        assert model is not None
        if (record := val_record_after(self.run.directory, self.last_step)) is None:
            raise ValueError("val of the trained model was not measured, so it is not known whether the base's threshold holds for it")
        largest = float(np.abs(self.run.measured["val"].residual).max())
        if not self.lora or reaches_probe(model, probe.layer) or record["frozen_probe_shift"] / largest > SAME_READING:
            raise ValueError(
                f"the training changed more than LoRA above decoder layer {probe.layer}, which the probe reads. {lora_above(probe.layer)}, or run "
                "gapclose.measure on the trained model and use Monitor.from_run"
            )
        made = monitor_of_observations(self.run.directory, self.config, self.run.items, "base-val", above=True, rate=false_alarm_rate)
        return Monitor(made)

    def _take_place(self, place: int) -> int:
        """Move this callback to a place among those of the trainer, and return where it was."""
        assert self.trainer is not None
        handler = self.trainer.callback_handler
        before, others = handler.callbacks.index(self), [c for c in handler.callbacks if c is not self]
        handler.callbacks = [*others[:place], self, *others[place:]]  # a new list: the old one is being gone through
        return before

    def _measure_val(self, state: Any, control: Any, model: Any, stage: str | None = None) -> None:
        """Measure ``val``, and stop the training where a guard of ``stop_on`` asks for it."""
        stage, self.figures = stage or f"step-{state.global_step}/val", {}
        measured = self._measure(state, model, "val", stage, state.global_step)
        self.last_step = state.global_step
        not_finite = {"parsing": f"{stage} could not be measured"} if "parsing" not in (self.config.guards.off or []) else {}
        if fired := run_on_main(self._fired) if measured else not_finite:
            self.stopped = fired
            control.should_training_stop = True
            for name, reason in fired.items():
                logger.warning(f"  stopped by the guard {name}: {reason}")

    def _fired(self) -> dict[str, str]:
        assert self.run is not None
        return triggered([r for r in read_records(self.run.directory) if "objections" in r], self.config.guards)

    def _measure(self, state: Any, model: Any, split: str, stage: str, step: int) -> bool:
        """Measure a split of the model as it is, and write and log the record.

        Returns whether it could be measured: numbers that are not finite are a warning.

        Args:
            step: optimiser steps after which the model was what it is.
        """
        run = self.run
        assert run is not None
        epoch = round(state.epoch * step / max(state.global_step, 1), 4)
        with training_set_aside(model):
            before = run.loaded
            run.loaded = assemble(model, before.processor, path=before.path, fingerprint=before.fingerprint)
            lora = any("lora_" in name for name, _ in model.named_parameters())
            run.adapter = adapter_fingerprint(model) if lora else memory_fingerprint(model, before.processor)
            now = None
            try:
                now = run.measure("now", split, replace=True)
            except FloatingPointError as error:  # in all processes; it is no reason to end somebody's training
                logger.warning(f"  {stage} is not measured: {error}")
            # after other errors the processes must end at once, and not wait for each other here
            run.on_main(lambda: shutil.rmtree(run.directory / "observations" / f"now-{split}", ignore_errors=True))
            if now is None:
                return False
            of = (stage, int(epoch) if float(epoch).is_integer() else epoch, now, run.measured[split])
            if split == "val":
                record = run.epoch_record(*of)
                record["adapter_changed"] = adapter_changed(model) if lora else run.adapter != before.fingerprint
                base = run_on_main(lambda: record_of(run.directory, "base/val"))
                assert base is not None
                record["objections"] = check_guards(record, base, self.config.gap, self.config.guards)
            else:
                record = make_record(*of, self.config.gap, self.config.seed) | {"stopped": self.stopped}
            run.record(record | {"step": step})
            self._log(split, stage)
        return True

    def _log(self, split: str, stage: str) -> None:
        """Hand the headline figures of a record to the trainer's log.

        Inside :func:`training_set_aside`: in evaluation mode TRL's trainers add none of the metrics
        that they collect for their next line.
        """
        assert self.run is not None
        directory, trainer = self.run.directory, self.trainer
        record = run_on_main(lambda: record_of(directory, stage))
        if trainer is None or record is None:
            return
        due = trainer.control.should_log
        figures: dict[str, Any] = {f"{'eval' if split == 'val' else split}_{name}": value for name, value in headlines(record).items()}
        if split == "val":
            self.figures = {name: value for name, value in figures.items() if not isinstance(value, str)}
        trainer.log(figures)
        trainer.control.should_log = due  # the line of the loss is still to come
