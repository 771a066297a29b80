"""The sections of a run's configuration that an export reads."""

from __future__ import annotations

from typing import Protocol

from gapclose.export.config import ExportConfig
from gapclose.training.config import LoraConfig
from gapclose.training.context import TrainingSettings


class ExportSettings(TrainingSettings, Protocol):
    """The interface, which :class:`gapclose.pipeline.config.Config` has."""

    @property
    def lora(self) -> LoraConfig: ...
    @property
    def export(self) -> ExportConfig: ...
