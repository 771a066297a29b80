"""What one process of two meets ends both in the same words, whatever kind of error it is; nobody waits at a barrier."""

import errno
import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import PartialState
from torch.multiprocessing.spawn import start_processes

from gapclose.core.distributed import RemoteError, run_on_all_ranks, run_on_main
from gapclose.core.errors import ItemError
from gapclose.core.files import WriteError
from gapclose.pipeline.context import RunContext
from gapclose.pipeline.error_messages import guarded
from gapclose.training.callbacks import EvaluateAfterEpoch
from gapclose.training.resume import whole_checkpoints


def in_two(work: Callable[..., None], *arguments: Any) -> None:
    """Call ``work(rank, *arguments)`` in two processes that know each other; an assertion that fails in one of them fails here."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = start_processes(_child, (port, work, arguments), nprocs=2, join=False, start_method="fork")
    assert context is not None
    try:
        until = time.monotonic() + 60
        while not context.join(timeout=1):  # which also returns once one of them has ended
            assert time.monotonic() < until, "a process waits for the other"
    finally:
        for process in context.processes:
            process.kill()


def _child(rank: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true"
    )
    PartialState._reset_state()
    PartialState(cpu=True)
    work(rank, *arguments)
    torch.distributed.destroy_process_group()


def broken_json() -> None:
    json.loads("{")


def not_text() -> None:
    b"\xff".decode()


def raised(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


FULL = WriteError(errno.ENOSPC, "No space left on device", "runs/x/gap.jsonl")
CASES: list[tuple[Callable[[], None], type[Exception], str]] = [
    (raised(FULL), WriteError, "No space left on device: 'runs/x/gap.jsonl'"),
    (raised(PermissionError(errno.EACCES, "Permission denied", "runs/x")), PermissionError, "Permission denied: 'runs/x'"),
    (raised(OSError("a server said no")), RemoteError, "ended with OSError: a server said no"),
    (raised(ItemError("half of it")), ValueError, "half of it"),
    (broken_json, ValueError, "Expecting property name"),
    (not_text, ValueError, "can't decode byte 0xff"),
    (raised(KeyError("fingerprint")), RemoteError, "ended with KeyError: 'fingerprint'"),
    (raised(RuntimeError("out of memory")), RemoteError, "ended with RuntimeError: out of memory"),
    (raised(FloatingPointError("item 3")), FloatingPointError, "item 3"),
]


def meet_each(rank: int) -> None:
    for failing in (0, 1):
        for fail, kind, words in CASES:
            with pytest.raises(Exception) as met:
                run_on_all_ranks(lambda fail=fail, failing=failing: fail() if rank == failing else None)
            if rank != failing:
                assert isinstance(met.value, kind) and words in str(met.value), met.value
    for fail, kind, words in CASES:
        with pytest.raises(Exception) as met:
            run_on_main(fail)
        if rank:
            assert isinstance(met.value, kind) and words in str(met.value), met.value
    assert run_on_all_ranks(lambda: rank) == [0, 1] and run_on_main(lambda: rank) == 0  # and they are still in step


def test_an_error_of_any_kind_in_one_process_is_met_by_both():
    """JSON and codecs have kinds of ``ValueError`` that words alone do not make; a full disk keeps its number and its file."""
    in_two(meet_each)


def meet_as_runs_do(rank: int, place: str) -> None:
    """As a run's records are written, and its checkpoints saved and marked as whole."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", f"{place}/x")

    run: Any = SimpleNamespace()
    with pytest.raises(OSError, match="No space left on device"):
        RunContext.on_main(run, full)
    trainer = SimpleNamespace(model=torch.nn.Linear(1, 1), _save_checkpoint=full if rank == 1 else lambda *_: None)
    with pytest.raises(WriteError, match="No space left on device"), whole_checkpoints(Path(place), trainer):
        trainer._save_checkpoint(None, None)
    state = SimpleNamespace(global_step=1, epoch=1.0)
    with pytest.raises(NotADirectoryError):  # the main process cannot mark it
        EvaluateAfterEpoch(lambda _: None).on_save(SimpleNamespace(output_dir=str(Path(place) / "file")), state, None)
    assert run_on_all_ranks(lambda: rank) == [0, 1]


def test_what_a_run_cannot_write_ends_both(tmp_path):
    (tmp_path / "file").write_text("")
    in_two(meet_as_runs_do, str(tmp_path))


def end_as_a_command(rank: int, place: str) -> None:
    """What is printed goes to a file of the process."""
    with Path(place, str(rank)).open("w") as file, redirect_stderr(file):
        assert guarded(lambda: run_on_main(raised(FULL))) == 2
        if rank:
            assert guarded(lambda: run_on_main(raised(KeyError("x")))) == 2
        else:
            with pytest.raises(KeyError):  # its traceback is what there is to look at
                guarded(lambda: run_on_main(raised(KeyError("x"))))


def test_each_process_says_it_in_a_line(tmp_path):
    in_two(end_as_a_command, str(tmp_path))
    first, second = ((tmp_path / str(rank)).read_text().splitlines() for rank in (0, 1))
    assert len(first) == 1 and first[0].startswith("error: runs/x/gap.jsonl cannot be written: No space left on device")
    assert second == [first[0], "error: process 0 of this run ended with KeyError: 'x'"]
