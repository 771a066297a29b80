"""A model with its items and frozen probes: what is observed of it, measured and recorded.

Runs (:class:`gapclose.pipeline.context.RunContext`) and trainings that others started
(:class:`gapclose.pipeline.gap_callback.GapCallback`) share it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gapclose.core.distributed import run_on_main
from gapclose.core.logging import get_logger
from gapclose.data.item_set import ItemSet
from gapclose.evaluation.baselines.shift import after_shift
from gapclose.evaluation.controls.features import Chosen
from gapclose.evaluation.controls.text import read_text, text_control
from gapclose.evaluation.measurement import SplitMeasurement, measure
from gapclose.evaluation.measurement_answers import AnswerLimit
from gapclose.evaluation.prompt_variants import Measures, measure_prompt_variants
from gapclose.evaluation.record import make_record
from gapclose.evaluation.run_records import read_records, write_records
from gapclose.evaluation.summary_text import layer_words, written_words
from gapclose.metrics.judgeable import advice
from gapclose.metrics.labels import Labels
from gapclose.metrics.status import STATES
from gapclose.models.loading import LoadedModel
from gapclose.observe.extract import observe
from gapclose.observe.frozen_cache import HiddenStateCache
from gapclose.observe.request import ObservationRequest
from gapclose.observe.store import Observations
from gapclose.pipeline.config import Config
from gapclose.probes.config import ProbeConfig
from gapclose.probes.linear import FrozenProbe
from gapclose.probes.search import choose_probe, not_asked_words

logger = get_logger(__name__)

MEASURED = ("gap", "transfer", "retain")


class MeasureContext:
    """Items, a model and its probes; every file goes to ``directory``."""

    plain: ItemSet
    items: ItemSet
    loaded: LoadedModel
    probe: FrozenProbe
    sentinel: FrozenProbe
    fit_reading: np.ndarray
    text: Chosen
    prompted: Measures

    def __init__(self, config: Config, directory: Path) -> None:
        self.config, self.directory = config, directory
        self.adapter = ""
        """name of weights other than the base's: fingerprint of an adapter, or a random draw"""
        self.measured = dict[str, SplitMeasurement]()

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
        asked = ObservationRequest(**wanted, extra={"adapter": self.adapter})
        how = self.config.observe
        if max_new_tokens is not None:
            how = dataclasses.replace(how, max_new_tokens=max_new_tokens)
        directory = self.directory / "observations" / stage
        shared = Path(how.shared) if how.shared and not self.adapter else None
        return observe(self.loaded, items, directory, how, asked, replace=replace, shared=shared, run=self.directory)

    def fit_probes(self) -> None:
        """Choose and freeze probe and sentinel on fit, from one observation of all their layers."""
        fit, n_layers = self.items.select(split="fit", purpose="gap"), len(self.loaded.layers)
        candidates = self.config.probe.candidates(n_layers)
        observed = self.observe("base-fit", fit, layers=[*candidates, n_layers])
        labels = Labels.of(fit)
        known = (labels.concept, labels.clip, fit.concepts, self.config.probe)
        given: dict[str, Any] = {"modality": labels.modality, "seed": self.config.seed, "spread": True}
        given["device"] = search_device(self.config.probe, self.loaded.device)
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
        limit = AnswerLimit(tokens=self.config.observe.max_new_tokens, count=self._count_tokens)
        match = self.config.prompts.matching(self.config.prompts.asked)
        how: dict[str, Any] = {"folds": self.config.probe.folds, "seed": self.config.seed, "match": match, "limit": limit}
        return measure(items, observed, self.probe, self.sentinel, self.config.gap, **how)

    def _count_tokens(self, text: str) -> int:
        return len(self.loaded.tokenizer(text, add_special_tokens=False).input_ids)

    def record(self, record: dict[str, Any]) -> None:
        """Write a record to ``gap.jsonl``, and log a line.

        It replaces an earlier record of the same stage.
        """
        if self.items.skipped:
            record["n_skipped"] = len(self.items.skipped)

        def write() -> None:
            records = {r["stage"]: r for r in read_records(self.directory)} | {record["stage"]: record}  # a replaced record keeps its place
            write_records(self.directory, records.values())
            self.on_record(record)

        self.on_main(write)
        action, reading = record["action"]["balanced"]["value"], record["reading"]["balanced"]["value"]
        line = f"{record['stage']}: action {action:.3f}, reading {reading:.3f} (balanced)"
        if "change" in record:
            line += f", closure {_number(record['change']['closure'])}, standard accuracy {0.0 - record['change']['standard_drop']['value']:+.3f}"
        logger.info(f"{line}, state: {record['state']}")
        if record["state"] not in ("open", "closed", "learned"):
            logger.warning(f"  {record['stage']} is {record['state']}: {STATES[record['state']]}")

    def on_record(self, record: dict[str, Any]) -> None:
        """Called in the main process after a record was written; does nothing here."""

    def epoch_record(self, stage: str, epoch: float, now: SplitMeasurement, base: SplitMeasurement) -> dict[str, Any]:
        """Build the record of a split after an epoch, or in one, with the best shift of its options."""
        record = make_record(stage, epoch, now, base, self.config.gap, self.config.seed)
        return record | {"shifted": after_shift(now, base, self.config.gap.standard_budget)}

    def measure_base(self, splits: Sequence[str]) -> dict[str, SplitMeasurement]:
        """Measure the base model; on test, also the text-only control and the prompt variants."""
        found = {}
        for split in splits:
            found[split] = self.measure("base", split)
            for line in not_judgeable(split, found[split]):
                logger.warning(f"  {line}")
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


def not_judgeable(split: str, measured: SplitMeasurement) -> list[str]:
    """Return for every modality that is not judgeable its faults, what to change, and some of the answers."""
    lines = list[str]()
    for modality, written in measured.written.items():
        faults = measured.acting[modality].faults
        lines.append(f"{split}, {modality}: the model does not answer such questions: {'; '.join(faults)}. {advice([faults])}")
        lines += [f"  it wrote {words}" for words in written_words(written.to_dict())]
    return lines


def search_device(config: ProbeConfig, model: torch.device) -> torch.device | None:
    """Where the search of a probe fits large layers, for a model on the device ``model``; None: on the CPU.

    It is CUDA alone: the solver needs float64, which MPS does not have.
    """
    return model if config.device == "auto" and model.type == "cuda" else None


def _number(interval: dict[str, float | None]) -> str:
    return "undefined" if interval["value"] is None else f"{interval['value']:.2f}"
