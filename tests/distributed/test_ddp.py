"""Two CPU processes give what one gives, and a launch that is not what it says is refused; all by real `accelerate launch`."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from gapclose.evaluation.run_records import summarise

ROOT = Path(__file__).parent.parent.parent
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
ONE_NODE = {"num_machines": 1, "machine_rank": 0, "mixed_precision": "no", "rdzv_backend": "static", "same_network": True}


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
    return subprocess.run(command, env=kept | {"CUDA_VISIBLE_DEVICES": ""} | environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def two_processes(close_command, tmp_path_factory) -> Path:
    """The directory of a run on two CPU processes, with the settings of ``closed_run`` and so the same global batches."""
    directory = tmp_path_factory.mktemp("runs") / "two"
    launcher = [*LAUNCH, "--config_file", str(ROOT / "launch" / "ddp.yaml"), "--num_processes", "2", "--main_process_port", free_port()]
    result = run(close_command(directory, *launcher), ACCELERATE_USE_CPU="true")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "running on 2 processes (ddp, cpu)" in result.stdout
    return directory


@pytest.mark.slow
def test_measuring_on_two_processes_gives_the_figures_of_one(close_command, tmp_path):
    """`recipes/measure.py`, all controls but networks with random weights: records and controls to the last digit."""
    launcher = [*LAUNCH, "--config_file", str(ROOT / "launch" / "ddp.yaml"), "--num_processes", "2", "--main_process_port", free_port()]
    found = []
    for name, of in (("one", close_command(tmp_path / "one")), ("two", close_command(tmp_path / "two", *launcher))):
        command = [part.replace("recipes/close.py", "recipes/measure.py") for part in of] + ["--controls.random_weights", "false"]
        result = run(command, **({"ACCELERATE_USE_CPU": "true"} if name == "two" else {}))
        assert result.returncode == 0, result.stderr[-3000:]
        found.append([(tmp_path / name / file).read_text() for file in ("gap.jsonl", "measurement.json")])
    assert found[0] == found[1]


def losses(directory: Path) -> list[dict[str, float]]:
    """What the trainer logged at every step."""
    last = max(directory.glob("checkpoints/checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return [{k: v for k, v in line.items() if k.startswith("loss") or k == "grad_norm"} for line in history if "loss" in line]


def test_every_step_has_the_same_loss(two_processes, closed_run):
    ours, theirs = losses(two_processes), losses(closed_run)
    assert len(ours) == len(theirs) == 12
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True), start=1):
        assert a == pytest.approx(b, abs=1e-4), step


def test_the_exported_adapter_is_the_same(two_processes, closed_run):
    ours, theirs = (load_file(d / "adapter" / "adapter_model.safetensors") for d in (two_processes, closed_run))
    assert ours.keys() == theirs.keys()
    worst = max(float((ours[k] - theirs[k]).abs().max()) for k in ours)
    assert worst < 1e-4
    assert any(v.abs().max() > 1e-3 for k, v in ours.items() if "lora_B" in k), "nothing was learned, so nothing was compared"


def test_what_the_base_model_says_is_the_same_bit_for_bit(two_processes, closed_run):
    for shard in (closed_run / "observations" / "base-test").glob("shard-*.safetensors"):
        ours, theirs = load_file(two_processes / "observations" / "base-test" / shard.name), load_file(shard)
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_the_figures_are_the_same(two_processes, closed_run):
    def flat(tree: dict, prefix: str = "") -> dict:
        found = {}
        for key, value in tree.items():
            found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return found

    ours, theirs = flat(summarise(two_processes)), flat(summarise(closed_run))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        # quotients of small differences (closures) stay out: one answer more or less can move them by any amount
        if isinstance(value, float) and "closure" not in key:
            assert ours[key] == pytest.approx(value, abs=0.02), key


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """accelerate files for two processes of several kinds."""
    directory = tmp_path_factory.mktemp("launch")
    fsdp = {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_transformer_layer_cls_to_wrap": "Qwen2_5OmniDecoderLayer",
    }
    kinds = {"MULTI_CPU": {}, "FSDP": {"fsdp_config": fsdp}, "NO": {}}
    for kind, more in kinds.items():
        settings = {"compute_environment": "LOCAL_MACHINE", "distributed_type": kind, "num_processes": 2, **ONE_NODE, **more}
        (directory / f"{kind}.yaml").write_text(yaml.safe_dump(settings))
    return {kind: directory / f"{kind}.yaml" for kind in kinds} | {"ddp.yaml": ROOT / "launch" / "ddp.yaml"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "options", "on_cpu", "says"),
    [
        pytest.param(
            "MULTI_CPU",
            ["--cpu", "--num_processes", "2"],
            None,
            "asks for 2 processes, and this one sees 1",
            id="multi-cpu",
        ),
        pytest.param(
            "ddp.yaml",
            ["--num_processes", "2"],
            None,
            "asks for 2 processes, and this one sees 1",
            id="two-unrelated-ones",
        ),
        pytest.param("FSDP", ["--num_processes", "2"], "true", "asks for fsdp, and the launcher gave ddp", id="fsdp-on-cpu-is-ddp"),
        pytest.param("NO", [], None, "asks for 2 processes, and this one sees 1", id="a-file-that-starts-one"),
    ],
)
def test_a_mis_launch_is_refused_before_anything_is_written(close_command, files, tmp_path, file, options, on_cpu, says):
    launcher = [*LAUNCH, "--config_file", str(files[file]), *options, "--main_process_port", free_port()]
    result = run(close_command(tmp_path / "run", *launcher), **({"ACCELERATE_USE_CPU": on_cpu} if on_cpu else {}))
    assert result.returncode != 0
    assert says in result.stderr and "ACCELERATE_USE_CPU=true accelerate-launch --config_file launch/ddp.yaml" in result.stderr
    assert "Loading weights" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_from_a_frozen_trunk_that_two_processes_filled_every_step_has_the_same_loss(close_command, closed_run, tmp_path):
    launcher = [*LAUNCH, "--config_file", str(ROOT / "launch" / "ddp.yaml"), "--num_processes", "2", "--main_process_port", free_port()]
    command = [*close_command(tmp_path / "two", *launcher), "--train.cache_trunk", "true"]
    result = run(command, ACCELERATE_USE_CPU="true")
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("hidden-state cache of") == 2  # of what is trained on, and of val
    ours, theirs = losses(tmp_path / "two"), losses(closed_run)
    assert len(ours) == len(theirs) == 12
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True), start=1):
        assert a == pytest.approx(b, abs=1e-4), step
