"""Work that the processes of a launch share out, and what each of them found or met told to all.

All of the W processes must make the same calls in the same order. An error of any kind that one of them meets ends the work of all with the
same words: the others would wait for it. A ``ValueError``, a ``FloatingPointError`` and an ``OSError`` with a number are raised elsewhere as such,
any other error as :class:`RemoteError`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import distributed

from gapclose.core.files import WriteError
from gapclose.core.logging import progress

T = TypeVar("T")
R = TypeVar("R")

SAME: tuple[type[Exception], ...] = (ValueError, FloatingPointError)
"""kinds of errors that are made again of their words alone"""
Told = tuple[str, tuple[Any, ...]]
"""the name of a kind and what an error of it is made of"""


class RemoteError(RuntimeError):
    """An error that another process of this launch met, and whose kind cannot be raised here; that process shows its traceback."""


def map_across_ranks(pieces: Sequence[T], work: Callable[[T], R], label: str) -> list[R]:
    """What ``work`` makes of every piece, in the order of the pieces; each process does every W-th of them.

    Raises:
        Exception: in all processes, when it is raised in one.
    """
    state = PartialState()
    rank, processes = state.process_index, state.num_processes
    mine = pieces[rank::processes]
    parts = run_on_all_ranks(lambda: [work(piece) for piece in progress(mine, len(mine), label)])
    return [parts[n % processes][n // processes] for n in range(len(pieces))]


def run_on_all_ranks(work: Callable[[], T], *, joint: bool = False) -> list[T]:
    """What ``work`` gives in every process, by rank.

    Args:
        joint: the processes also communicate within ``work``. An error in the middle of it then ends its own process at once, and the launcher
            ends the rest: no word can reach processes that wait for something else. Only a ``FloatingPointError`` is told, which such work
            raises after the last communication.

    Raises:
        Exception: in all processes, when it is raised in one.
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
    """What ``work`` gives in the main process, where alone it is done.

    Raises:
        Exception: in all processes, when it is raised in the main one.
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
        if peer_lost(fault):  # nobody is left to be told
            raise
        return None, fault


def _words(fault: Exception) -> Told:
    """An error, in a form that every process can read."""
    if isinstance(fault, OSError) and fault.errno is not None:
        return ("unwritten" if isinstance(fault, WriteError) else "system"), (fault.errno, fault.strerror, _name(fault.filename))
    for kind in SAME:
        if isinstance(fault, kind):
            return kind.__name__, (str(fault),)
    return "other", (f"process {PartialState().process_index} of this run ended with {type(fault).__name__}: {fault}",)


def _name(file: Any) -> str | None:
    return None if file is None else str(file)


def _again(told: Told) -> Exception:
    """The error that another process has told."""
    kinds: dict[str, type[Exception]] = {"unwritten": WriteError, "system": OSError, "other": RemoteError}
    kinds |= {kind.__name__: kind for kind in SAME}
    kind, arguments = told
    return kinds[kind](*arguments)


# accelerate's names for plain data parallelism over several processes, or none
DATA_PARALLEL = {"NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_XPU", "MULTI_MLU", "MULTI_MUSA", "MULTI_SDAA", "MULTI_HPU"}

PATIENCE = timedelta(days=1)
"""how long processes wait for one that works alone, fitting probes, exporting, uploading; NCCL's own ten minutes would end them. Where one
of them fails, the launcher ends the rest"""


def kind_of(distributed_type: str) -> str:
    """ddp, or accelerate's own lower-case name (fsdp, deepspeed, ...)."""
    name = distributed_type.upper().removeprefix("DISTRIBUTEDTYPE.")
    return "ddp" if name in DATA_PARALLEL else name.lower()


def kind_given(state: PartialState) -> str:
    """The kind of distribution that accelerate will use. ``PartialState`` calls sharded launches plain data parallel, and the trainer
    finds out later from the environment; on CPUs accelerate drops sharding without a word."""
    if str(state.distributed_type).removeprefix("DistributedType.") not in ("NO", "MULTI_CPU"):
        for kind in ("fsdp", "deepspeed", "megatron_lm"):
            if os.environ.get(f"ACCELERATE_USE_{kind.upper()}", "").lower() == "true":
                return kind
    return kind_of(str(state.distributed_type))


def engine_given(state: PartialState) -> str:
    """ddp, fsdp2, zero2 or zero3.

    Raises:
        ValueError: for everything else, with what to set.
    """
    kind = kind_given(state)
    if kind == "ddp":
        return kind
    if kind == "fsdp":
        version = os.environ.get("FSDP_VERSION", "1")
        if version != "2":
            raise ValueError(f"FSDP version {version} is not supported; set fsdp_version: 2, as launch/fsdp2.yaml does")
        return "fsdp2"
    if kind == "deepspeed":
        stage = _zero_stage()
        if stage not in (2, 3):
            raise ValueError(f"DeepSpeed ZeRO stage {stage} is not supported; use launch/zero2.yaml or launch/zero3.yaml")
        return f"zero{stage}"
    raise ValueError(f"{kind} is not supported; use launch/ddp.yaml, fsdp2.yaml, zero2.yaml or zero3.yaml")


def _deepspeed_settings() -> dict[str, Any]:
    """The JSON file that a launch file names, if it does."""
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    return json.loads(Path(file).read_text(encoding="utf-8")) if file.lower() != "none" else {}


def _zero_stage() -> int:
    found = _deepspeed_settings().get("zero_optimization", {})
    return int(found.get("stage", 0) if found else os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2))


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1", "cpu", "nvme")


def engine_faults(engine: str) -> list[str]:
    """What a launch file switches on under an engine that would go wrong without a word, or that nobody has tried."""
    found = []
    if engine == "fsdp2" and _is_on("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        found.append(
            "fsdp_cpu_ram_efficient_loading must be false (accelerate's default is true): transformers would leave the weights of all "
            "processes but the first empty, and they would observe an empty model"
        )
    if engine == "fsdp2" and _is_on("FSDP_ACTIVATION_CHECKPOINTING"):
        found.append("fsdp_activation_checkpointing must be false; use train.gradient_checkpointing")
    zero = _deepspeed_settings().get("zero_optimization", {})
    offload = [zero.get(f"offload_{part}", {}).get("device", "none") for part in ("optimizer", "param")]
    names = ("FSDP_OFFLOAD_PARAMS", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE")
    if engine != "ddp" and (any(map(_is_on, names)) or any(o != "none" for o in offload)):
        found.append("offloading to the host's memory or to disk is not supported; set it to none (false under FSDP2)")
    return found


def refuse_other_engine(accelerator: Any) -> None:
    """Compare what a trainer's accelerator does with the launch: it can fall back to plain data parallelism without a word.

    Raises:
        ValueError: naming both.
    """
    launched, got = kind_given(PartialState()), kind_of(str(accelerator.distributed_type))
    if got != launched:
        raise ValueError(f"the launch gave {launched}, and the trainer would train under {got}; use a file of launch/ as it is")


def peer_lost(error: Exception) -> bool:
    """Whether it is another process of this launch that is gone, by what gloo and NCCL say of it."""
    said = str(error)
    theirs = isinstance(error, RuntimeError) and any(mark in said for mark in ("gloo", "Gloo", "NCCL"))
    return (
        distributed.is_initialized() and theirs and any(words in said for words in ("by peer", "Broken pipe", "remote process", "imed out"))
    )
