"""Find out what a launcher really gave us, print it, and refuse a mis-launch that would otherwise be silent.

accelerate can start one process where a file asks for two, two unrelated processes that both believe to be rank 0, or DDP where a
file asks for FSDP, each without a word. The launcher does not tell its children which file it read, so the command line of the parent
process is read instead.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from accelerate import PartialState
from filelock import BaseFileLock, FileLock, Timeout
from torch import distributed

from gapclose import __version__
from gapclose.files import write_text, writing
from gapclose.progress import say

# accelerate's names for plain data parallelism over several processes, or none
DATA_PARALLEL = {"NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_XPU", "MULTI_MLU", "MULTI_MUSA", "MULTI_SDAA", "MULTI_HPU"}

PATIENCE = timedelta(days=1)
"""how long processes wait for one that works alone, fitting probes, exporting, uploading; NCCL's own ten minutes would end them. Where one
of them fails, the launcher ends the rest"""

SETTLE = 1.0
"""seconds in which a process that has just taken a lock has written who it is"""
LAPSE = 180
"""seconds in which a file server gives up the locks of a node that it does not hear of any more (NFS version 4: 90, Lustre: 100, by default)"""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the launch command asked for; None where it says nothing."""

    processes: int | None = None
    kind: str | None = None
    source: str = "the environment"


def kind_of(distributed_type: str) -> str:
    """ddp, or accelerate's own lower-case name (fsdp, deepspeed, ...)."""
    name = distributed_type.upper().removeprefix("DISTRIBUTEDTYPE.")
    return "ddp" if name in DATA_PARALLEL else name.lower()


def launch_arguments(command: list[str]) -> list[str] | None:
    """The words after ``accelerate launch``, ``accelerate-launch`` or ``python -m accelerate.commands.launch``, or None."""
    for place, word in enumerate(command):
        name, rest = Path(word).name, command[place + 1 :]
        if name == "accelerate-launch" or word == "accelerate.commands.launch" or word.endswith("accelerate/commands/launch.py"):
            return rest
        if rest[:1] == ["launch"] and (name == "accelerate" or word == "accelerate.commands.accelerate_cli"):
            return rest[1:]
    return None


def asked_for(command: list[str]) -> Asked | None:
    """What an ``accelerate launch`` command line asks for, or None when it is no such command.

    Read by accelerate's own parser, so flags, both spellings of options, and the script's own options are told apart as it does.
    """
    arguments = launch_arguments(command)
    if arguments is None:
        return None
    from accelerate.commands.config import default_config_file
    from accelerate.commands.launch import launch_command_parser

    options, _ = launch_command_parser().parse_known_args(arguments)
    file = options.config_file
    if file is None and not options.cpu and Path(default_config_file).is_file():
        file = default_config_file  # what `accelerate config` wrote
    settings = (yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}) if file and Path(file).is_file() else {}
    processes, kind = options.num_processes or settings.get("num_processes"), settings.get("distributed_type")
    for flag, name in (("use_fsdp", "FSDP"), ("use_deepspeed", "DEEPSPEED"), ("multi_gpu", "MULTI_GPU")):
        kind = name if getattr(options, flag) else kind
    return Asked(
        processes=int(processes) if processes else None,
        kind=kind_of(str(kind)) if kind is not None else None,
        source=f"the `accelerate launch` command{f' (with {file})' if file else ''}",
    )


def find_request() -> Asked:
    """What was asked for, by the nearest `accelerate launch` among the parents, else by the environment of torchrun and Slurm."""
    for parent in psutil.Process().parents()[:4]:
        try:
            asked = asked_for(parent.cmdline())
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
        if asked:
            return asked
    size = os.environ.get("WORLD_SIZE")
    return Asked(processes=int(size) if size else None, source="WORLD_SIZE")


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


def check_launch(asked: Asked | None = None) -> PartialState:
    """Start the process group, print what it is, and compare it with what was asked for.

    Raises:
        ValueError: when there are fewer (or more) processes, or another kind of distribution, than asked for,
            or an engine that is not supported or set up in a way that would go wrong, or when the launcher switched mixed precision on.
    """
    asked = asked or find_request()
    state = PartialState(cpu=os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true", timeout=PATIENCE)
    got = kind_given(state)
    remedy = (
        "On CPUs: ACCELERATE_USE_CPU=true accelerate-launch --config_file launch/ddp.yaml --num_processes N ...; "
        "on GPUs unset ACCELERATE_USE_CPU and check that torch sees them (torch.cuda.device_count())."
    )
    if asked.processes is not None and asked.processes != state.num_processes:
        raise ValueError(f"{asked.source} asks for {asked.processes} processes, and this one sees {state.num_processes}. {remedy}")
    if asked.kind is not None and asked.kind != got:
        raise ValueError(f"{asked.source} asks for {asked.kind}, and the launcher gave {got}. {remedy}")
    engine = engine_given(state)
    if faults := engine_faults(engine):
        raise ValueError(f"{asked.source} gave {engine} with settings that are refused:\n" + "\n".join(f"  - {fault}" for fault in faults))
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if mixed not in ("", "no"):
        raise ValueError(
            f"the launcher switches mixed precision on ({mixed}), in training alone: the base model would be observed in another precision "
            "than the adapted one. Launch with --mixed_precision no, and choose the precision of both by model.dtype."
        )
    say(f"running on {state.num_processes} process{'es' if state.num_processes > 1 else ''} ({engine}, {state.device.type})")  # pyright: ignore[reportOptionalMemberAccess]
    return state


def environment(seed: int, process: Any) -> dict[str, Any]:
    """Versions, device, engine, processes, seed and code revision of a run."""
    packages = ("torch", "transformers", "peft", "accelerate", "scikit-learn", "numpy")
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:  # no git here
        commit = ""
    return {
        "versions": {"gapclose": __version__, **{p: importlib.metadata.version(p) for p in packages}},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine(),
        "engine": engine_given(process),
        "processes": process.num_processes,
        "threads": torch.get_num_threads(),
        "seed": seed,
        "commit": commit or None,
    }


def take_directory(directory: Path) -> BaseFileLock | None:
    """Keep a run directory to this process until it ends, however it ends; None where the file system has no locks.

    The kernel gives the lock of a process back when that ends. Of a node that was lost, the file server does so after a while: a lock that was
    taken on another machine is waited for.

    Raises:
        ValueError: when another process works in it, with where that runs.
        Unwritten: when there can be no such directory.
    """
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    # no marker in place of a lock: of a process that was killed it would stay
    lock, note = FileLock(directory / ".lock", is_singleton=True, fallback_to_soft=False), directory / ".holder"
    try:
        try:
            lock.acquire(timeout=SETTLE)
        except Timeout:
            if _holder(note).endswith(_here()):
                raise
            say(f"{directory} is locked ({_holder(note)}); waiting for {LAPSE} s, in which the lock of a lost node lapses")
            lock.acquire(timeout=LAPSE)
    except Timeout:
        raise ValueError(
            f"{directory}: another process works in this run directory ({_holder(note)}); let it end, or name another one (--run_dir)"
        ) from None
    except (OSError, NotImplementedError) as error:
        say(f"warning: {directory} cannot be locked ({error}); let no other process work in it")
        return None
    write_text(note, f"process {os.getpid()}{_here()}")
    return lock


def leave_directory(directory: Path, lock: BaseFileLock, *, made: bool) -> None:
    """Give a run directory back in which nothing was begun; ``made``: it was not there before, and goes where
    nothing else lies in it."""
    (directory / ".holder").unlink(missing_ok=True)
    if {path.name for path in directory.iterdir()} <= {".lock"}:
        (directory / ".lock").unlink(missing_ok=True)  # a process that waits for it notices, and makes its own
        if made:
            with suppress(OSError):  # another process was quicker
                directory.rmdir()
    lock.release()


def _here() -> str:
    return f" on {platform.node()}"


def _holder(note: Path) -> str:
    """Who holds a lock, by its own words."""
    return note.read_text(encoding="utf-8") if note.is_file() else f"not known which{_here()}"


def peer_lost(error: Exception) -> bool:
    """Whether it is another process of this launch that is gone, by what gloo and NCCL say of it."""
    said = str(error)
    theirs = isinstance(error, RuntimeError) and any(mark in said for mark in ("gloo", "Gloo", "NCCL"))
    return (
        distributed.is_initialized() and theirs and any(words in said for words in ("by peer", "Broken pipe", "remote process", "imed out"))
    )
