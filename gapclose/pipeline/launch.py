"""Check launch and engine before anything is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml
from accelerate import PartialState

from gapclose.core.distributed import PATIENCE, engine_faults, engine_given, kind_given, kind_of
from gapclose.core.logging import get_logger
from gapclose.core.settings import AUTO
from gapclose.pipeline.config import Config
from gapclose.training.objectives import BY_TRL

logger = get_logger(__name__)


def refuse_under_engine(config: Config, engine: str, processes: int, *, closing: bool) -> None:
    """Refuse settings that ``engine`` does not support, before anything is loaded.

    Raises:
        ValueError: naming every such setting, with the remedy.
    """
    found = []
    if config.model.sharded and (engine != "fsdp2" or processes < 2):
        found.append(f"model.sharded needs several processes under launch/fsdp2.yaml; this is {engine} on {processes}")
    if closing and engine != "ddp":
        if config.targets.rounds > 1:
            found.append(
                f"targets.rounds is {config.targets.rounds}: an engine cannot be started twice on one model; set 1, or use launch/ddp.yaml"
            )
        if config.recipe == AUTO:
            found.append("recipe auto may train in rounds, and an engine cannot be started twice on one model; use launch/ddp.yaml")
        if config.objective in BY_TRL:
            found.append(f"objective {config.objective} is trained by TRL, which is not tried under {engine}; use launch/ddp.yaml")
        if config.train.cache_trunk is True and config.model.sharded:
            found.append("train.cache_trunk is filled by a whole model, which model.sharded is to avoid; set one of them to false")
    if engine != "ddp" and config.model.quantisation is not None:
        found.append(f"model.quantisation {config.model.quantisation} is not supported under {engine}; use launch/ddp.yaml")
    if found:
        raise ValueError(f"these settings do not go with the engine {engine}:\n" + "\n".join(f"  - {fault}" for fault in found))


@dataclass(frozen=True, kw_only=True)
class LaunchRequest:
    """Processes and kind of distribution that a launch requested; None if not specified."""

    processes: int | None = None
    kind: str | None = None
    source: str = "the environment"


def launch_arguments(command: list[str]) -> list[str] | None:
    """Return the arguments after ``accelerate launch``, ``accelerate-launch`` or ``python -m
    accelerate.commands.launch``, or None."""
    for place, word in enumerate(command):
        name, rest = Path(word).name, command[place + 1 :]
        if name == "accelerate-launch" or word == "accelerate.commands.launch" or word.endswith("accelerate/commands/launch.py"):
            return rest
        if rest[:1] == ["launch"] and (name == "accelerate" or word == "accelerate.commands.accelerate_cli"):
            return rest[1:]
    return None


def parse_launch_command(command: list[str]) -> LaunchRequest | None:
    """Return the request of an ``accelerate launch`` command line, or None for other commands.

    Accelerate's own parser reads it, so that flags, both spellings of options and the script's own
    options are recognised as in accelerate.
    """
    arguments = launch_arguments(command)
    if arguments is None:
        return None
    from accelerate.commands.config import default_config_file
    from accelerate.commands.launch import launch_command_parser

    options, _ = launch_command_parser().parse_known_args(arguments)
    file = options.config_file
    if file is None and not options.cpu and Path(default_config_file).is_file():
        file = default_config_file  # written by `accelerate config`
    settings = (yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}) if file and Path(file).is_file() else {}
    processes, kind = options.num_processes or settings.get("num_processes"), settings.get("distributed_type")
    for flag, name in (("use_fsdp", "FSDP"), ("use_deepspeed", "DEEPSPEED"), ("multi_gpu", "MULTI_GPU")):
        kind = name if getattr(options, flag) else kind
    return LaunchRequest(
        processes=int(processes) if processes else None,
        kind=kind_of(str(kind)) if kind is not None else None,
        source=f"the `accelerate launch` command{f' (with {file})' if file else ''}",
    )


def find_launch_request() -> LaunchRequest:
    """Return the request of the nearest `accelerate launch` among the parents.

    If there is none, ``WORLD_SIZE`` is used, which torchrun and Slurm set.
    """
    for parent in psutil.Process().parents()[:4]:
        try:
            asked = parse_launch_command(parent.cmdline())
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
        if asked:
            return asked
    size = os.environ.get("WORLD_SIZE")
    return LaunchRequest(processes=int(size) if size else None, source="WORLD_SIZE")


def check_launch(asked: LaunchRequest | None = None) -> PartialState:
    """Start the process group, print its size and engine, and compare it with the request.

    Raises:
        ValueError: when the number of processes or the kind of distribution differs from the
            request, when the engine or its settings are not supported, or when the launcher
            switched mixed precision on.
    """
    asked = asked or find_launch_request()
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
    logger.info(f"running on {state.num_processes} process{'es' if state.num_processes > 1 else ''} ({engine}, {state.device.type})")  # pyright: ignore[reportOptionalMemberAccess]
    return state
