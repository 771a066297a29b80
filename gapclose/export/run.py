"""Export the adapted model with its evidence, verify it against the measurement, and upload it.

    adapter/   PEFT's, always; also in adapter/vllm/ if vLLM needs other names      (peft, vllm)
               adapter/monitor/ holds the frozen probe and its threshold            (monitor)
    merged/    the measured model with the adapter merged in                        (peft)
    omni/      the complete checkpoint with the adapter merged into its thinker;
               every other part is unchanged bit for bit                            (omni)

Each has a model card (``model_card``), ``evidence.json`` and ``serving.json``. ``verify`` reloads
them in a fresh process, and ``hub`` uploads them if configured.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch

from gapclose.core.files import write_json, write_text
from gapclose.core.logging import get_logger
from gapclose.data.item_set import ItemSet
from gapclose.evaluation.monitor_file import NAME, MonitorFile
from gapclose.export.context import ExportSettings
from gapclose.export.hub import check_push, push
from gapclose.export.model_card import left_out, model_card
from gapclose.export.monitor import NoMonitor, monitor_of
from gapclose.export.omni import check_whole, write_omni
from gapclose.export.peft import write_adapter, write_merged
from gapclose.export.rehearsal import rehearse
from gapclose.export.verify import verify_in_fresh_process
from gapclose.export.vllm import Served, served_by_vllm, write_for_vllm
from gapclose.models.loading import LoadedModel

logger = get_logger(__name__)


def check_export(config: ExportSettings) -> None:
    """Refuse, before any costly work, a run that could not be exported in the end.

    Raises:
        ValueError: when ``export.omni`` is set and the checkpoint is not a complete omni model,
            when ``export.push`` is set and this process is offline, or when the model or its
            processor cannot be saved.
    """
    check_checkpoint(config)
    if config.export.push:
        check_push()


def check_checkpoint(config: ExportSettings) -> None:
    """Do the checks of :func:`check_export` that concern the checkpoint and not the machine.

    Raises:
        ValueError: as in :func:`check_export`.
    """
    if config.export.omni:
        check_whole(config.model)
    if config.export.merged or config.export.omni:
        rehearse(config.model, model=config.export.merged)


def export_run(directory: Path, config: ExportSettings, loaded: LoadedModel, summary: dict[str, Any], items: ItemSet) -> None:
    """Write ``adapter/``; as configured, also write ``merged/`` and ``omni/``, verify and upload.

    The model ends on the CPU unless it is quantised.

    Args:
        items: of the run, under its own prompt; those of val calibrate the monitor.
    """
    leave_gpu(loaded, config)
    wanted = ["adapter", *(["merged"] if config.export.merged else []), *(["omni"] if config.export.omni else [])]
    write_adapter(loaded, directory / "adapter", config.model.revision)
    served = served_by_vllm(loaded, directory / "adapter")
    write_for_vllm(directory / "adapter", served)
    monitor = _write_monitor(directory, config, items)
    for name in wanted:
        if name == "merged":
            write_merged(loaded, config.model, directory / name)
        if name == "omni":
            write_omni(loaded, config.model, directory / name)
        _write_evidence(directory / name, directory, config, loaded, summary, served, monitor if name == "adapter" else None)
        logger.info(f"wrote {directory / name}")
    if config.export.verify:
        verify_in_fresh_process(directory)
    if config.export.push:
        push(directory, wanted, config.export.push, private=config.export.private)


def leave_gpu(loaded: LoadedModel, config: ExportSettings) -> None:
    """Move the model to the CPU and free the memory of training for the verifying process.

    A quantised model stays on its device.
    """
    loaded.model.zero_grad(set_to_none=True)
    if config.model.quantisation is None:
        loaded.model.to("cpu")
    gc.collect()  # the trainer and its optimiser refer to one another
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _write_monitor(directory: Path, config: ExportSettings, items: ItemSet) -> MonitorFile | None:
    """Write ``adapter/monitor``; return what it holds, or None where none can be made, which is logged."""
    try:
        monitor = monitor_of(directory, config, items)
    except NoMonitor as error:
        logger.warning(f"no monitor is exported: {error}")
        return None
    monitor.save(directory / "adapter" / NAME)
    return monitor


def _write_evidence(
    folder: Path,
    directory: Path,
    config: ExportSettings,
    loaded: LoadedModel,
    summary: dict[str, Any],
    served: Served,
    monitor: MonitorFile | None,
) -> None:
    write_json(folder / "evidence.json", summary)
    write_json(folder / "serving.json", {"vllm": served.to_dict()})
    missing = left_out(directory)
    if missing["skipped"] or missing["notes"]:
        write_json(folder / "left_out.json", missing)
    write_text(folder / "README.md", model_card(summary, config, loaded, missing, served, monitor, kind=folder.name))
