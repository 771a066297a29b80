"""gapclose: measure, close and re-measure the representation-action gap of a multimodal model.

The gap is the balanced accuracy of a probe's reading minus that of the model's answers. Public
names are imported on first use: ``import gapclose`` loads neither torch nor transformers.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gapclose.core.torchvision_import import install
from gapclose.core.version import __version__

if TYPE_CHECKING:
    from gapclose.data.config import register_reader
    from gapclose.data.item_set import ItemSet
    from gapclose.data.items import Item, Option
    from gapclose.data.load import load_items
    from gapclose.evaluation.config import register_control
    from gapclose.evaluation.run_result import RunResult, load_run
    from gapclose.metrics.bootstrap import Interval
    from gapclose.metrics.measure_gap import GapMeasurement, measure_gap
    from gapclose.models.config import ModelConfig
    from gapclose.models.loading import LoadedModel, load_model
    from gapclose.observe.extract import observe_items
    from gapclose.observe.store import Observations
    from gapclose.pipeline.api import close, measure
    from gapclose.pipeline.config import Config, parse_config
    from gapclose.pipeline.gap_callback import GapCallback
    from gapclose.pipeline.monitor import Monitor
    from gapclose.probes.config import ProbeConfig, register_probe_family
    from gapclose.probes.linear import FrozenProbe
    from gapclose.probes.search import choose_probe
    from gapclose.training.objectives import register_objective
    from gapclose.training.targets import build_targets
    from gapclose.training.trainer import GapTrainer

EXPORTS = {
    "data.config": ["register_reader"],
    "data.item_set": ["ItemSet"],
    "data.items": ["Item", "Option"],
    "data.load": ["load_items"],
    "evaluation.config": ["register_control"],
    "evaluation.run_result": ["RunResult", "load_run"],
    "metrics.bootstrap": ["Interval"],
    "metrics.measure_gap": ["GapMeasurement", "measure_gap"],
    "models.config": ["ModelConfig"],
    "models.loading": ["LoadedModel", "load_model"],
    "observe.extract": ["observe_items"],
    "observe.store": ["Observations"],
    "pipeline.api": ["close", "measure"],
    "pipeline.config": ["Config", "parse_config"],
    "pipeline.gap_callback": ["GapCallback"],
    "pipeline.monitor": ["Monitor"],
    "probes.config": ["ProbeConfig", "register_probe_family"],
    "probes.linear": ["FrozenProbe"],
    "probes.search": ["choose_probe"],
    "training.objectives": ["register_objective"],
    "training.targets": ["build_targets"],
    "training.trainer": ["GapTrainer"],
}
"""module -> the names of the public API that it defines"""
_MODULES = {name: module for module, names in EXPORTS.items() for name in names}

__all__ = [
    "Config",
    "FrozenProbe",
    "GapCallback",
    "GapMeasurement",
    "GapTrainer",
    "Interval",
    "Item",
    "ItemSet",
    "LoadedModel",
    "ModelConfig",
    "Monitor",
    "Observations",
    "Option",
    "ProbeConfig",
    "RunResult",
    "__version__",
    "build_targets",
    "choose_probe",
    "close",
    "load_items",
    "load_model",
    "load_run",
    "measure",
    "measure_gap",
    "observe_items",
    "parse_config",
    "register_control",
    "register_objective",
    "register_probe_family",
    "register_reader",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


logging.getLogger(__name__).addHandler(logging.NullHandler())  # an application decides what is shown
install()
