"""Align: from frozen readings to adapters, with a measurement after every epoch, guards, and the export of what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.torch import load_file

from gapclose.adapters import adapter_changed, adapter_fingerprint, add_lora
from gapclose.baselines.by_trl import make_trl_trainer
from gapclose.baselines.trl_items import epoch_figures
from gapclose.export import export_run
from gapclose.files import read_json, write_json
from gapclose.gap import Labels, option_concepts
from gapclose.guards import fired, objections
from gapclose.items import ItemSet
from gapclose.measure import Measured, best_epoch, make_record
from gapclose.media import SUPPORTED
from gapclose.objectives import BY_TRL, needs_reading
from gapclose.observations import read_observations
from gapclose.progress import say
from gapclose.report.page import write_page
from gapclose.report.summary import read_records, record_of, summarise
from gapclose.targets import Targets, build_targets
from gapclose.tracking import LossLines
from gapclose.trainer import Example, last_complete_checkpoint, make_trainer
from gapclose.verdict import unproven

if TYPE_CHECKING:
    from gapclose.run import Run


class Training:
    """The second half of a run: its base model is measured and examined."""

    def __init__(self, run: Run) -> None:
        self.run, self.forced = run, dict[str, str]()

    def refuse_unproven(self) -> None:
        """Stop before targets are made of a reading that is not shown to be more than the wording, unless ``force`` is set.

        Raises:
            ValueError: naming every modality of the train items whose verdict is not ``real``, and why.
        """
        verdicts, config = read_json(self.run.directory / "measurement.json")["verdicts"], self.run.config
        if not needs_reading(config.objective):
            return
        train = self.run.items.select(split="train", purpose="gap")
        self.forced = unproven(sorted({i.modality for i in train}), verdicts)
        if self.forced and not config.force:
            listed = "\n".join(f"  - {name}: {why}" for name, why in self.forced.items())
            raise ValueError(
                f"{self.run.directory}: what the probe reads is not shown to be more than the wording, so nothing is trained on it:\n{listed}\n"
                "Label more clips (splits fit and test), leave the train items of such a modality out, or give --force to train all the "
                f"same; the evidence will say so. `gapclose report {self.run.directory}` shows what was measured"
            )
        for name, why in self.forced.items():
            say(f"  warning: forced: training on the reading of {name}: {why}")

    @property
    def blanked(self) -> tuple[str, ...]:
        """The kinds of media that training does not see: a control, normally none."""
        return SUPPORTED if self.run.config.targets.control == "blank_media" else ()

    def training_examples(self) -> list[Example]:
        """Targets for the train items by Jeffrey's rule, and what the other terms of the loss need, all from the base model."""
        config, blank = self.run.config, self.blanked
        examples: list[Example] = []
        if config.train.consistency:
            targets, train, _ = self.build_targets()
            examples += [
                Example(item=i, term="consistency", weights=t) for i, t, k in zip(train, targets.target, targets.keep, strict=True) if k
            ]
        if config.train.gold:
            fit = self.run.items.select(split="fit", purpose="gap").items
            gold = [Example(item=i, term="gold", weights=np.eye(len(i.options))[i.gold]) for i in fit]
            unlabelled = len(self.run.items.select(split="train", purpose="gap"))
            # alone, as many steps an epoch as the train items take: at equal labels, objectives are compared at equal steps
            examples += gold * (1 if config.train.consistency else max(1, round(unlabelled / len(gold))))
        if config.train.retain:
            retain = self.run.items.select(split="train", purpose="retain").unlabelled()
            seen = self.run.observe("base-retain", retain, blank=blank, top_tokens=config.train.retain_tokens)
            assert seen.top_logps is not None and seen.top_tokens is not None
            kept = zip(retain, seen.top_logps, seen.top_tokens, strict=True)
            examples += [Example(item=i, term="retain", base_logps=p, base_tokens=t) for i, p, t in kept]
        return examples

    def build_targets(self) -> tuple[Targets, ItemSet, np.ndarray]:
        """Observe the unlabelled train items, build their targets, and store them; with the items and the base model's scores (N, O)."""
        blank = SUPPORTED if self.run.config.targets.control in ("blank_media", "blank_targets") else ()
        train, probe = self.run.items.select(split="train", purpose="gap").unlabelled(), self.run.probe
        path, ids = self.run.directory / "targets.safetensors", [i.id for i in train]
        observed = self.run.observe("base-train", train, layers=probe.layers, blank=blank)
        scores = observed.scores.double().numpy()
        # always rebuilt: cheap, and a file from before a change of labels would be stale
        val = self.run.items.select(split="val", purpose="gap")
        seen = read_observations(self.run.directory / "observations" / "base-val", [i.id for i in val], layers=probe.layers)
        targets = build_targets(
            self.run.config.targets,
            ids=ids,
            reading=probe.read(probe.see(observed.residuals)),
            scores=scores,
            option_concept=option_concepts(train.items, train.concepts),
            modality=np.array([i.modality for i in train]),
            val_reading=probe.read(probe.see(seen.residuals)),
            val_concept=Labels.of(val).concept,
            alarm=np.isin(train.concepts, train.alarm),
            seed=self.run.config.seed,
        )
        self.run.on_main(lambda: targets.save(path))
        facts = targets.summary(train.concepts)
        say(
            f"targets: {facts['kept']} of {facts['items']} train items, {facts['kept_by_concept']}, alarm prior x{facts['prior_factor']:.3g}"
        )
        return targets, train, scores

    def train(self, base: Measured) -> None:
        """Train adapters, measuring ``val`` after every epoch; an interrupted training goes on from its last whole checkpoint."""
        config, directory = self.run.config, self.run.directory / "checkpoints"
        layers = config.lora.chosen(len(self.run.loaded.layers), self.run.probe.layer)
        for_trl = self.build_targets() if config.objective in BY_TRL else None
        examples = [] if for_trl else self.training_examples()
        add_lora(self.run.loaded, config.lora, layers, config.seed)
        trainable = sum(p.numel() for p in self.run.loaded.model.parameters() if p.requires_grad)
        say(f"adapters: {trainable:,} parameters on decoder layers {layers[0]}..{layers[-1]}")

        def after_epoch(epoch: int) -> bool:
            self.set_adapter_fingerprint()
            self.run.on_main(lambda: self.run.loaded.model.save_pretrained(str(directory / f"epoch-{epoch}")))
            self.run.loaded.model.eval()
            now = self.run.measure(f"epoch-{epoch}", "val", replace=True)
            record = make_record(f"epoch-{epoch}/val", epoch, now, base, config.gap, config.seed)
            record |= {"training": epoch_figures(trainer.state.log_history, epoch)} if for_trl else {}
            self.run.record(self.guarded(record))
            return bool(self.fired())

        finite = "loss" not in config.guards.off
        common: dict[str, Any] = {"after_epoch": after_epoch, "finite_only": finite, "callbacks": [LossLines(self.run.tracker)]}
        media = self.run.loaded.media(self.run.items, blank=self.blanked)
        if for_trl:
            trainer = make_trl_trainer(self.run.loaded, *for_trl, media, config, directory, **common)
        else:
            trainer = make_trainer(self.run.loaded, examples, media, config.train, directory, seed=config.seed, **common)
        resume = last_complete_checkpoint(directory)
        if resume is not None:
            say(f"going on from {resume.name}")
        try:
            if not self.fired():
                trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except FloatingPointError as error:
            if not self.epochs():
                raise
            reason = str(error)
            self.run.on_main(lambda: write_json(self.run.directory / "stopped.json", {"loss": reason}))
        stopped, off = self.stopped(), config.guards.off
        for name, reason in stopped.items():
            say(f"  warning: stopped by the guard {name}: {reason}")
        if stopped:
            say(f'  the same command with --guards.off "[{", ".join(sorted({*off, *stopped}))}]" goes on')
        self.run.loaded.model.eval()

    def epochs(self) -> list[dict[str, Any]]:
        """The records of the epochs measured so far, in order."""
        found = [
            r for r in read_records(self.run.directory) if r["stage"].startswith("epoch-") and r["epoch"] <= self.run.config.train.epochs
        ]
        return sorted(found, key=lambda r: r["epoch"])

    def guarded(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record of an epoch with what the guards have against it; a control of training has none."""
        base = record_of(self.run.directory, "base/val")
        assert base is not None
        record["adapter_changed"] = adapter_changed(self.run.loaded.model)
        control = self.run.config.targets.control != "none"
        return record | {"objections": {} if control else objections(record, base, self.run.config.gap, self.run.config.guards)}

    def fired(self) -> dict[str, str]:
        """The guards that stop the training, with their reasons."""
        off = self.run.config.guards.off
        return fired(self.epochs(), self.run.config.guards) | {name: why for name, why in self.at_a_step().items() if name not in off}

    def at_a_step(self) -> dict[str, str]:
        """What ended a training between two measurements."""
        path = self.run.directory / "stopped.json"
        return read_json(path) if path.is_file() else {}

    def stopped(self) -> dict[str, str]:
        """What kept the training from its last epoch; a guard that was turned off since may have been it."""
        if len(self.epochs()) == self.run.config.train.epochs:
            return {}
        return self.fired() or self.at_a_step()

    def set_adapter_fingerprint(self) -> None:
        """Name the current adapter weights, so that observations of one adapter are never taken for another's."""
        self.run.adapter = adapter_fingerprint(self.run.loaded.model)

    def load_epoch(self, epoch: int) -> None:
        """Put the adapter of an epoch into the model.

        Raises:
            ValueError: when its keys do not fit the model's.
        """
        import peft

        weights = load_file(self.run.directory / "checkpoints" / f"epoch-{epoch}" / "adapter_model.safetensors")
        result = peft.set_peft_model_state_dict(self.run.loaded.model, weights)
        lacking = [k for k in result.missing_keys if "lora_" in k]
        if result.unexpected_keys or lacking:
            raise ValueError(f"the adapter of epoch {epoch} does not fit this model: {[*result.unexpected_keys, *lacking][:3]}")
        self.set_adapter_fingerprint()

    def finish(self, base: Measured) -> dict[str, Any]:
        """Measure the best epoch's adapter on test, once; export it with its evidence; close the tracker."""
        epoch = best_epoch(self.epochs(), self.run.config.gap, self.run.config.guards.off)
        self.load_epoch(epoch)
        now = self.run.measure("adapted", "test", replace=True)
        record = make_record("adapted/test", epoch, now, base, self.run.config.gap, self.run.config.seed)
        self.run.record(record | {"forced": sorted(self.forced), "stopped": self.stopped()})
        summary = summarise(self.run.directory)
        self.run.on_main(lambda: export_run(self.run.directory, self.run.config, self.run.loaded, summary))
        if self.run.process.is_main_process:
            write_page(self.run.directory)
            self.run.tracker.finish(summary, self.run.directory / "adapter")
        return summary
