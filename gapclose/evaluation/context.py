"""Protocols of what evaluation reads from a run: sections of its configuration, items, model,
probes, measurements."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from accelerate import PartialState

from gapclose.data.config import PromptsConfig
from gapclose.data.item_set import ItemSet
from gapclose.evaluation.config import ControlsConfig
from gapclose.evaluation.controls.features import Chosen
from gapclose.evaluation.measurement import SplitMeasurement
from gapclose.metrics.config import GapConfig
from gapclose.models.config import ModelConfig
from gapclose.models.loading import LoadedModel
from gapclose.observe.config import ObserveConfig
from gapclose.observe.store import Observations
from gapclose.probes.config import ProbeConfig
from gapclose.probes.linear import FrozenProbe


class EvaluationSettings(Protocol):
    """The sections of the configuration that evaluation reads."""

    @property
    def seed(self) -> int: ...
    @property
    def model(self) -> ModelConfig: ...
    @property
    def prompts(self) -> PromptsConfig: ...
    @property
    def observe(self) -> ObserveConfig: ...
    @property
    def probe(self) -> ProbeConfig: ...
    @property
    def gap(self) -> GapConfig: ...
    @property
    def controls(self) -> ControlsConfig: ...


class ProbedContext(Protocol):
    """A model with items and frozen probes; :class:`gapclose.pipeline.measure_context.MeasureContext` is one."""

    @property
    def config(self) -> EvaluationSettings: ...
    @property
    def plain(self) -> ItemSet:
        """The items before a prompt is applied."""
        ...

    @property
    def probe(self) -> FrozenProbe: ...
    def observe(
        self, stage: str, items: ItemSet, *, replace: bool = False, max_new_tokens: int | None = None, **wanted: Any
    ) -> Observations:
        """Observe items under the current model into ``observations/STAGE``."""
        ...

    def observe_measured(self, stage: str, split: str) -> Observations:
        """Observe the measured items of a split under the current model, with generated answers."""
        ...


class EvaluationContext(ProbedContext, Protocol):
    """A run whose probes are fitted; :class:`gapclose.pipeline.context.RunContext` is one."""

    adapter: str
    """current weights beyond the checkpoint's: the fingerprint of an adapter, or the name of a
    random draw"""

    @property
    def directory(self) -> Path: ...
    @property
    def process(self) -> PartialState: ...
    @property
    def items(self) -> ItemSet:
        """The items under the run's own prompt."""
        ...

    @property
    def loaded(self) -> LoadedModel: ...
    @property
    def sentinel(self) -> FrozenProbe: ...
    @property
    def fit_reading(self) -> np.ndarray:
        """(M, C) out-of-fold reading of the M fit items."""
        ...

    @property
    def text(self) -> Chosen:
        """The text control on test."""
        ...

    @property
    def measured(self) -> dict[str, SplitMeasurement]:
        """The base model's measurement by split."""
        ...

    def on_main(self, write: Callable[[], object]) -> None:
        """Let the main process write while the others wait."""
        ...

    def reload(self) -> None:
        """Restore the weights of the run's model after a control has randomised them."""
        ...

    @property
    def in_memory(self) -> bool:
        """Whether the model is the user's own object instead of a loaded checkpoint."""
        ...

    def place(self, model: Any) -> None:
        """Make ``model``, loaded on the CPU, the run's model and move it to its device."""
        ...
