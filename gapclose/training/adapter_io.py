"""Adapter weights: gather, save and load under any engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import peft
import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from gapclose.core.distributed import run_on_main
from gapclose.core.errors import LossNotFinite
from gapclose.core.files import apply_umask, writing
from gapclose.models.sharding import gathered


def adapter_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return name -> complete adapter weights on the CPU. All processes must call it; all get
    them."""
    found = dict[str, torch.Tensor]()
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            with gathered(parameter) as tensor:
                found[name] = tensor.detach().cpu().clone()
    return found


def save_adapter(model: nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    """Write the adapter in PEFT's format, from complete tensors.

    All processes must call it; the main one writes.

    Returns:
        The tensors, as :func:`adapter_tensors`.

    Raises:
        WriteError: in all processes, when the main one cannot write.
        RuntimeError: when a tensor is empty, as ungathered parameters are under ZeRO-3, or when
            there is none.
        LossNotFinite: when a weight is not finite.
    """
    tensors = adapter_tensors(model)
    if empty := [name for name, tensor in tensors.items() if not tensor.numel()] or ([] if tensors else ["all of them"]):
        raise RuntimeError(f"{folder}: {len(empty)} adapter tensors are empty ({empty[0]}): they were not gathered")
    if bad := [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]:
        raise LossNotFinite(f"{folder}: {len(bad)} adapter tensors are not finite, e.g. {bad[0]}; lower train.learning_rate")

    def write() -> None:
        with writing(folder.parent):
            model.save_pretrained(str(folder), state_dict=tensors, save_embedding_layers=False)  # type: ignore[operator]
            apply_umask(*folder.glob("*.safetensors"))

    run_on_main(write)
    return tensors


@torch.no_grad()
def load_adapter_tensors(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Load adapter weights, under the names that PEFT saves, into the model.

    All processes must call it.

    Returns:
        Names that only the model or only ``weights`` has; if there are any, nothing is loaded.
    """
    parameters = {name: p for name, p in model.named_parameters() if "lora_" in name}
    stands_for = {name: torch.tensor(place) for place, name in enumerate(parameters)}  # PEFT renames keys
    saved = peft.get_peft_model_state_dict(model, state_dict=stands_for, save_embedding_layers=False)  # type: ignore[arg-type]
    if lacking := sorted(saved.keys() ^ weights.keys()):
        return lacking
    names = list(parameters)
    for key, place in saved.items():
        parameter = parameters[names[int(place)]]
        if isinstance(parameter, DTensor):
            whole = weights[key].to(parameter.device, parameter.dtype)
            parameter.copy_(distribute_tensor(whole, parameter.device_mesh, parameter.placements))
            continue
        with gathered(parameter, write=True) as tensor:
            tensor.copy_(weights[key])
    return []
