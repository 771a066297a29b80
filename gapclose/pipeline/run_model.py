"""The model of a finished run: the base, or the base with the exported adapter."""

from __future__ import annotations

from pathlib import Path

import torch

from gapclose.models.loading import LoadedModel, load_model
from gapclose.pipeline.config import Config, parse_config
from gapclose.training.lora import load_adapter


def run_config(run: Path) -> Config:
    """The configuration of a run, wherever the run lies now."""
    return parse_config(["--config", str(run / "config.yaml"), "--run_dir", str(run)])


def load_run_model(config: Config, run: Path, *, base: bool = False) -> LoadedModel:
    """Load a run's model onto the GPU, if there is one.

    Args:
        base: load the base model, though the run has an adapter.
    """
    adapter = run / "adapter"
    loaded = load_model(config.model) if base or not adapter.is_dir() else load_adapter(config.model, adapter)
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return loaded
