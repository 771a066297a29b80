"""Export: the adapted model with its evidence, verified against what was measured, and uploaded where that is asked for.

    adapter/   PEFT's, always; where a server wants other names, the same weights under those in adapter/vllm/   (write, serving)
    merged/    the measured model with the adapter folded in                                                     (write)
    omni/      the whole checkpoint with the adapter folded into its thinker, every other part bit for bit       (omni)

Each has a model card (``card``), ``evidence.json`` and ``serving.json``. ``verify`` loads them again in a fresh process, ``push`` uploads them.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch

from gapclose.core.files import write_json, write_text
from gapclose.core.logging import say
from gapclose.export.context import ExportSettings
from gapclose.export.hub import check_push, push
from gapclose.export.model_card import left_out, model_card
from gapclose.export.omni import check_whole, write_omni
from gapclose.export.peft import write_adapter, write_merged
from gapclose.export.rehearsal import rehearse
from gapclose.export.verify import verify_in_fresh_process
from gapclose.export.vllm import Served, served_by_vllm, write_for_vllm
from gapclose.models.loading import LoadedModel


def check_export(config: ExportSettings) -> None:
    """Refuse before anything costly what could not be exported in the end.

    Raises:
        ValueError: when ``export.omni`` is set and the checkpoint is no whole one, or ``export.push`` and this process is offline, or
            saving would refuse the model or its processor.
    """
    check_checkpoint(config)
    if config.export.push:
        check_push()


def check_checkpoint(config: ExportSettings) -> None:
    """What :func:`check_export` finds in the checkpoint, on whatever machine.

    Raises:
        ValueError: as there.
    """
    if config.export.omni:
        check_whole(config.model)
    if config.export.merged or config.export.omni:
        rehearse(config.model, model=config.export.merged)


def export_run(directory: Path, config: ExportSettings, loaded: LoadedModel, summary: dict[str, Any]) -> None:
    """Write ``adapter/`` (and ``merged/``, ``omni/``) from the model as it stands, verify them in a fresh process, upload them: each if
    asked to. The model ends on the CPU."""
    leave_gpu(loaded, config)
    wanted = ["adapter", *(["merged"] if config.export.merged else []), *(["omni"] if config.export.omni else [])]
    write_adapter(loaded, directory / "adapter", config.model.revision)
    served = served_by_vllm(loaded, directory / "adapter")
    write_for_vllm(directory / "adapter", served)
    for name in wanted:
        if name == "merged":
            write_merged(loaded, config.model, directory / name)
        if name == "omni":
            write_omni(loaded, config.model, directory / name)
        _write_evidence(directory / name, directory, config, loaded, summary, served)
        say(f"wrote {directory / name}")
    if config.export.verify:
        verify_in_fresh_process(directory)
    if config.export.push:
        push(directory, wanted, config.export.push, private=config.export.private)


def leave_gpu(loaded: LoadedModel, config: ExportSettings) -> None:
    """Move the model to the CPU, and let go of what training left: the verifying process loads the model again, and needs the room.

    A quantised model stays where it is.
    """
    loaded.model.zero_grad(set_to_none=True)
    if config.model.quantisation is None:
        loaded.model.to("cpu")
    gc.collect()  # the trainer and its optimiser refer to one another
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _write_evidence(
    folder: Path, directory: Path, config: ExportSettings, loaded: LoadedModel, summary: dict[str, Any], served: Served
) -> None:
    write_json(folder / "evidence.json", summary)
    write_json(folder / "serving.json", {"vllm": served.to_dict()})
    missing = left_out(directory)
    if missing["skipped"] or missing["notes"]:
        write_json(folder / "left_out.json", missing)
    write_text(folder / "README.md", model_card(summary, config, loaded, missing, served, kind=folder.name))
