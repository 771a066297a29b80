"""How engines hold a model's parameters, and how to read them completely under any engine.

Under one process, DDP and ZeRO-2 every process holds complete parameters. FSDP2 makes ``DTensor``s
of them and ZeRO-3 empty placeholders; hooks gather both during the forward. Every forward is then a
collective operation, so all processes have to run equally many, over the same modules. The
functions inspect the parameters, not the launch settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from torch import distributed, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from gapclose.models.structure import decoder_layers


@contextmanager
def gathered(parameter: torch.Tensor, *, write: bool = False) -> Iterator[torch.Tensor]:
    """Inside, the complete tensor; writes to it persist, except for a DTensor.

    Under ZeRO-3 writes need ``write``, and those of rank 0 persist.
    """
    if isinstance(parameter, DTensor):
        yield parameter.full_tensor()
    elif is_partitioned(parameter):
        import deepspeed  # pyright: ignore[reportMissingImports]

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if write else None):
            yield parameter.data
    else:
        yield parameter.data


def is_sharded(model: nn.Module) -> bool:
    """Whether a process holds only a part of the model, so all must run their forwards together."""
    return any(isinstance(m, FSDPModule) for m in model.modules()) or is_zero3(model)


def is_zero3(model: nn.Module) -> bool:
    """Whether ZeRO-3 has partitioned the parameters.

    Between forwards, only small ones are complete.
    """
    return any(is_partitioned(p) for p in model.parameters())


def is_partitioned(parameter: torch.Tensor) -> bool:
    return hasattr(parameter, "ds_id")  # set by ZeRO-3 alone


def is_wrapped(model: nn.Module) -> bool:
    """Whether an engine manages the parameters, so that the model cannot be copied or merged.

    This is so under FSDP2, ZeRO-2 and ZeRO-3.
    """
    return is_sharded(model) or any(hasattr(p, "_hp_mapping") for p in model.parameters())  # set by DeepSpeed


def layer_classes(model: nn.Module) -> list[str]:
    """Class names of the decoder's layers, usually one: the unit that FSDP2 gathers and frees."""
    return sorted({type(block).__name__ for block in decoder_layers(model)})


def wrap_layers(accelerator: Any, model: nn.Module) -> None:
    """Make FSDP2 wrap the decoder's own layers, whatever the launch file says.

    Does nothing under other engines.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

        plugin.transformer_cls_names_to_wrap = layer_classes(model)
        plugin.auto_wrap_policy = transformer_auto_wrap_policy


def shard(model: nn.Module) -> None:
    """Shard a model on the CPU across processes by FSDP2, for forwards without training.

    One decoder layer at a time is gathered on the device. Parameters outside the layers stay
    gathered after the first forward.
    """
    mesh = distributed.init_device_mesh(PartialState().device.type, (distributed.get_world_size(),))  # pyright: ignore[reportOptionalMemberAccess]
    for block in decoder_layers(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "generate")


@contextmanager
def unsharded_root(model: nn.Module) -> Iterator[None]:
    """Inside, parameters outside the decoder layers are complete (FSDP2).

    Parts of the model can then be called by themselves.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def all_reduce_max(count: int) -> int:
    """The largest ``count`` of all processes; all of them must call this."""
    if PartialState().num_processes == 1:
        return count
    found = torch.tensor(count, device=PartialState().device)
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return int(found)


def unwrap_engine(model: Any) -> Any:
    """The PEFT or transformers model inside DDP: forwards without gradients need no engine."""
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
