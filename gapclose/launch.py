"""Find out what a launcher really gave us, print it, and refuse a mis-launch that would otherwise be silent.

accelerate can start one process where a file asks for two, two unrelated processes that both believe to be rank 0, or DDP where a
file asks for FSDP, each without a word. The launcher does not tell its children which file it read, so the command line of the parent
process is read instead.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml
from accelerate import PartialState

from gapclose.progress import say

# accelerate's names for plain data parallelism over several processes, or none
DATA_PARALLEL = {"NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_XPU", "MULTI_MLU", "MULTI_MUSA", "MULTI_SDAA", "MULTI_HPU"}


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


def asked_for(command: list[str]) -> Asked | None:
    """What an ``accelerate launch`` command line asks for, or None when it is no such command."""
    if "launch" not in command or not any("accelerate" in Path(word).name for word in command[: command.index("launch")]):
        return None
    words = command[command.index("launch") + 1 :]
    options = {}
    for place, word in enumerate(words):
        if not word.startswith("-"):
            if place == 0 or "=" in words[place - 1] or not words[place - 1].startswith("--"):
                break  # the script; what follows are its own options
            continue
        name, _, value = word.lstrip("-").partition("=")
        options[name.replace("-", "_")] = value or (words[place + 1] if place + 1 < len(words) else "")
    file = options.get("config_file")
    settings = yaml.safe_load(Path(file).read_text(encoding="utf-8")) if file and Path(file).is_file() else {}
    processes = options.get("num_processes") or settings.get("num_processes")
    kind = settings.get("distributed_type")
    for flag, name in (("use_fsdp", "FSDP"), ("use_deepspeed", "DEEPSPEED")):
        kind = name if flag in options else kind
    return Asked(
        processes=int(processes) if processes else None,
        kind=kind_of(str(kind)) if kind is not None else None,
        source=file or "the `accelerate launch` command",
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


def check_launch(asked: Asked | None = None) -> PartialState:
    """Start the process group, print what it is, and compare it with what was asked for.

    Raises:
        ValueError: when there are fewer (or more) processes, or another kind of distribution, than asked for.
    """
    asked = asked or find_request()
    state = PartialState(cpu=os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true")
    got = kind_of(str(state.distributed_type))
    remedy = (
        "On CPUs: ACCELERATE_USE_CPU=true accelerate launch --config_file launch/ddp.yaml --num_processes N ...; "
        "on GPUs unset ACCELERATE_USE_CPU and check that torch sees them (torch.cuda.device_count())."
    )
    if asked.processes is not None and asked.processes != state.num_processes:
        raise ValueError(f"{asked.source} asks for {asked.processes} processes, and this one sees {state.num_processes}. {remedy}")
    if asked.kind is not None and asked.kind != got:
        raise ValueError(f"{asked.source} asks for {asked.kind}, and the launcher gave {got}. {remedy}")
    say(f"running on {state.num_processes} process{'es' if state.num_processes > 1 else ''} ({got}, {state.device.type})")
    return state
