"""What an engine does with a model's parameters, and how to see them whole, whichever engine it is.

Under one process, DDP and ZeRO-2 every process holds whole parameters. FSDP2 makes ``DTensor``s of them and ZeRO-3 empty placeholders, both
gathered by hooks as the forward goes along; there every forward is a collective operation, so that all processes have to run equally many,
over the same modules. Nothing here asks how the program was launched: it looks at the parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from accelerate import PartialState
from torch import distributed, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from gapclose.files import as_others, writing
from gapclose.guards import LossNotFinite
from gapclose.spread import main_alone
from gapclose.structure import decoder_layers


def is_sharded(model: nn.Module) -> bool:
    """Whether a process holds only its part of the model, so that all of them have to run their forwards together."""
    return any(isinstance(m, FSDPModule) for m in model.modules()) or is_zero3(model)


def is_zero3(model: nn.Module) -> bool:
    """Whether ZeRO-3 has shared out the parameters: nothing but small ones is whole between two forwards."""
    return any(_partitioned(p) for p in model.parameters())


def _partitioned(parameter: torch.Tensor) -> bool:
    return hasattr(parameter, "ds_id")  # set by ZeRO-3 alone


def is_wrapped(model: nn.Module) -> bool:
    """Whether an engine is in charge of the parameters, so that the model cannot be copied or merged: under FSDP2, ZeRO-2 and ZeRO-3."""
    return is_sharded(model) or any(hasattr(p, "_hp_mapping") for p in model.parameters())  # set by DeepSpeed


def layer_classes(model: nn.Module) -> list[str]:
    """Names of the classes of the decoder's layers, most often one: what FSDP2 gathers and frees at a time."""
    return sorted({type(block).__name__ for block in decoder_layers(model)})


def wrap_layers(accelerator: Any, model: nn.Module) -> None:
    """Have an accelerator under FSDP2 wrap the decoder's own layers, whatever its launch file says; nothing under other engines."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

        plugin.transformer_cls_names_to_wrap = layer_classes(model)
        plugin.auto_wrap_policy = transformer_auto_wrap_policy


def shard(model: nn.Module) -> None:
    """Leave every process its part of a model that is on the CPU, by FSDP2, for forwards without training.

    One decoder layer at a time goes to the device whole; what lies outside of the layers stays whole there after the first forward.
    """
    mesh = distributed.init_device_mesh(PartialState().device.type, (distributed.get_world_size(),))  # pyright: ignore[reportOptionalMemberAccess]
    for block in decoder_layers(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "generate")


@contextmanager
def outside_layers(model: nn.Module) -> Iterator[None]:
    """Inside, what lies outside of the decoder layers is whole, so that parts of the model can be called by themselves (FSDP2)."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def most(count: int) -> int:
    """The largest ``count`` of all processes, which all have to ask for it."""
    if PartialState().num_processes == 1:
        return count
    found = torch.tensor(count, device=PartialState().device)
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return int(found)


def adapter_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name -> whole adapter weights on the CPU, gathered by the engine's own means; all processes have to ask for them, and all get them."""
    found = dict[str, torch.Tensor]()
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            with _whole(parameter) as tensor:
                found[name] = tensor.detach().cpu().clone()
    return found


@contextmanager
def _whole(parameter: nn.Parameter, *, write: bool = False) -> Iterator[torch.Tensor]:
    """Inside, the whole tensor; what is written into it stays, except of a DTensor."""
    if isinstance(parameter, DTensor):
        yield parameter.full_tensor()
    elif _partitioned(parameter):
        import deepspeed  # pyright: ignore[reportMissingImports]

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if write else None):
            yield parameter.data
    else:
        yield parameter.data


def save_adapter(model: nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    """Write the adapter as PEFT loads it, from whole tensors; all processes have to call it, the main one writes.

    Returns:
        The tensors, as :func:`adapter_tensors`.

    Raises:
        Unwritten: in all processes, when the main one cannot write.
        RuntimeError: when a tensor is empty, which is what ZeRO-3 leaves of a parameter that was not gathered.
        LossNotFinite: when a weight is not finite.
    """
    tensors = adapter_tensors(model)
    if empty := [name for name, tensor in tensors.items() if not tensor.numel()] or ([] if tensors else ["all of them"]):
        raise RuntimeError(f"{folder}: {len(empty)} adapter tensors are empty ({empty[0]}): they were not gathered")
    if bad := [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]:
        raise LossNotFinite(f"{folder}: {len(bad)} adapter tensors are not finite, e.g. {bad[0]}; lower train.learning_rate")

    def write() -> None:
        with writing(folder.parent):
            model.save_pretrained(str(folder), state_dict=tensors)  # type: ignore[operator]
            as_others(*folder.glob("*.safetensors"))

    main_alone(write)
    return tensors


@torch.no_grad()
def put_adapter(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Write adapter weights, under the names that PEFT saves, into the model; all processes have to call it.

    Returns:
        Names that the model lacks or the weights lack, in which case nothing was written.
    """
    parameters = {name: p for name, p in model.named_parameters() if "lora_" in name}
    stands_for = {name: torch.tensor(place) for place, name in enumerate(parameters)}  # PEFT renames keys and keeps what they stand for
    saved = peft.get_peft_model_state_dict(model, state_dict=stands_for)  # type: ignore[arg-type]
    if lacking := sorted(saved.keys() ^ weights.keys()):
        return lacking
    names = list(parameters)
    for key, place in saved.items():
        parameter = parameters[names[int(place)]]
        if isinstance(parameter, DTensor):
            whole = weights[key].to(parameter.device, parameter.dtype)
            parameter.copy_(distribute_tensor(whole, parameter.device_mesh, parameter.placements))
            continue
        with _whole(parameter, write=True) as tensor:
            tensor.copy_(weights[key])
    return []
