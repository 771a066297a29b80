"""One run, one directory: the stages of measuring and closing a gap, each of which picks up what is already there.

    items -> observe -> read -> compare -> align -> observe again -> export

Every process of a launch executes every stage; files are written by the main process alone, except shards of observations.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from safetensors.torch import load_file

from gapclose.adapters import adapter_fingerprint, add_lora
from gapclose.baselines.by_trl import make_trl_trainer
from gapclose.baselines.trl_items import epoch_figures
from gapclose.config import Config, refuse_other_run, save_config
from gapclose.examine.examination import examine
from gapclose.examine.features import Chosen
from gapclose.export import export_run
from gapclose.files import read_json, write_json, write_text
from gapclose.gap import STATES, Labels, option_concepts
from gapclose.items import ItemSet
from gapclose.launch import check_launch, environment, take_directory
from gapclose.measure import Measured, best_epoch, make_record, measure, read_text, text_control
from gapclose.media import SUPPORTED
from gapclose.models import load_model
from gapclose.objectives import BY_TRL, LOSS_TERMS, needs_reading
from gapclose.observations import Observations
from gapclose.observe import Wanted, observe
from gapclose.probes import FrozenProbe, ProbeConfig, choose_probe
from gapclose.progress import say
from gapclose.report.figures import draw_epochs
from gapclose.report.page import write_page
from gapclose.report.summary import read_records, summarise
from gapclose.targets import Targets, build_targets
from gapclose.tracking import LossLines, NoTracker, make_tracker
from gapclose.trainer import Example, last_complete_checkpoint, make_trainer
from gapclose.validate import bind_items, prepare_items, refuse_other_items
from gapclose.verdict import unproven

MEASURED = ("gap", "transfer", "retain")


class Run:
    """The state of one run: what was loaded, chosen and measured so far."""

    def __init__(self, config: Config, *, closing: bool) -> None:
        """Check launch, configuration, items and media, then load the model.

        Raises:
            ValueError: for everything that is wrong with them, before the model loads; for layers that it lacks, right after.
        """
        transformers.logging.set_verbosity_error()
        if not sys.stderr.isatty():
            transformers.logging.disable_progress_bar()
        self.config, self.directory = config, Path(config.run_dir)
        self.process = check_launch()
        if closing:
            if config.model.dtype == "float16":
                raise ValueError("model.dtype float16 cannot be trained without a loss scaler; choose bfloat16 or float32")
            config.train.accumulation(self.process.num_processes)
            if config.objective in LOSS_TERMS:
                config.train.counts()
        self.lock = take_directory(self.directory) if self.process.is_main_process else None
        refuse_other_run(config, self.directory / "config.yaml")
        self.items = prepare_items(config, closing=closing, main=self.process.is_main_process, wait=self.process.wait_for_everyone)
        refuse_other_items(self.items, self.directory / "items.json")
        self.loaded = load_model(config.model)
        n_layers = len(self.loaded.layers)
        config.probe.candidates(n_layers)
        if closing:
            config.lora.chosen(n_layers, n_layers - 1)
        # only now: a mistake that is refused must not bind the directory to its configuration
        self._on_main(lambda: save_config(config, self.directory / "config.yaml"))
        self._on_main(lambda: bind_items(self.items, self.directory / "items.json"))
        self.loaded.model.to(self.process.device)
        self.adapter = ""
        self.tracker: NoTracker = NoTracker()
        self.forced: dict[str, str] = {}
        self._on_main(lambda: write_json(self.directory / "environment.json", environment(config.seed, self.process)))
        self.probe: FrozenProbe
        self.sentinel: FrozenProbe
        self.fit_reading: np.ndarray
        self.text: Chosen

    def _on_main(self, write: Any) -> None:
        """Let the main process write while the others wait; an error there ends all of them."""
        if self.process.is_main_process:
            write()
        self.process.wait_for_everyone()

    def observe(self, stage: str, items: ItemSet, *, replace: bool = False, **wanted: Any) -> Observations:
        """Observe ``items`` under the current model into ``observations/STAGE``."""
        extra = {"adapter": self.adapter}
        directory = self.directory / "observations" / stage
        return observe(self.loaded, items, directory, self.config.observe, Wanted(**wanted, extra=extra), replace=replace)

    # -- read ---------------------------------------------------------------------------------------------------------------

    def fit_probes(self) -> None:
        """Choose and freeze the probe and its sentinel on the fit split, from one observation of all candidate layers."""
        fit, n_layers = self.items.select(split="fit", purpose="gap"), len(self.loaded.layers)
        candidates = self.config.probe.candidates(n_layers)
        observed = self.observe("base-fit", fit, layers=[*candidates, n_layers])
        labels = Labels.of(fit)
        known = (labels.concept, labels.clip, fit.concepts, self.config.probe)
        choice = choose_probe(observed.residuals, *known, layers=candidates, seed=self.config.seed)
        self.probe, self.fit_reading = choice.probe, choice.reading
        # The sentinel never makes a target: another family, at the last layer, which the adapters change.
        family = "logistic" if self.probe.family == "lda" else "lda"
        settings = ProbeConfig(families=[family]).settings()
        guard = choose_probe(
            observed.residuals, *known, layers=[n_layers], settings=settings, seed=self.config.seed, label="fitting the sentinel"
        )
        self.sentinel = guard.probe

        def save() -> None:
            self.probe.save(
                self.directory / "probes" / "frozen", {"chosen_from": choice.table, "n_fit": len(fit), "seed": self.config.seed}
            )
            self.sentinel.save(self.directory / "probes" / "sentinel", {"chosen_from": guard.table, "n_fit": len(fit)})

        self._on_main(save)
        found = max(choice.table, key=lambda r: r["log_likelihood"])
        say(
            f"probe: layer {self.probe.layer} of {n_layers}, {self.probe.family} ({self.probe.strength:g}), "
            f"out-of-fold accuracy {found['accuracy']:.3f} on {len(fit)} labelled items"
        )

    # -- compare ------------------------------------------------------------------------------------------------------------

    def measured_items(self, split: str) -> ItemSet:
        """What is measured on a split: its gap, transfer and retain items."""
        return self.items.select(split=split, purpose=MEASURED)

    def measure(self, stage: str, split: str, *, replace: bool = False) -> Measured:
        """Observe a split under the current model and measure it."""
        items = self.measured_items(split)
        layers = sorted({self.probe.layer, self.sentinel.layer})
        observed = self.observe(f"{stage}-{split}", items, layers=layers, generate=True, replace=replace)
        return measure(items, observed, self.probe, self.sentinel, self.config.gap, folds=self.config.probe.folds, seed=self.config.seed)

    def record(self, record: dict[str, Any]) -> None:
        """Put a record into ``gap.jsonl`` (replacing one of the same stage), mirror it, redraw the figure, and print a line."""

        def write() -> None:
            path = self.directory / "gap.jsonl"
            records = {r["stage"]: r for r in read_records(self.directory)} | {record["stage"]: record}  # a repeated one keeps its place
            write_text(path, "".join(json.dumps(r, allow_nan=False) + "\n" for r in records.values()))
            self.tracker.record(record)
            draw_epochs(self.directory)

        self._on_main(write)
        action, reading = record["action"]["balanced"]["value"], record["reading"]["balanced"]["value"]
        line = f"{record['stage']}: action {action:.3f}, reading {reading:.3f} (balanced)"
        if "change" in record:
            line += f", closure {_number(record['change']['closure'])}, standard accuracy {0.0 - record['change']['standard_drop']['value']:+.3f}"
        say(f"{line}, state: {record['state']}")
        if record["state"] not in ("open", "closed"):
            say(f"  warning: {record['state']}: {STATES[record['state']]}")

    def measure_base(self, splits: Sequence[str]) -> dict[str, Measured]:
        """Measure the base model, with the text-only control on test."""
        found = {}
        for split in splits:
            found[split] = self.measure("base", split)
            record = make_record(f"base/{split}", 0, found[split], None, self.config.gap, self.config.seed)
            if split == "test":
                fit, items = self.items.select(split="fit"), self.measured_items(split)
                self.text = read_text(fit, items, folds=self.config.probe.folds, seed=self.config.seed)
                record["controls"] = text_control(
                    fit, items, found[split], self.config.gap, reading=self.text.reading, seed=self.config.seed
                )
            self.record(record)
        return found

    def examine(self, *, thorough: bool) -> None:
        """Write ``measurement.json``: with all controls that the configuration asks for, or with those that cost no forward.

        A thorough one is not replaced by another that holds less.
        """
        path = self.directory / "measurement.json"
        if thorough or not (path.is_file() and read_json(path)["layers"]):
            found = examine(self, thorough=thorough)
            self._on_main(lambda: write_json(path, found))
        for name, verdict in read_json(path)["verdicts"].items():
            say(f"{name}: {verdict['word']}")

    # -- align --------------------------------------------------------------------------------------------------------------

    def refuse_unproven(self) -> None:
        """Stop before targets are made of a reading that is not shown to be more than the wording, unless ``force`` is set.

        Raises:
            ValueError: naming every modality of the train items whose verdict is not ``real``, and why.
        """
        verdicts, config = read_json(self.directory / "measurement.json")["verdicts"], self.config
        if not needs_reading(config.objective):
            return
        train = self.items.select(split="train", purpose="gap")
        self.forced = unproven(sorted({i.modality for i in train}), verdicts)
        if self.forced and not config.force:
            listed = "\n".join(f"  - {name}: {why}" for name, why in self.forced.items())
            raise ValueError(
                f"{self.directory}: what the probe reads is not shown to be more than the wording, so nothing is trained on it:\n{listed}\n"
                "Label more clips (splits fit and test), leave the train items of such a modality out, or give --force to train all the "
                "same; the evidence will say so"
            )
        for name, why in self.forced.items():
            say(f"  warning: forced: training on the reading of {name}: {why}")

    @property
    def blanked(self) -> tuple[str, ...]:
        """The kinds of media that training does not see: a control, normally none."""
        return SUPPORTED if self.config.targets.control == "blank_media" else ()

    def training_examples(self) -> list[Example]:
        """Targets for the train items by Jeffrey's rule, and what the other terms of the loss need, all from the base model."""
        config, blank = self.config, self.blanked
        examples: list[Example] = []
        if config.train.consistency:
            targets, train, _ = self.build_targets()
            examples += [
                Example(item=i, term="consistency", weights=t) for i, t, k in zip(train, targets.target, targets.keep, strict=True) if k
            ]
        if config.train.gold:
            fit = self.items.select(split="fit", purpose="gap").items
            examples += [Example(item=i, term="gold", weights=np.eye(len(i.options))[i.gold]) for i in fit]
        if config.train.retain:
            retain = self.items.select(split="train", purpose="retain").unlabelled()
            seen = self.observe("base-retain", retain, blank=blank, top_tokens=config.train.retain_tokens)
            assert seen.top_logps is not None and seen.top_tokens is not None
            kept = zip(retain, seen.top_logps, seen.top_tokens, strict=True)
            examples += [Example(item=i, term="retain", base_logps=p, base_tokens=t) for i, p, t in kept]
        return examples

    def build_targets(self) -> tuple[Targets, ItemSet, np.ndarray]:
        """Observe the unlabelled train items, build their targets, and store them; with the items and the base model's scores (N, O)."""
        blank = SUPPORTED if self.config.targets.control in ("blank_media", "blank_targets") else ()
        train = self.items.select(split="train", purpose="gap").unlabelled()
        path, ids = self.directory / "targets.safetensors", [i.id for i in train]
        observed = self.observe("base-train", train, layers=[self.probe.layer], blank=blank)
        scores = observed.scores.double().numpy()
        # always rebuilt: cheap, and a file from before a change of labels would be stale
        fit = Labels.of(self.items.select(split="fit", purpose="gap"))
        targets = build_targets(
            self.config.targets,
            ids=ids,
            reading=self.probe.read(observed.residuals[self.probe.layer]),
            scores=scores,
            option_concept=option_concepts(train.items, train.concepts),
            modality=np.array([i.modality for i in train]),
            fit_reading=self.fit_reading,
            fit_concept=fit.concept,
            alarm=np.isin(train.concepts, train.alarm),
            seed=self.config.seed,
        )
        self._on_main(lambda: targets.save(path))
        facts = targets.summary(train.concepts)
        say(
            f"targets: {facts['kept']} of {facts['items']} train items, {facts['kept_by_concept']}, alarm prior x{facts['prior_factor']:.3g}"
        )
        return targets, train, scores

    def train(self, base: Measured) -> None:
        """Train adapters, measuring ``val`` after every epoch; an interrupted training goes on from its last whole checkpoint."""
        config, directory = self.config, self.directory / "checkpoints"
        layers = config.lora.chosen(len(self.loaded.layers), self.probe.layer)
        for_trl = self.build_targets() if config.objective in BY_TRL else None
        examples = [] if for_trl else self.training_examples()
        add_lora(self.loaded, config.lora, layers, config.seed)
        trainable = sum(p.numel() for p in self.loaded.model.parameters() if p.requires_grad)
        say(f"adapters: {trainable:,} parameters on decoder layers {layers[0]}..{layers[-1]}")

        def after_epoch(epoch: int) -> None:
            self.set_adapter_fingerprint()
            self._on_main(lambda: self.loaded.model.save_pretrained(str(directory / f"epoch-{epoch}")))
            self.loaded.model.eval()
            now = self.measure(f"epoch-{epoch}", "val", replace=True)
            record = make_record(f"epoch-{epoch}/val", epoch, now, base, config.gap, config.seed)
            self.record(record | ({"training": epoch_figures(trainer.state.log_history, epoch)} if for_trl else {}))

        common: dict[str, Any] = {"after_epoch": after_epoch, "callbacks": [LossLines(self.tracker)]}
        media = self.loaded.media(self.items, blank=self.blanked)
        if for_trl:
            trainer = make_trl_trainer(self.loaded, *for_trl, media, config, directory, **common)
        else:
            trainer = make_trainer(self.loaded, examples, media, config.train, directory, seed=config.seed, **common)
        resume = last_complete_checkpoint(directory)
        if resume is not None:
            say(f"going on from {resume.name}")
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        self.loaded.model.eval()

    def set_adapter_fingerprint(self) -> None:
        """Name the current adapter weights, so that observations of one adapter are never taken for another's."""
        self.adapter = adapter_fingerprint(self.loaded.model)

    def load_epoch(self, epoch: int) -> None:
        """Put the adapter of an epoch into the model.

        Raises:
            ValueError: when its keys do not fit the model's.
        """
        import peft

        weights = load_file(self.directory / "checkpoints" / f"epoch-{epoch}" / "adapter_model.safetensors")
        result = peft.set_peft_model_state_dict(self.loaded.model, weights)
        lacking = [k for k in result.missing_keys if "lora_" in k]
        if result.unexpected_keys or lacking:
            raise ValueError(f"the adapter of epoch {epoch} does not fit this model: {[*result.unexpected_keys, *lacking][:3]}")
        self.set_adapter_fingerprint()

    # -- observe again, export ------------------------------------------------------------------------------------------------

    def finish(self, base: Measured) -> dict[str, Any]:
        """Measure the best epoch's adapter on test, once; export it with its evidence; close the tracker."""
        epoch = best_epoch(read_records(self.directory), self.config.train.epochs, self.config.gap)
        self.load_epoch(epoch)
        now = self.measure("adapted", "test", replace=True)
        record = make_record("adapted/test", epoch, now, base, self.config.gap, self.config.seed)
        self.record(record | {"forced": sorted(self.forced)})
        summary = summarise(self.directory)
        self._on_main(lambda: export_run(self.directory, self.config, self.loaded, summary))
        if self.process.is_main_process:
            write_page(self.directory)
            self.tracker.finish(summary, self.directory / "adapter")
        return summary

    def track(self) -> None:
        """Start mirroring records to the configured tracker."""
        import dataclasses

        self.tracker = make_tracker(self.config, dataclasses.asdict(self.config))


def _number(interval: dict[str, float | None]) -> str:
    return "undefined" if interval["value"] is None else f"{interval['value']:.2f}"


def run_measure(config: Config) -> dict[str, Any]:
    """Measure the gap of the base model on test, with every control that the configuration asks for, without training."""
    run = Run(config, closing=False)
    run.track()
    run.fit_probes()
    run.measure_base(["test"])
    run.examine(thorough=True)
    summary = summarise(run.directory)
    if run.process.is_main_process:
        write_page(run.directory)
        run.tracker.finish(summary, None)
    return summary


def run_close(config: Config) -> dict[str, Any]:
    """Measure, train with re-measurement after every epoch, measure again, export."""
    run = Run(config, closing=True)
    run.track()
    run.fit_probes()
    base = run.measure_base(["val", "test"])
    run.examine(thorough=False)
    run.refuse_unproven()
    run.train(base["val"])
    return run.finish(base["test"])
