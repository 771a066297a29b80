"""Work across the W processes of a launch, whose results and errors every process receives.

All processes must make the same calls in the same order. An error in one process is raised in all
with the same message, because the others would wait for it. A ``ValueError``, a
``FloatingPointError`` and an ``OSError`` with a number keep these types in the other processes; any
other error becomes a :class:`RemoteError`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import distributed
from torch.distributed.fsdp import CPUOffloadPolicy

from gapclose.core.files import WriteError
from gapclose.core.logging import progress

T = TypeVar("T")
R = TypeVar("R")

SAME: tuple[type[Exception], ...] = (ValueError, FloatingPointError)
"""error types that can be created again from their message"""
Told = tuple[str, tuple[Any, ...]]
"""name of an error type and the arguments of the error"""


class RemoteError(RuntimeError):
    """An error of another process, whose type is lost here. That process shows its traceback."""


def map_across_ranks(pieces: Sequence[T], work: Callable[[T], R], label: str) -> list[R]:
    """Apply ``work`` to every piece and return the results in order; each process does every W-th.

    Raises:
        Exception: in all processes, when one raises it.
    """
    state = PartialState()
    rank, processes = state.process_index, state.num_processes
    mine = pieces[rank::processes]
    parts = run_on_all_ranks(lambda: [work(piece) for piece in progress(mine, len(mine), label)])
    return [parts[n % processes][n // processes] for n in range(len(pieces))]


def run_on_all_ranks(work: Callable[[], T], *, joint: bool = False) -> list[T]:
    """Run ``work`` in every process and return the results by rank.

    Args:
        joint: the processes also communicate within ``work``. An error in the middle then ends its
            own process at once, and the launcher ends the others: no message can reach processes
            that wait for something else. Only a ``FloatingPointError`` is shared, which such work
            raises after its last communication.

    Raises:
        Exception: in all processes, when one raises it.
    """
    found, fault = _tried(work, (FloatingPointError,) if joint else (Exception,))
    told = gather_object([(found, fault and _words(fault))])
    if fault:
        raise fault
    for _, other in told:
        if other:
            raise _again(other)
    return [found for found, _ in told]


def run_on_main(work: Callable[[], T]) -> T:
    """Run ``work`` in the main process only, and return its result in all processes.

    Raises:
        Exception: in all processes, when the main process raises it.
    """
    found, fault = _tried(work, (Exception,)) if PartialState().is_main_process else (None, None)
    (found, other) = broadcast_object_list([found, fault and _words(fault)])
    if fault:
        raise fault
    if other:
        raise _again(other)
    return found


def _tried(work: Callable[[], Any], kinds: tuple[type[Exception], ...]) -> tuple[Any, Exception | None]:
    try:
        return work(), None
    except kinds as fault:
        if peer_lost(fault):  # the other process is gone and cannot receive the error
            raise
        return None, fault


def _words(fault: Exception) -> Told:
    """Return an error in a form that every process can read."""
    if isinstance(fault, OSError) and fault.errno is not None:
        return ("unwritten" if isinstance(fault, WriteError) else "system"), (fault.errno, fault.strerror, _name(fault.filename))
    for kind in SAME:
        if isinstance(fault, kind):
            return kind.__name__, (str(fault),)
    return "other", (f"process {PartialState().process_index} of this run ended with {type(fault).__name__}: {fault}",)


def _name(file: Any) -> str | None:
    return None if file is None else str(file)


def _again(told: Told) -> Exception:
    """Create the error that another process has shared."""
    kinds: dict[str, type[Exception]] = {"unwritten": WriteError, "system": OSError, "other": RemoteError}
    kinds |= {kind.__name__: kind for kind in SAME}
    kind, arguments = told
    return kinds[kind](*arguments)


# accelerate's names for one process, or several with plain data parallelism
DATA_PARALLEL = {"NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_XPU", "MULTI_MLU", "MULTI_MUSA", "MULTI_SDAA", "MULTI_HPU"}

OFFLOAD = "offloading to the host's memory or to disk is not supported; set it to none (false under FSDP2)"

PATIENCE = timedelta(days=1)
"""how long processes wait for one that works alone (fitting probes, exporting, uploading); NCCL's
default of ten minutes is too short. If one fails, the launcher ends the others"""


def kind_of(distributed_type: str) -> str:
    """Return ddp, or accelerate's lower-case name (fsdp, deepspeed, ...)."""
    name = distributed_type.upper().removeprefix("DISTRIBUTEDTYPE.")
    return "ddp" if name in DATA_PARALLEL else name.lower()


def kind_given(state: PartialState) -> str:
    """Return the kind of distribution that accelerate will use.

    ``PartialState`` reports sharded launches as plain data parallel; the trainer reads the
    environment later. On CPUs accelerate drops sharding silently.
    """
    if str(state.distributed_type).removeprefix("DistributedType.") not in ("NO", "MULTI_CPU"):
        for kind in ("fsdp", "deepspeed", "megatron_lm"):
            if os.environ.get(f"ACCELERATE_USE_{kind.upper()}", "").lower() == "true":
                return kind
    return kind_of(str(state.distributed_type))


def engine_given(state: PartialState) -> str:
    """Return ddp, fsdp2, zero2 or zero3.

    Raises:
        ValueError: for any other kind, with what to set.
    """
    kind = kind_given(state)
    return _engine(kind, os.environ.get("FSDP_VERSION", "1"), _zero_stage() if kind == "deepspeed" else 0)


def engine_of(accelerator: Any) -> str:
    """Return the engine of a trainer that somebody else set up: ddp, fsdp2, zero2 or zero3.

    Raises:
        ValueError: for any other, where weights or optimizer states are moved to the host's memory
            or to disk, and where FSDP2 wraps the layers to recompute activations.
    """
    fsdp: Any = getattr(accelerator.state, "fsdp_plugin", None)
    deepspeed: Any = getattr(accelerator.state, "deepspeed_plugin", None)
    zero = deepspeed.deepspeed_config.get("zero_optimization", {}) if deepspeed else {}
    found = _engine(kind_of(str(accelerator.distributed_type)), str(getattr(fsdp, "fsdp_version", 1)), zero.get("stage", 0))
    if _offloads(zero) or (found == "fsdp2" and isinstance(fsdp.cpu_offload, CPUOffloadPolicy)):
        raise ValueError(OFFLOAD)
    if found == "fsdp2" and fsdp.activation_checkpointing:
        raise ValueError("activation checkpointing by FSDP is not supported; use gradient_checkpointing of the trainer")
    return found


def _offloads(zero: Mapping[str, Any]) -> bool:
    """Whether ZeRO settings, also those of old names, move something to the host's memory or to disk."""
    parts = (zero.get(f"offload_{part}") or {} for part in ("optimizer", "param"))
    return any(part.get("device", "none") != "none" for part in parts) or any(map(zero.get, ("cpu_offload", "cpu_offload_param")))


def _engine(kind: str, fsdp_version: str, zero_stage: int) -> str:
    if kind == "ddp":
        return kind
    if kind == "fsdp":
        if fsdp_version != "2":
            raise ValueError(f"FSDP version {fsdp_version} is not supported; set fsdp_version: 2, as launch/fsdp2.yaml does")
        return "fsdp2"
    if kind == "deepspeed":
        if zero_stage not in (2, 3):
            raise ValueError(f"DeepSpeed ZeRO stage {zero_stage} is not supported; use launch/zero2.yaml or launch/zero3.yaml")
        return f"zero{zero_stage}"
    raise ValueError(f"{kind} is not supported; use launch/ddp.yaml, fsdp2.yaml, zero2.yaml or zero3.yaml")


def _deepspeed_settings() -> dict[str, Any]:
    """Return the content of the JSON file that the launch file names; empty if it names none."""
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    return json.loads(Path(file).read_text(encoding="utf-8")) if file.lower() != "none" else {}


def _zero_stage() -> int:
    found = _deepspeed_settings().get("zero_optimization", {})
    return int(found.get("stage", 0) if found else os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2))


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1", "cpu", "nvme")


def engine_faults(engine: str) -> list[str]:
    """List settings of the launch that fail silently under ``engine``, or that are untested."""
    found = []
    if engine == "fsdp2" and _is_on("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        found.append(
            "fsdp_cpu_ram_efficient_loading must be false (accelerate's default is true): transformers would leave the weights of all "
            "processes but the first empty, and they would observe an empty model"
        )
    if engine == "fsdp2" and _is_on("FSDP_ACTIVATION_CHECKPOINTING"):
        found.append("fsdp_activation_checkpointing must be false; use train.gradient_checkpointing")
    zero = _deepspeed_settings().get("zero_optimization", {})
    names = ("FSDP_OFFLOAD_PARAMS", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE")
    if engine != "ddp" and (any(map(_is_on, names)) or _offloads(zero)):
        found.append(OFFLOAD)
    return found


def refuse_other_engine(accelerator: Any) -> None:
    """Compare a trainer's accelerator with the launch.

    The trainer can fall back to plain data parallelism silently.

    Raises:
        ValueError: when they differ; names both.
    """
    launched, got = kind_given(PartialState()), kind_of(str(accelerator.distributed_type))
    if got != launched:
        raise ValueError(f"the launch gave {launched}, and the trainer would train under {got}; use a file of launch/ as it is")


def peer_lost(error: Exception) -> bool:
    """Whether another process of this launch is gone, judged by the messages of gloo and NCCL."""
    said = str(error)
    theirs = isinstance(error, RuntimeError) and any(mark in said for mark in ("gloo", "Gloo", "NCCL"))
    return (
        distributed.is_initialized() and theirs and any(words in said for words in ("by peer", "Broken pipe", "remote process", "imed out"))
    )
