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
from gapclose.pipeline.config import Config, config_of, missing_functions
from gapclose.pipeline.items import Given
from gapclose.pipeline.paths import missing_places
from gapclose.pipeline.run import run_close, run_measure

logger = get_logger(__name__)

FIXED = ("data", "model", "tracking", "wandb", "log_level")
"""keys of the configuration that a model in memory does not take"""


def measure(model: Any, processor: Any, items: ItemSet, *, run_dir: str | Path | None = None, **settings: Any) -> RunResult:
    """Measure the representation-action gap with all configured controls, without training.

    Args:
        model: a transformers model. It is moved to this process's device and put into eval mode.
            Its weights are the same afterwards. Padding and end tokens of the processor and of the
            generation settings are changed to those that a run needs.
        processor: its processor, or the tokenizer of a text-only model.
        items: item set with labelled splits ``fit`` and ``test``.
        run_dir: directory for all files; the same call continues an interrupted run. None: a
            temporary directory, named in the result.
        settings: configuration groups as dictionaries or dataclasses, and plain keys, e.g.
            ``gap={"replicates": 1000}``, ``controls={"random_weights": False}``, ``seed=1``
            (docs/how-to/python.md).

    Raises:
        ValueError: naming the faults of settings, items and media, before the first forward.
    """
    config, given = _prepared(model, processor, items, run_dir, settings, closing=False)
    return run_measure(config, given)


def close(model: Any, processor: Any, items: ItemSet, *, run_dir: str | Path | None = None, **settings: Any) -> RunResult:
    """Measure the gap, train LoRA adapters towards the reading, and measure again.

    Val is measured after every epoch, test at the end.

    Args:
        model: a transformers model. It gets adapters and ends on the CPU with those of the best
            epoch, as the result's ``model``. After an error or an interruption it has no adapters,
            and the same call with the same ``run_dir`` continues.
        processor: as for :func:`measure`.
        items: item set with splits ``fit``, ``train``, ``val`` and ``test``; all except ``train``
            labelled.
        run_dir: as for :func:`measure`. If the run improves on its base model (or with
            ``export.unimproved``), its adapter is written to ``run_dir/adapter``, with
            ``model.name_or_path`` as its base.
        settings: as for :func:`measure`.

    Raises:
        ValueError: naming the faults of settings, items and media, before the first forward; also
            when the reading is not shown to be real on ``val`` (``force=True`` trains anyway; for
            ``targets.first: labels`` when the text explains it, or the model does not answer).
    """
    config, given = _prepared(model, processor, items, run_dir, settings, closing=True)
    return run_close(config, given)


def _prepared(
    model: Any, processor: Any, items: ItemSet, run_dir: str | Path | None, settings: dict[str, Any], *, closing: bool
) -> tuple[Config, Given]:
    """Build the configuration of a run in memory.

    Raises:
        ValueError: for unknown settings, settings that need a checkpoint, unsupported models, and
            paths or functions that cannot be used.
    """
    allowed = [f.name for f in dataclasses.fields(Config) if f.name not in FIXED and f.name != "run_dir"]
    config = config_of(settings, allowed)
    config.run_dir = config.run_dir if run_dir is None else str(run_dir)
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
    config.export = dataclasses.replace(config.export, verify=False)  # a fresh process cannot load a model that is only in memory
    return config, Given(items=items, model=model, processor=processor)


def _refuse_model(model: Any, closing: bool) -> None:
    """Refuse models that cannot be used from memory.

    Raises:
        ValueError: for models with adapters, quantised, on several devices, or float16 to train.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(
            "the model has adapters already; call model.unload() or model.merge_and_unload() first, and pass what that returns"
        )
    if getattr(model, "is_quantized", False) or len(set(getattr(model, "hf_device_map", {"": 0}).values())) > 1:
        raise ValueError("the model is quantised, or spread over several devices; gapclose loads such models itself: use the command")
    if closing and any(p.dtype == torch.float16 for p in model.parameters()):
        raise ValueError("a float16 model cannot be trained without a loss scaler; load it in bfloat16 or float32")
