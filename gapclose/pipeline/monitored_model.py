"""Check that a model is the one that a monitor was calibrated for."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper

from gapclose.evaluation.monitor_file import MonitoredModel, MonitorFile
from gapclose.models.checkpoint import checkpoint_fingerprint, checkpoint_folder, memory_fingerprint
from gapclose.models.structure import decoder_layers, output_embedding, unwrap
from gapclose.training.lora import adapter_fingerprint


def base_fingerprint(model: Any, processor: Any, wanted: MonitoredModel) -> str:
    """Return the hash of the base model, which is the one that the monitor wants.

    It is that of the checkpoint which the model was loaded from, or that of the weights in memory
    (runs on a model in memory).

    Raises:
        ValueError: naming both hashes, when it is another model.
    """
    base, found = unwrap(model), list[str]()
    try:
        folder = checkpoint_folder(base.name_or_path, getattr(base.config, "_commit_hash", None))
        found.append(checkpoint_fingerprint(folder, base))
    except (OSError, ValueError):  # a model that was made in memory, or whose files have moved
        pass
    if wanted.fingerprint not in found:
        found.append(memory_fingerprint(base, processor))
    if wanted.fingerprint in found:
        return wanted.fingerprint
    dtype = str(next(base.parameters()).dtype).removeprefix("torch.")
    loading = "" if dtype == wanted.dtype else f" The monitor's model was loaded in {wanted.dtype}, and this one in {dtype}."
    raise ValueError(
        f"this monitor was calibrated for {wanted.name} with the hash {wanted.fingerprint}, and this model ({base.name_or_path or type(base).__name__}) "
        f"has the hash {found[0]}; use the monitor of a run on this model.{loading}"
    )


def refuse_adapters(model: Any, file: MonitorFile, fingerprint: str) -> None:
    """Check that the adapters which reach the probe are those that it was calibrated with.

    Active adapters above the probe's layer do not count.

    Raises:
        ValueError: naming the hashes of base and adapter on both sides.
    """
    wanted, reached = file.model, reaches_probe(model, file.probe.layer)
    if wanted.adapter is None and not reached:
        return
    found = adapter_fingerprint(model) if reached else None
    if found == wanted.adapter:
        return
    theirs, ours = (f"{fingerprint} {f'with the adapter {a}' if a else 'without adapters'}" for a in (wanted.adapter, found))
    where = f"at or below decoder layer {file.probe.layer}, which the probe reads"
    raise ValueError(
        f"this monitor was calibrated for the base model {theirs} {where}, and this model is {ours} there; use the monitor of the run that "
        "made this model"
    )


def reaches_probe(model: Any, layer: int) -> bool:
    """Whether an active adapter changes what reaches decoder layer ``layer``, counted from 1."""
    above = [*decoder_layers(model)[layer:], output_embedding(model)]
    harmless = {id(module) for part in above for module in part.modules()}
    return any(
        isinstance(m, BaseTunerLayer | ModulesToSaveWrapper) and m.active_adapters and not m.disable_adapters and id(m) not in harmless
        for m in unwrap(model).modules()
    )
