"""Protocols of what training reads from a run: sections of its configuration, and the run
itself."""

from __future__ import annotations

from typing import Protocol

from gapclose.evaluation.context import EvaluationContext, EvaluationSettings
from gapclose.training.config import DpoConfig, GrpoConfig, GuardsConfig, TargetsConfig, TrainConfig
from gapclose.training.trackers.config import TrackingConfig


class TrainingSettings(EvaluationSettings, Protocol):
    """The sections of the configuration that training reads."""

    @property
    def run_dir(self) -> str: ...
    @property
    def objective(self) -> str: ...
    @property
    def targets(self) -> TargetsConfig: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def guards(self) -> GuardsConfig: ...
    @property
    def dpo(self) -> DpoConfig: ...
    @property
    def grpo(self) -> GrpoConfig: ...
    @property
    def tracking(self) -> list[str] | str: ...
    @property
    def wandb(self) -> TrackingConfig: ...


class TrainingContext(EvaluationContext, Protocol):
    """A run that trains; :class:`gapclose.pipeline.context.RunContext` is one."""

    @property
    def config(self) -> TrainingSettings: ...
