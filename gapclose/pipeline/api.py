"""Measure and close the gap of a model in memory: :func:`measure` and :func:`close`."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from gapclose.core.logging import get_logger
from gapclose.data.item_set import ItemSet
from gapclose.evaluation.run_result import RunResult
from gapclose.pipeline.config import Config, missing_functions
from gapclose.pipeline.items import Given
from gapclose.pipeline.paths import missing_places
from gapclose.pipeline.run import run_close, run_measure

logger = get_logger(__name__)

FIXED = ("data", "model", "tracking", "wandb", "log_level")
"""keys of the configuration that a model in memory does not take"""


def measure(model: Any, processor: Any, items: ItemSet, *, run_dir: str | Path | None = None, **settings: Any) -> RunResult:
    """Measure the gap between what a model represents and what it answers, with every control, without training.

    Args:
        model: a transformers model. It is put into eval mode on this process's device. Its weights are the same afterwards; padding and end tokens
            of the processor and of its generation settings are set as a run needs them.
        processor: its processor, or the tokenizer of a model that only reads text.
        items: with labelled splits ``fit`` and ``test``.
        run_dir: where everything is written; the same call continues an interrupted run. None: a temporary directory, named in the result.
        settings: groups of the configuration, as dictionaries or their dataclasses, and its plain keys, e.g. ``gap={"replicates": 1000}``,
            ``controls={"random_weights": False}``, ``seed=1`` (docs/python.md).

    Raises:
        ValueError: everything that is wrong with settings, items and media, before the first forward.
    """
    config, given = _prepared(model, processor, items, run_dir, settings, closing=False)
    return run_measure(config, given)


def close(model: Any, processor: Any, items: ItemSet, *, run_dir: str | Path | None = None, **settings: Any) -> RunResult:
    """Measure the gap, train LoRA adapters towards what the probe reads, and measure again after every epoch and on test.

    Args:
        model: a transformers model. Adapters are put on it, and it ends on the CPU with the best epoch's: the result's ``model``. After an
            error or an interruption it has none, and the same call goes on where ``run_dir`` is named.
        processor, run_dir, settings: as of :func:`measure`. The adapter of a run that beats its base is written to
            ``run_dir/adapter``; it names ``model.name_or_path`` as its base.
        items: with splits ``fit``, ``train``, ``val`` and ``test``; all but ``train`` labelled.

    Raises:
        ValueError: everything that is wrong with settings, items and media, before the first forward; and where ``val`` does not show that the
            reading is real (``force=True`` trains all the same).
    """
    config, given = _prepared(model, processor, items, run_dir, settings, closing=True)
    return run_close(config, given)


def _prepared(
    model: Any, processor: Any, items: ItemSet, run_dir: str | Path | None, settings: dict[str, Any], *, closing: bool
) -> tuple[Config, Given]:
    """The configuration of a run in memory.

    Raises:
        ValueError: for groups and keys that do not exist, or that a model in memory does not take.
    """
    known = {f.name: f for f in dataclasses.fields(Config) if f.name not in FIXED and f.name != "run_dir"}
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(f"unknown settings {unknown}; choose some of {sorted(known)}")
    values: dict[str, Any] = {}
    for name, value in settings.items():
        group = known[name].default_factory
        if isinstance(value, dict) and dataclasses.is_dataclass(group):
            keys = {f.name for f in dataclasses.fields(group)}
            if wrong := sorted(set(value) - keys):
                raise ValueError(f"unknown keys {wrong} in {name}; choose some of {sorted(keys)}")
            value = group(**value)
        values[name] = value
    config = Config(**({} if run_dir is None else {"run_dir": str(run_dir)}), **values)
    for key in ("merged", "omni", "push"):
        if getattr(config.export, key):
            raise ValueError(f"export.{key} needs a checkpoint on disk; save the model, and use the command `gapclose close`")
    _refuse_model(model, closing)
    faults = [
        *missing_functions(config),
        *missing_places("." if run_dir is None else str(run_dir), config.data, config.model, config.observe),
    ]
    if faults:
        raise ValueError("; ".join(faults))
    if run_dir is None:
        config.run_dir = tempfile.mkdtemp(prefix="gapclose-")
        logger.info(f"run directory: {config.run_dir}")
    config.model.path = str(getattr(model, "name_or_path", "") or type(model).__name__)
    config.data.path = str(items.root)
    config.export = dataclasses.replace(config.export, verify=False)  # a fresh process cannot load a model that is in memory alone
    return config, Given(items=items, model=model, processor=processor)


def _refuse_model(model: Any, closing: bool) -> None:
    """Raises: ValueError for models that only the commands can take, and for those that have adapters already."""
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(
            "the model has adapters already; call model.unload() or model.merge_and_unload() first, and pass what that returns"
        )
    if getattr(model, "is_quantized", False) or len(set(getattr(model, "hf_device_map", {"": 0}).values())) > 1:
        raise ValueError("the model is quantised, or spread over several devices; gapclose loads such models itself: use the command")
    if closing and any(p.dtype == torch.float16 for p in model.parameters()):
        raise ValueError("a float16 model cannot be trained without a loss scaler; load it in bfloat16 or float32")
