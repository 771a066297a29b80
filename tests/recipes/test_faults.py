"""A full disk, a process that is gone, a loss that is not finite, a lock that is held: a run says it in a line, and ends or goes on."""

import ctypes
import errno
import io
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from test_kill import assert_same_end, finish, observing, saved, unreadable

from gapclose.core import distributed
from gapclose.core.files import WriteError, new_folder, remove_leftovers, write_bytes, write_text, writing
from gapclose.core.tensor_files import write_tensors
from gapclose.evaluation.run_records import read_records, summarise
from gapclose.pipeline import memory_estimate as estimate
from gapclose.pipeline import run_dir
from gapclose.pipeline.cli import main

ROOT = Path(__file__).parent.parent.parent
PLANTED = Path(__file__).parent / "nan_loss.py"
EPOCH = 6  # optimiser steps of an epoch, of a micro-batch a process
LIMIT = 4096  # bytes that a file may hold where the disk is said to be full


# -- a full disk --------------------------------------------------------------------------------------------------------------


def no_room() -> None:
    """Let no file of this process grow beyond LIMIT, by the kernel's own word: EFBIG, where a full disk says ENOSPC."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextmanager
def full_disk() -> Iterator[None]:
    """No longer than a write: the test runner's own output may be a file that is larger already."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    no_room()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fill_folder(path: Path) -> None:
    with new_folder(path) as place:
        (place / "small").write_text("x")
        write_bytes(place / "large", bytes(10_000))


def save_by_torch(path: Path) -> None:
    with writing(path):
        try:
            torch.save({"a": torch.zeros(10_000)}, path)
        finally:
            path.unlink()


@pytest.mark.parametrize(
    ("write", "needed"),
    [
        (lambda path: write_text(path, "x" * 10_000), "9.8 KiB"),
        (lambda path: write_bytes(path, bytes(10_000)), "9.8 KiB"),
        (lambda path: write_tensors(path, {"a": torch.zeros(10_000)}), "39.1 KiB"),
        (save_by_torch, None),
        (fill_folder, None),
    ],
    ids=["text", "bytes", "safetensors", "torch", "folder"],
)
def test_a_file_that_finds_no_room_is_named_and_leaves_nothing(tmp_path, write, needed):
    """And what lay in its place still does."""
    with pytest.raises(WriteError) as caught, full_disk():
        write(tmp_path / "file")
    assert Path(caught.value.filename).is_relative_to(tmp_path / "file") or ".file.tmp" in caught.value.filename
    assert caught.value.strerror and re.search(r"\(\d.* free there", caught.value.strerror)
    assert needed is None or f", {needed} needed)" in caught.value.strerror
    assert list(tmp_path.iterdir()) == []
    write_text(tmp_path / "old", "whole")
    with pytest.raises(WriteError), full_disk():
        write_text(tmp_path / "old", "x" * 10_000)
    assert (tmp_path / "old").read_text() == "whole"


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="^other$"), writing(tmp_path):
        raise RuntimeError("other")
    with pytest.raises(FileNotFoundError), writing(tmp_path):
        (tmp_path / "nowhere").read_text()
    stale = OSError(errno.ESTALE, "Stale file handle", "/data/clips/17.wav")  # of what is read meanwhile
    with pytest.raises(OSError, match="17.wav") as caught, writing(tmp_path / "checkpoints"):
        raise stale
    assert caught.value is stale


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    """Files and folders alike, wherever they lie."""
    (tmp_path / "a" / ".merged.tmp").mkdir(parents=True)
    for name in ("a/.merged.tmp/x", "a/.shard.safetensors.12-34.tmp", "a/shard.safetensors", ".lock"):
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [".lock", "shard.safetensors"]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (WriteError(errno.ENOSPC, "No space left on device (1.0 KiB free there)", "runs/x"), "runs/x cannot be written: No space left"),
        (WriteError(errno.EROFS, "Read-only file system", "runs/x"), "runs/x cannot be written: Read-only file system; fix that"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), "runs/x: Permission denied; fix that"),
    ],
)
def test_what_befell_a_run_is_said_in_a_line(monkeypatch, capsys, error, says):
    def fails(arguments) -> None:
        raise error

    monkeypatch.setattr("gapclose.pipeline.cli.report", fails)
    assert main(["report"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {says}") and told.endswith("start the same command again: it goes on from what is there\n")
    assert told.count("\n") == 1


def test_a_disk_that_cannot_hold_the_observations_is_told_before_anything_is_written(monkeypatch, tiny_config, tmp_path, capsys):
    monkeypatch.setattr(estimate, "free_bytes", lambda path: 10_000)
    assert main(["close", "--config", str(tiny_config), "--run_dir", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert re.search(r"error: \S+/run: 9.8 KiB are free there, and this run still writes \S+ [KM]iB of observations; make room", told)
    assert not (tmp_path / "run").exists()


def test_a_disk_that_cannot_hold_the_exports_is_told_before_they_are_written(monkeypatch, tiny_run, tiny_config, tmp_path, capsys):
    shutil.copytree(tiny_run, tmp_path / "run")
    monkeypatch.setattr(estimate, "free_bytes", lambda path: 10_000)
    command = ["export", "--config", str(tiny_config), "--run_dir", str(tmp_path / "run"), "--export.merged", "true"]
    assert main(command) == 2
    assert re.search(
        r"error: \S+/run: 9.8 KiB are free there, and the models that are exported take \S+ [KM]iB; make room", capsys.readouterr().err
    )
    assert not (tmp_path / "run" / "merged").exists()


def without_room_at(at: str) -> None:
    """Have the disk of this process full from a call on: ``module:name:number``."""
    module, name, number = at.split(":")
    owner, _, name = name.rpartition(".")
    place = getattr(import_module(module), owner) if owner else import_module(module)
    true, calls = getattr(place, name), []

    def counted(*rest, **more):
        calls.append(name)
        if len(calls) == int(number):
            no_room()
        return true(*rest, **more)

    setattr(place, name, counted)


def close(command: list[str], log: Path, at: str | None = None) -> int:
    """Run a command of ``close_command`` in a forked process, which spares it the imports; returns its exit status."""

    def child() -> None:
        sys.stdout = sys.stderr = io.TextIOWrapper(io.BytesIO(), write_through=True)  # the log may be larger than a file may then become
        if at:
            without_room_at(at)
        try:
            status = main(["close", *command[2:]])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            log.write_bytes(sys.stdout.buffer.getvalue())  # type: ignore[attr-defined]
        os._exit(status)

    log.write_text("")
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


FULL = {
    "gapclose.observe.extract:write_shard:5": "observations/base-fit/shard-00004.safetensors",
    "gapclose.pipeline.context:draw_epochs:1": "figures/epochs.png",
    "gapclose.training.trainer:save_adapter:2": "checkpoints",
    "transformers.trainer:Trainer._save_optimizer_and_scheduler:2": "checkpoints",
    "gapclose.pipeline.align_stage:save_adapter:1": "checkpoints",
    "gapclose.pipeline.context:draw_epochs:2": "figures/epochs.png",
    "gapclose.pipeline.align_stage:export_run:1": "adapter",
    "gapclose.pipeline.align_stage:write_page:1": "report.html",
}
"""where the disk fills up, in the order of a run -> what can then not be written"""


def fill_up(at: str, command: list[str], run: Path, log: Path) -> None:
    """Start the command on a disk that fills up, and look at what it says and leaves."""
    status = close(command, log, at)
    lines = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert status == 2 and "Traceback" not in log.read_text(), log.read_text()
    assert len(lines) == 1 and re.match(rf"error: {run / FULL[at]} cannot be written: .* free there", lines[0]), lines
    assert not [p for p in run.rglob("*") if p.name.endswith(".tmp")] and not (bad := unreadable(run)), bad
    assert all((p / "complete.json").is_file() for p in run.glob("checkpoints/checkpoint-*"))


@pytest.mark.slow
def test_a_run_whose_disk_fills_up_again_and_again_ends_where_another_does(close_command, closed_run, tmp_path, capsys):
    """While observing, in a checkpoint, while exporting; every start is the same command."""
    run, log = tmp_path / "run", tmp_path / "log"
    command = [*close_command(run), "--train.save_steps", "2"]
    for at in (
        "gapclose.observe.extract:write_shard:5",
        "transformers.trainer:Trainer._save_optimizer_and_scheduler:2",
        "gapclose.pipeline.align_stage:export_run:1",
    ):
        fill_up(at, command, run, log)
    (run / "observations" / "base-test" / ".shard-00000.safetensors.1-2.tmp").write_bytes(bytes(100))  # as a kill would leave it
    assert close(command, log) == 0, log.read_text()
    assert not list(run.rglob(".*.tmp"))
    assert_same_end(run, closed_run, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("at", FULL)
def test_a_run_whose_disk_fills_up_ends_where_another_does(close_command, closed_run, tmp_path, capsys, at):
    run, log = tmp_path / "run", tmp_path / "log"
    command = [*close_command(run), "--train.save_steps", "2"]
    fill_up(at, command, run, log)
    assert close(command, log) == 0, log.read_text()
    assert_same_end(run, closed_run, capsys)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[int], Path]]:
    """``(kib)`` -> a directory on a disk of that size, or of another size with what it holds; skips where nothing may be mounted."""
    place, libc = tmp_path / "disk", ctypes.CDLL(None, use_errno=True)
    place.mkdir()
    remount = 32

    def sized(kib: int) -> Path:
        again = remount if place.is_mount() else 0
        if libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", ctypes.c_ulong(again), f"size={kib}k".encode()):
            pytest.skip(f"no small disk can be mounted here: {os.strerror(ctypes.get_errno())}")
        return place

    yield sized
    libc.umount2(os.fsencode(place), 2)


@pytest.mark.slow
@pytest.mark.parametrize("kib", [1000, 1700, 2900, 3200])
def test_on_a_small_disk_it_ends_where_another_does_once_there_is_room(close_command, closed_run, tmp_path, capsys, small_disk, kib):
    run, log = small_disk(kib) / "run", tmp_path / "log"
    command = [*close_command(run), "--train.save_steps", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    assert len(errors) == 1 and "No space left on device" in errors[0] and "make room and start the same command again" in errors[0]
    assert not [p for p in run.rglob("*") if p.name.endswith(".tmp")] and not (bad := unreadable(run)), bad
    small_disk(20_000)
    finish(command, log)
    assert_same_end(run, closed_run, capsys)


# -- one process of two -------------------------------------------------------------------------------------------------------


def on_two(command: Callable[..., list[str]], run: Path, *more: str) -> list[str]:
    """The command on two CPU processes."""
    file = str(ROOT / "launch" / "ddp.yaml")
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        file,
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    ]
    return [*command(run, *launcher), *more]


@pytest.fixture
def _on_cpu(monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def two_processes(close_command, tmp_path_factory) -> Path:
    """The directory of an uninterrupted run on two CPU processes."""
    directory = tmp_path_factory.mktemp("runs") / "two"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        finish(on_two(close_command, directory), directory.parent / "log")
    return directory


def kill_one(command: list[str], run: Path, log: Path, rank: int, ready: Callable[[], bool]) -> bool:
    """Start the command on two processes, kill one of them once it is ``ready``, and look at what that leaves; False where it ended before."""
    with log.open("w") as handle:
        launcher = subprocess.Popen(command, stdout=handle, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        while not ready():
            if launcher.poll() is not None:
                assert launcher.returncode == 0, log.read_text()
                return False
            time.sleep(0.005)
        children = psutil.Process(launcher.pid).children(recursive=True)
        chosen = [p for p in children if p.environ().get("RANK") == str(rank)]
        if not chosen:  # the launcher is still starting, or already ending
            return False
        chosen[0].kill()
        assert launcher.wait(timeout=60) != 0
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    assert not psutil.wait_procs(children, timeout=10)[1], "orphans"
    # gloo's word comes before the launcher's SIGTERM or not at all; then it is put into one line
    assert "by peer" not in log.read_text() and not (bad := unreadable(run)), bad
    assert "Signal 9 (SIGKILL) received" in log.read_text()  # the launcher's word
    return True


@pytest.mark.slow
@pytest.mark.usefixtures("_on_cpu")
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "stage", [observing("base-fit"), saved(2), observing("epoch-1-val"), observing("adapted-test")], ids=lambda s: s.name
)
def test_where_one_process_is_killed_the_other_ends_and_the_same_command_goes_on(
    close_command, two_processes, tmp_path, capsys, rank, stage
):
    run, log = tmp_path / "run", tmp_path / "log"
    command = on_two(close_command, run, "--train.save_steps", "1")
    assert kill_one(command, run, log, rank, lambda: stage.here(run, log.read_text())), f"ended before {stage.name}"
    finish(command, log)
    assert_same_end(run, two_processes, capsys)


@pytest.mark.slow
@pytest.mark.usefixtures("_on_cpu")
def test_where_processes_are_killed_at_random_the_same_command_goes_on(close_command, two_processes, tmp_path, capsys):
    """Five kills, of one process of two, at moments that nobody chose."""
    draw, run, log = random.Random(0), tmp_path / "run", tmp_path / "log"
    command = on_two(close_command, run, "--train.save_steps", "1")
    killed = 0
    for _ in range(5):
        moment = time.monotonic() + draw.uniform(8, 20)
        killed += kill_one(command, run, log, draw.randrange(2), lambda moment=moment: time.monotonic() > moment)
    assert killed >= 2  # else the moments lie beside the run
    finish(command, log)
    assert_same_end(run, two_processes, capsys)


@pytest.mark.parametrize(
    "words",
    [
        "[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:57742: Connection reset by peer.",
        "NCCL error: remote process exited or there was a network error",
    ],
)
def test_a_collective_that_fails_for_another_process_is_told_in_a_line(monkeypatch, capsys, words):
    """In the words of gloo and of NCCL; other errors stay tracebacks."""

    def fails(arguments) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr("gapclose.pipeline.cli.report", fails)
    with pytest.raises(RuntimeError):  # there is no other process
        main(["report"])
    monkeypatch.setattr(distributed.distributed, "is_initialized", lambda: True)
    assert main(["report"]) == 2
    assert capsys.readouterr().err.startswith("error: another process of this run ended, for a reason that it or the launcher tells; start")
    words = "mat1 and mat2 shapes cannot be multiplied"
    with pytest.raises(RuntimeError, match="mat1"):
        main(["report"])
    words = "HTTPSConnectionPool: Connection reset by peer"  # of a server
    with pytest.raises(RuntimeError, match="HTTPS"):
        main(["report"])


def test_who_stops_a_run_is_told_how_it_goes_on(monkeypatch, capsys):
    def stopped(arguments) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gapclose.pipeline.cli.report", stopped)
    assert main(["report"]) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on from what is there\n"


# -- a loss that is not finite ------------------------------------------------------------------------------------------------


def spoilt(command: list[str], rank: int, calls: int) -> list[str]:
    """The command, in which the loss of one process is not a number after so many calls."""
    place = next(n for n, word in enumerate(command) if word.endswith("close.py"))
    return [*command[:place], str(PLANTED), str(rank), str(calls), *command[place + 1 :]]


@pytest.mark.slow
@pytest.mark.usefixtures("_on_cpu")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_loss_that_is_not_finite_in_one_process_ends_both_with_a_line(close_command, two_processes, tmp_path, capsys, rank):
    """Before there is anything to keep; no checkpoint holds what came of it, and the same command goes on from those before it."""
    run, log = tmp_path / "run", tmp_path / "log"
    command = on_two(close_command, run, "--train.save_steps", "1")
    with log.open("w") as handle:
        result = subprocess.run(spoilt(command, rank, 3), stdout=handle, stderr=subprocess.STDOUT, timeout=300, check=False)
    assert result.returncode != 0
    lines = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert len(lines) in (1, 2) and len(set(lines)) == 1 and lines[0].startswith("error: the loss is nan at step "), log.read_text()
    found = list(run.glob("checkpoints/checkpoint-*"))
    assert found and all((p / "complete.json").is_file() for p in found)
    assert all(v.isfinite().all() for p in found for v in load_file(p / "adapter_model.safetensors").values())
    finish(command, log)
    assert_same_end(run, two_processes, capsys)


@pytest.mark.slow
@pytest.mark.usefixtures("_on_cpu")
def test_a_loss_that_is_not_finite_in_one_process_keeps_the_epoch_before_it(close_command, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    printed = finish(spoilt(on_two(close_command, run), 1, EPOCH + 1), log)
    assert "stopped by the guard loss: the loss is nan at step" in printed
    assert [r["stage"] for r in read_records(run)] == ["base/val", "base/test", "epoch-1/val", "adapted/test"]
    assert summarise(run)["epoch"] == 1


# -- a lock that is held ------------------------------------------------------------------------------------------------------


def test_who_holds_a_run_directory_is_named_and_a_lost_node_is_waited_for(monkeypatch, tmp_path, capsys):
    """A holder on this machine is refused at once; of another machine the lock may lapse."""
    code = "import sys, pathlib; from gapclose.pipeline.run_dir import lock_run_dir; lock = lock_run_dir(pathlib.Path(sys.argv[1]))"
    first = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print('in', flush=True); sys.stdin.read()", str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert first.stdout is not None and first.stdout.readline() == "in\n"
    with pytest.raises(ValueError, match=rf"another process works in this run directory \(process {first.pid} on \S+\)"):
        run_dir.lock_run_dir(tmp_path)
    assert "waiting" not in capsys.readouterr().out
    (tmp_path / ".holder").write_text("process 7 on another-node")
    monkeypatch.setattr(run_dir, "LAPSE", 0.2)
    with pytest.raises(ValueError, match="process 7 on another-node"):
        run_dir.lock_run_dir(tmp_path)
    assert "locked (process 7 on another-node); waiting" in capsys.readouterr().out
    monkeypatch.setattr(run_dir, "LAPSE", 60)
    monkeypatch.setattr(run_dir.logger, "info", lambda line: first.kill())  # the file server's part
    lock = run_dir.lock_run_dir(tmp_path)
    assert lock is not None and lock.is_locked
    assert (tmp_path / ".holder").read_text() == f"process {os.getpid()} on {os.uname().nodename}"
    lock.release()
    first.wait()


def test_where_there_are_no_locks_no_marker_is_left_in_their_place(monkeypatch, tmp_path, capsys):
    """It would outlive a process that was killed; on Lustre mounted without locks flock is not implemented."""
    import fcntl

    def flock(*_) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert run_dir.lock_run_dir(tmp_path) is None
    assert "cannot be locked" in capsys.readouterr().out
    assert run_dir.lock_run_dir(tmp_path) is None
