"""Killed anywhere and started again, a run ends where an uninterrupted one does: same figures, same adapter, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from gapclose.pipeline.cli import main

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 240  # seconds for one stage to come


@dataclass(frozen=True)
class Stage:
    """A moment of a run, told from its directory and what it printed; ``over`` tells that the moment was missed."""

    name: str
    here: Callable[[Path, str], bool]
    over: Callable[[Path, str], bool]


def observing(stage: str) -> Stage:
    """Some shards of an observation exist, its manifest does not."""

    def here(run: Path, printed: str) -> bool:
        return any((run / "observations" / stage).glob("shard-*.safetensors"))

    return Stage(f"observing {stage}", here, lambda run, printed: (run / "observations" / stage / "manifest.json").exists())


def saved(step: int) -> Stage:
    """In the middle of the first epoch, just after a checkpoint."""
    path = f"checkpoints/checkpoint-{step}/complete.json"
    return Stage(f"after checkpoint {step}", lambda run, printed: (run / path).exists(), lambda run, printed: "epoch-1/val" in printed)


def trained(step: int) -> Stage:
    """In the middle of the first epoch, with no checkpoint to go back to."""
    return Stage(f"after step {step}", lambda run, printed: f"step {step}/" in printed, lambda run, printed: "epoch-1/val" in printed)


def start(command: list[str], log: Path) -> subprocess.Popen:
    on_cpu = os.environ | {"CUDA_VISIBLE_DEVICES": ""}  # as the uninterrupted run
    with log.open("w") as handle:
        return subprocess.Popen(command, stdout=handle, stderr=subprocess.STDOUT, start_new_session=True, env=on_cpu)


def kill_at(stage: Stage, command: list[str], run: Path, log: Path) -> None:
    """Start the command and kill its whole process group the moment the stage is there."""
    process = start(command, log)
    try:
        until = time.monotonic() + PATIENCE
        while not stage.here(run, log.read_text()):
            assert process.poll() is None, f"ended before {stage.name}:\n{log.read_text()}"
            assert time.monotonic() < until, f"{stage.name} never came:\n{log.read_text()}"
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not stage.over(run, log.read_text()), f"killed too late for {stage.name}"


def finish(command: list[str], log: Path) -> str:
    process = start(command, log)
    assert process.wait() == 0, log.read_text()
    return log.read_text()


def report(run: Path, capsys) -> dict:
    capsys.readouterr()
    assert main(["report", str(run), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def assert_same_end(run: Path, uninterrupted: Path, capsys) -> None:
    assert report(run, capsys) == report(uninterrupted, capsys)
    ours, theirs = (load_file(d / "adapter" / "adapter_model.safetensors") for d in (run, uninterrupted))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    lines = [sorted((d / "gap.jsonl").read_text().splitlines()) for d in (run, uninterrupted)]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_killed_three_times_it_ends_where_an_uninterrupted_run_does(close_command, closed_run, tmp_path, capsys):
    """While observing, while training, and while measuring the first epoch; every start is the same command."""
    run, log = tmp_path / "run", tmp_path / "log"
    command = [*close_command(run), "--train.save_steps", "1"]
    kill_at(observing("base-fit"), command, run, log)
    first = run / "observations" / "base-fit" / "shard-00000.safetensors"
    written = first.stat().st_mtime_ns
    kill_at(saved(2), command, run, log)
    assert first.stat().st_mtime_ns == written, "a finished shard was observed again"
    kill_at(observing("epoch-1-val"), command, run, log)
    assert "going on from checkpoint-" in log.read_text()
    printed = finish(command, log)
    assert "going on from checkpoint-5" in printed, "the measurement belongs to the checkpoint before the epoch's end"
    assert_same_end(run, closed_run, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("save_steps", [0, 2])
@pytest.mark.parametrize(
    "stage",
    [
        observing("base-fit"), observing("base-test"), observing("base-retain"), trained(2), trained(3),
        observing("epoch-1-val"), observing("epoch-2-val"), observing("adapted-test"),
    ],
    ids=lambda s: s.name,
)  # fmt: skip
def test_killed_once_it_ends_where_an_uninterrupted_run_does(close_command, closed_run, tmp_path, capsys, stage, save_steps):
    run, log = tmp_path / "run", tmp_path / "log"
    command = [*close_command(run), "--train.save_steps", str(save_steps)]
    kill_at(stage, command, run, log)
    finish(command, log)
    assert_same_end(run, closed_run, capsys)


def unreadable(run: Path) -> list[str]:
    """Files below a run that cannot be read. What was being written has a hidden name; a checkpoint counts once it says it is complete."""
    found = []
    for path in (p for p in run.rglob("*") if p.is_file()):
        inside = path.relative_to(run).parts
        open_checkpoint = inside[0] == "checkpoints" and not (run.joinpath(*inside[:2]) / "complete.json").exists()
        if any(part.startswith(".") for part in inside) or (open_checkpoint and inside[1].startswith("checkpoint-")):
            continue
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    _ = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 (a safetensors file is no dict)
            elif path.suffix in (".json", ".jsonl"):
                text = path.read_text()
                _ = [json.loads(part) for part in (text.splitlines() if path.suffix == ".jsonl" else [text])]
        except Exception as error:
            found.append(f"{path}: {error}")
    return found


def kill_ten_times(
    command_for: Callable[[Path], list[str]], uninterrupted: Path, seconds: float, seed: int, tmp_path: Path, capsys
) -> None:
    """Ten kills, each at a moment that nobody chose, of runs that take ``seconds``; a start that ends before its moment counts for none, and
    another run begins. Every run ends where the uninterrupted one does, and no file is ever unreadable."""
    draw, kills, runs = random.Random(seed), 0, 0
    while kills < 10:
        runs += 1
        run, log = tmp_path / f"run-{runs}", tmp_path / "log"
        command = command_for(run)
        while kills < 10:
            process = start(command, log)
            try:
                process.wait(timeout=draw.uniform(0.1, 0.5) * seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
                assert not (bad := unreadable(run)), bad
            else:
                assert process.returncode == 0, log.read_text()
                break
        finish(command, log)
        assert_same_end(run, uninterrupted, capsys)
        assert not (bad := unreadable(run)), bad


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_ten_times_at_random_it_ends_where_an_uninterrupted_run_does(close_command, closed_run, tmp_path, capsys, seed):
    begun = time.monotonic()
    finish(close_command(tmp_path / "whole"), tmp_path / "log")
    seconds = time.monotonic() - begun
    kill_ten_times(lambda run: [*close_command(run), "--train.save_steps", "1"], closed_run, seconds, seed, tmp_path, capsys)


def digits_command(run: Path) -> list[str]:
    """The demo's own command."""
    return [sys.executable, str(ROOT / "recipes" / "close.py"), "--config", str(ROOT / "configs" / "digits.yaml"), "--run_dir", str(run)]


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory) -> tuple[Path, float]:
    """A whole, uninterrupted digits run, and its seconds."""
    directory, begun = tmp_path_factory.mktemp("digits-run"), time.monotonic()
    finish(digits_command(directory / "run"), directory / "log")
    return directory / "run", time.monotonic() - begun


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_digits_run_killed_ten_times_at_random_ends_where_an_uninterrupted_one_does(digits_run, tmp_path, capsys, seed):
    kill_ten_times(lambda run: [*digits_command(run), "--train.save_steps", "10"], *digits_run, seed, tmp_path, capsys)
