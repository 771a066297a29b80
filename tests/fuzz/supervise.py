"""Worker processes, watched: one that dies, hangs or eats memory is a finding about the input that it had, and another one goes on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path

from tests.fuzz.inputs import Inputs
from tests.fuzz.worker import Check, Finding, Limits, Outcome, processor_seconds, resident, work

AHEAD = 8
"""numbers that a worker is given before it answers"""
LIFE = 4_000
"""inputs after which a worker is replaced, so that what one leaves behind in memory does not add up"""
CONTEXT = multiprocessing.get_context("fork")
"""a worker has all packages imported when it begins"""


class _Worker:
    def __init__(self, directory: Path, inputs: Inputs, seed: int, check: Check, limits: Limits) -> None:
        self.limits = limits
        self.pipe, theirs = CONTEXT.Pipe()
        self.shared, self.pending, self.directory, self.done = CONTEXT.RawArray("d", 3), deque[int](), directory, 0
        self.shared[0], self.since = -1, time.monotonic()
        ours = self.pipe

        def serve() -> None:
            ours.close()
            work(theirs, self.shared, directory, inputs, seed, check, limits)

        self.process = CONTEXT.Process(target=serve, daemon=True)
        self.process.start()
        theirs.close()

    def give(self, number: int) -> None:
        self.pending.append(number)
        self.pipe.send(number)

    def excess(self) -> tuple[str, str] | None:
        """What the input at hand takes too much of, and how much."""
        pid = self.process.pid
        number, begun, before = self.shared
        if not self.pending or number != self.pending[0] or pid is None:
            return None
        with suppress(FileNotFoundError, ProcessLookupError, IndexError):  # it has just ended
            if (taken := resident(pid) - before) > self.limits.memory:
                return "memory", f"{taken / 2**30:.1f} GiB, stopped"
            if (used := processor_seconds(pid) - begun) > self.limits.processor:
                return "time", f"{used:.0f} s of processor time, stopped"
            if time.monotonic() - self.since > self.limits.clock:
                return "time", f"{self.limits.clock:.0f} s by the clock, stopped"
        return None

    def end(self) -> None:
        self.pipe.close()
        if self.process.pid and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()

    def last_words(self) -> str:
        """The end of what a process wrote before it died: its Python frames, or what a C library said."""
        with suppress(OSError):
            return " | ".join((self.directory / "log").read_text(errors="replace").split("\n")[:12])[:700]
        return ""


def run_inputs(
    seed: int,
    numbers: Iterable[int],
    check: Check,
    each: Callable[[Outcome], None],
    *,
    inputs: Inputs,
    workers: int = 1,
    limits: Limits | None = None,
) -> None:
    """Run every number through ``check``, in ``workers`` processes; ``each`` is given what came of it, in no order."""
    waiting, count = iter(numbers), 0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None, prefix="fuzz-") as scratch:

        def another() -> _Worker:
            nonlocal count
            count += 1
            return _Worker(Path(scratch) / str(count), inputs, seed, check, limits or Limits())

        def fill(worker: _Worker) -> None:
            while len(worker.pending) < AHEAD and (number := next(waiting, None)) is not None:
                worker.give(number)

        def replaced(worker: _Worker) -> _Worker:
            worker.end()
            successor = another()
            for number in worker.pending:
                successor.give(number)
            return successor

        crew = [another() for _ in range(workers)]
        try:
            for worker in crew:
                fill(worker)
            while any(worker.pending for worker in crew):
                ready = wait([worker.pipe for worker in crew if worker.pending], timeout=0.2)
                for place, worker in enumerate(crew):
                    try:
                        outcome = worker.pipe.recv() if worker.pipe in ready else None
                    except (EOFError, ConnectionResetError):
                        worker.process.join()
                        code = worker.process.exitcode or 0
                        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
                        each(_ended(worker, inputs, seed, how, worker.last_words()))
                        crew[place] = replaced(worker)
                        continue
                    if outcome is not None:
                        assert outcome.number == worker.pending.popleft()
                        worker.since, worker.done = time.monotonic(), worker.done + 1
                        each(outcome)
                        if worker.done < LIFE:
                            fill(worker)
                        elif not worker.pending:
                            crew[place] = replaced(worker)
                            fill(crew[place])
                    elif found := worker.excess():
                        os.kill(worker.process.pid or 0, signal.SIGABRT)  # has faulthandler write where it is
                        time.sleep(0.3)
                        each(_ended(worker, inputs, seed, found[0], f"{found[1]}: {worker.last_words()}"))
                        crew[place] = replaced(worker)
        finally:
            for worker in crew:
                worker.end()


def _ended(worker: _Worker, inputs: Inputs, seed: int, what: str, message: str) -> Outcome:
    number = worker.pending.popleft()
    kind = inputs(seed, number).kind
    finding = Finding(number=number, kind=kind, what=what, message=message, place=_own_frame(message))
    return Outcome(number=number, kind=kind, read=False, seconds=0.0, peak_bytes=0, finding=finding)


def _own_frame(words: str) -> str:
    """The innermost frame of the project in what faulthandler wrote."""
    frames: Sequence[str] = [part.strip() for part in words.split("|")]
    return next((f for f in frames if "/gapclose/" in f), next((f for f in frames if f.startswith("File ")), ""))
