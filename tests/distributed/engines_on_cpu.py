"""FSDP2 and DeepSpeed on CPU processes: accelerate and DeepSpeed take them for GPU processes that talk through gloo. For tests alone.

    python tests/distributed/engines_on_cpu.py ENGINE PROCESSES -- close --config FILE ...     forks the processes and runs gapclose in each
    python tests/distributed/engines_on_cpu.py ENGINE PROCESSES -- SCRIPT.py ...                the same for a script that trains
    accelerate launch --config_file launch/fsdp2.yaml ... tests/distributed/engines_on_cpu.py close --config FILE ...

GAPCLOSE_STOP_AT names a stage: the program ends with status 9 when it is about to measure it. GAPCLOSE_SPOIL is a rank and a number: after so many
parts of batches its loss is not a number.
"""

import json
import os
import runpy
import sys
from importlib import import_module
from pathlib import Path

os.environ.update(ACCELERATE_TORCH_DEVICE="cpu", DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")

import torch
from accelerate import state as accelerate_state
from accelerate.utils import DistributedType

TINY_ZERO3 = Path(__file__).parent / "zero3_tiny.json"
ENVIRONMENTS = {
    "ddp": {"ACCELERATE_USE_CPU": "true"},
    "fsdp2": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    },
    "zero2": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(TINY_ZERO3)},
}


def take_cpus_for_gpus() -> None:
    """accelerate gives sharding to GPUs alone."""
    original = accelerate_state.PartialState._prepare_backend

    def prepare(self, cpu=False, sagemaker_dp=False, backend=None):
        if "LOCAL_RANK" in os.environ and not cpu:
            return "gloo", DistributedType.MULTI_GPU
        return original(self, cpu, sagemaker_dp, backend)

    accelerate_state.PartialState._prepare_backend = prepare
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # or it would be compiled, which takes more than a minute


def report_shards(directory: Path) -> None:
    """Write down, at every observation, which share of the decoder's parameters this process holds."""
    from gapclose.observe import extract as observe

    original, seen = observe._forward, list[float]()

    def forward(loaded, *rest):
        from gapclose.models.structure import decoder_layers

        held = whole = 0
        for parameter in decoder_layers(loaded.model).parameters():
            held += parameter.to_local().numel() if hasattr(parameter, "to_local") else parameter.numel()
            whole += getattr(parameter, "ds_numel", parameter.numel())
        seen.append(held / whole)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"held-{os.environ['RANK']}.json").write_text(json.dumps(seen))
        return original(loaded, *rest)

    observe._forward = forward


def stop_at(stage: str) -> None:
    """End this process, and not by an error that somebody catches, when ``stage`` is about to be measured."""
    from gapclose.pipeline.context import RunContext

    original = RunContext.measure

    def measure(self, name, *rest, **more):
        if name == stage:
            os._exit(9)
        return original(self, name, *rest, **more)

    RunContext.measure = measure


def run_script(arguments: list[str]) -> int:
    """Run a script that trains."""
    take_cpus_for_gpus()
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent))
    runpy.run_path(arguments[0], run_name="__main__")
    return 0


def run(arguments: list[str]) -> int:
    torch.set_num_threads(1)
    if arguments[0].endswith(".py"):
        return run_script(arguments)
    from gapclose.pipeline.cli import main

    if os.environ.get("GAPCLOSE_STOP_AT"):
        stop_at(os.environ["GAPCLOSE_STOP_AT"])
    if os.environ.get("GAPCLOSE_SPOIL"):
        sys.path.append(str(Path(__file__).parent.parent / "recipes"))
        rank, limit = os.environ["GAPCLOSE_SPOIL"].split()
        import_module("nan_loss").spoil(rank, int(limit))
    if "LOCAL_RANK" in os.environ and os.environ.get("ACCELERATE_USE_CPU") != "true":
        take_cpus_for_gpus()
        report_shards(Path(arguments[arguments.index("--run_dir") + 1]) / "held")
    return main(arguments)


def child(rank: int, engine: str, processes: int, port: str, arguments: list[str]) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ.update({k: str(v) for k, v in places.items()}, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **ENVIRONMENTS[engine])
    sys.exit(run(arguments))


def fork(engine: str, processes: int, arguments: list[str]) -> int:
    """Run in forked processes, which share what takes longest: the imports."""
    import socket

    import torch.multiprocessing

    import gapclose.pipeline.run  # noqa: F401

    if engine.startswith("zero"):
        import deepspeed  # noqa: F401
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    try:
        torch.multiprocessing.start_processes(child, (engine, processes, port, arguments), nprocs=processes, start_method="fork")
    except (torch.multiprocessing.ProcessExitedException, torch.multiprocessing.ProcessRaisedException) as error:
        print(error, file=sys.stderr)
        return getattr(error, "exit_code", 1)
    return 0


if __name__ == "__main__":
    launched = "LOCAL_RANK" in os.environ  # by accelerate, which keeps a `--` to itself
    sys.exit(run(sys.argv[1:]) if launched else fork(sys.argv[1], int(sys.argv[2]), sys.argv[4:]))
