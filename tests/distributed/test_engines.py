"""Two processes under FSDP2, ZeRO-2 and ZeRO-3 give what one gives, also when they were stopped on the way; on CPUs, through gloo.

Half of the retain items about what is seen carry no sound, so the two processes often hold different media at the same time.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from gapclose.evaluation.run_records import read_records

pytestmark = pytest.mark.slow  # minutes on two cores that have nothing else to do

ROOT = Path(__file__).parent.parent.parent
ON_CPU = Path(__file__).parent / "engines_on_cpu.py"
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed (extra `deepspeed`)")
ENGINES = [pytest.param("fsdp2"), pytest.param("zero2", marks=needs_deepspeed), pytest.param("zero3", marks=needs_deepspeed)]
STORED = [pytest.param("fsdp2-trunk"), pytest.param("zero3-trunk", marks=needs_deepspeed)]
TRUNK = {"train.cache_trunk": "true"}
MORE = {  # what only one of the engines' runs shows, to save time
    "fsdp2": {"model.sharded": "true"},
    "fsdp2-trunk": TRUNK,
    "zero2": TRUNK,
    "zero3-trunk": TRUNK,
    "zero3": {"observe.max_new_tokens": "1", "export.verify": "true", "export.merged": "true"},
}


@dataclass(frozen=True)
class Finished:
    directory: Path
    stdout: str


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "FSDP_"))}
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    more = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path} | environment
    return subprocess.run(command, cwd=ROOT, env=kept | more, capture_output=True, text=True, check=False, timeout=500)


@pytest.fixture(scope="module")
def arguments(tiny_config, digits_directory, tmp_path_factory):
    """``(run_dir, **settings)`` -> the arguments of ``gapclose``, on items of which some lack their sound."""
    directory = tmp_path_factory.mktemp("mixed")
    shutil.copytree(digits_directory, directory / "digits")
    path, lines = directory / "digits" / "items.jsonl", []
    for place, line in enumerate((directory / "digits" / "items.jsonl").read_text().splitlines()):
        item = json.loads(line)
        if item["purpose"] == "retain" and item["modality"] == "vision" and place % 2:
            for message in item["messages"]:
                if isinstance(message["content"], list):
                    message["content"] = [part for part in message["content"] if part["type"] != "audio"]
        lines.append(json.dumps(item) + "\n")
    path.write_text("".join(lines))
    settings = yaml.safe_load(tiny_config.read_text())
    settings["data"]["path"] = str(directory / "digits")
    (directory / "tiny.yaml").write_text(yaml.safe_dump(settings))
    common = {"observe.shard_batches": 1, "observe.max_new_tokens": 2, "train.learning_rate": 0.001, "export.verify": "false"}

    def of(run_dir: Path, **more: str) -> list[str]:
        options = [w for key, value in {**common, **more, "run_dir": run_dir}.items() for w in (f"--{key}", str(value))]
        return ["close", "--config", str(directory / "tiny.yaml"), *options]

    return of


@pytest.fixture(scope="module")
def one_process(arguments, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("engines") / "one"
    result = run([sys.executable, "-m", "gapclose.pipeline.cli", *arguments(directory)])
    assert result.returncode == 0, result.stderr[-3000:]
    return directory


@pytest.fixture(scope="module", params=ENGINES + STORED)
def two_processes(request, arguments, tmp_path_factory) -> Finished:
    """A run on two processes that was stopped before the last epoch was measured, and started again."""
    directory, engine = tmp_path_factory.mktemp("engines") / request.param, request.param.partition("-")[0]
    mine = arguments(directory, **{"train.micro_batch_size": 6}, **MORE[request.param])
    command = [sys.executable, str(ON_CPU), engine, "2", "--", *mine]
    stopped = run(command, GAPCLOSE_STOP_AT="epoch-2")
    assert stopped.returncode == 9, stopped.stderr[-3000:]
    assert not (directory / "adapter").exists()
    result = run(command)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"running on 2 processes ({engine}, cpu" in result.stdout
    assert "going on from checkpoint-6" in result.stdout
    assert result.stdout.count("hidden-state cache of") == (2 if MORE[request.param] == TRUNK else 0)  # of train and val
    return Finished(directory, result.stdout)


def losses(directory: Path) -> list[dict[str, float]]:
    """What the trainer logged at every step."""
    last = max(directory.glob("checkpoints/checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return [{k: v for k, v in line.items() if k.startswith("loss") or k == "grad_norm"} for line in history if "loss" in line]


def test_every_step_has_the_same_loss(two_processes, one_process):
    ours, theirs = losses(two_processes.directory), losses(one_process)
    assert len(ours) == len(theirs) == 12
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True), start=1):
        assert a == pytest.approx(b, abs=1e-4), step


def test_the_exported_adapter_is_the_same(two_processes, one_process):
    ours, theirs = (load_file(d / "adapter" / "adapter_model.safetensors") for d in (two_processes.directory, one_process))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[k] - theirs[k]).abs().max()) for k in ours) < 1e-4
    assert any(v.abs().max() > 1e-3 for k, v in ours.items() if "lora_B" in k), "nothing was learned, so nothing was compared"


def test_the_base_model_says_the_same(two_processes, one_process):
    for shard in (one_process / "observations" / "base-test").glob("shard-*.safetensors"):
        ours, theirs = load_file(two_processes.directory / "observations" / "base-test" / shard.name), load_file(shard)
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[k], theirs[k], atol=1e-6, rtol=0) for k in theirs)


def test_every_record_has_the_same_figures(two_processes, one_process):
    ours, theirs = ([json.loads(line) for line in (d / "gap.jsonl").open()] for d in (two_processes.directory, one_process))
    assert [r["stage"] for r in ours] == [r["stage"] for r in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for side, figure in (
            ("action", "balanced"),
            ("action", "auroc"),
            ("reading", "balanced"),
            ("reading", "auroc"),
            ("gap", "balanced"),
        ):
            assert a[side][figure]["value"] == pytest.approx(b[side][figure]["value"], abs=1e-3), (a["stage"], side, figure)


def test_the_model_was_in_parts(two_processes):
    """Of the decoder each process held half under FSDP2, also before training where ``model.sharded`` asks for it, and nothing between two
    forwards under ZeRO-3; ZeRO-2 shards what training keeps beside the model alone."""
    engine = two_processes.directory.name.partition("-")[0]
    for rank in (0, 1):
        held = json.loads((two_processes.directory / "held" / f"held-{rank}.json").read_text())
        assert held[-1] == pytest.approx({"fsdp2": 0.5, "zero2": 1.0, "zero3": 0.0}[engine], abs=0.02)
    if two_processes.directory.name == "fsdp2":
        assert max(held) == pytest.approx(0.5, abs=0.02)


def test_the_exports_were_verified(two_processes):
    """Where an engine holds the parameters, the exports come from a model that was read again."""
    if two_processes.directory.name == "zero3":
        verified = json.loads((two_processes.directory / "adapter" / "verified.json").read_text())
        assert verified.keys() == {"adapter", "merged"}


@pytest.mark.parametrize("engine", ["fsdp2", pytest.param("zero3", marks=needs_deepspeed)])
def test_a_loss_that_is_not_finite_keeps_the_epoch_before_it(engine, arguments, tmp_path):
    """In one process of two; the adapter of the first epoch is measured and exported."""
    mine = arguments(tmp_path / "run", **{"train.micro_batch_size": 6, "export.verify": "true"})
    result = run([sys.executable, str(ON_CPU), engine, "2", "--", *mine], GAPCLOSE_SPOIL="1 30")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "stopped by the guard loss: the loss is nan at step" in result.stdout
    assert [r["stage"] for r in read_records(tmp_path / "run")] == ["base/val", "base/test", "epoch-1/val", "adapted/test"]
    ours, kept = (load_file(tmp_path / "run" / d / "adapter_model.safetensors") for d in ("adapter", "checkpoints/epoch-1"))
    assert ours.keys() == kept.keys() and all(torch.equal(ours[k], kept[k]) for k in ours)


@pytest.mark.parametrize("engine", ENGINES)
def test_accelerate_launch(engine, arguments, closed_run, digits_directory, tmp_path):
    """By the launch files themselves."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "launch" / f"{engine}.yaml")]
    command = [*launcher, "--num_processes", "2", "--main_process_port", "0", str(ON_CPU)]
    result = run([*command, *arguments(tmp_path / "run", **{"train.micro_batch_size": 6, "data.path": str(digits_directory)})])
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"running on 2 processes ({engine}, cpu" in result.stdout
    ours, theirs = (load_file(d / "adapter" / "adapter_model.safetensors") for d in (tmp_path / "run", closed_run))
    assert max(float((ours[k] - theirs[k]).abs().max()) for k in theirs) < 1e-4
