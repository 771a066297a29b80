"""A process that takes numbers, makes the inputs, runs them through the loaders and says what came out."""

from __future__ import annotations

import faulthandler
import os
import re
import resource
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.fuzz.inputs import Input, Inputs, write_input

if sys.platform != "linux":
    raise ImportError("the fuzzer reads /proc, which only Linux has")

Check = Callable[[Input, Path], bool]
"""given an input and the directory with its files, whether it is read; False where it is refused, an exception where neither"""
ADDRESSES = 12 << 30
"""bytes of address space that a worker may have beyond that of the imported packages; it protects the machine, while Limits are what is checked"""
PAGE = resource.getpagesize()
VARYING = re.compile(r"/dev/shm/\S*|/tmp/\S*|0x[0-9a-f]+|\d+|'[^']*'|\"[^\"]*\"|b'.*")
"""what differs between two messages of one kind"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one input may take."""

    memory: int = 2 << 30
    """bytes, beyond what the worker had"""
    processor: float = 10.0
    """seconds of processor time, of all threads"""
    clock: float = 120.0
    """seconds of the clock, for what waits without working"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """An input that was neither read nor refused as it must be."""

    number: int
    kind: str
    what: str
    """type of the exception, or how the process ended"""
    message: str
    place: str
    """file, line and function: the innermost of the project, and the innermost of all"""

    @property
    def group(self) -> tuple[str, str, str]:
        """Equal for findings that have one cause, as far as can be told."""
        return self.what, VARYING.sub("_", self.message)[:100], self.place


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of one input."""

    number: int
    kind: str
    read: bool
    seconds: float
    peak_bytes: int
    finding: Finding | None = None


def work(pipe: Connection, shared: Any, directory: Path, inputs: Inputs, seed: int, check: Check, limits: Limits) -> None:
    """Serve numbers from ``pipe`` until it closes.

    Args:
        shared: number of the input at hand, processor seconds and resident bytes at its beginning, for whoever watches.
    """
    directory.mkdir()
    log = (directory / "log").open("w+", errors="replace")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    faulthandler.enable(log)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE + ADDRESSES
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (addresses if most == resource.RLIM_INFINITY else min(addresses, most), most))
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            return
        given = inputs(seed, number)
        shared[:] = [number, time.process_time(), resident(os.getpid())]
        outcome = _outcome(given, number, directory / "input", check, limits)
        log.flush()
        log.seek(0)
        if "Traceback" in (said := log.read()) and outcome.finding is None:
            finding = Finding(number=number, kind=given.kind, what="printed", message=ascii(said[-300:]), place="")
            outcome = replace(outcome, finding=finding)
        log.seek(0)
        log.truncate()
        pipe.send(outcome)


def _outcome(given: Input, number: int, directory: Path, check: Check, limits: Limits) -> Outcome:
    directory.mkdir()
    write_input(given, directory)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, begun, wall, read, finding = resident(os.getpid()), time.process_time(), time.monotonic(), False, None
    try:
        read = check(given, directory)
    except (Exception, SystemExit) as error:
        finding = Finding(number=number, kind=given.kind, what=type(error).__name__, message=shown(error), place=place_of(error))
    seconds, taken = time.process_time() - begun, _peak() - before
    if finding is None and taken > limits.memory:
        finding = Finding(number=number, kind=given.kind, what="memory", message=f"{taken / 2**30:.1f} GiB", place="")
    if finding is None and (seconds > limits.processor or time.monotonic() - wall > limits.clock):
        finding = Finding(number=number, kind=given.kind, what="time", message=f"{seconds:.1f} s of processor time", place="")
    shutil.rmtree(directory)
    return Outcome(number=number, kind=given.kind, read=read, seconds=seconds, peak_bytes=taken, finding=finding)


def shown(error: BaseException) -> str:
    """What an exception says, in one line that can be written anywhere."""
    return ascii(str(error)[:400])[1:-1]


def place_of(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    cause = traceback.extract_tb(error.__cause__.__traceback__) if error.__cause__ else []
    own = [f for f in [*frames, *cause] if "/gapclose/" in f.filename]
    named = [*own[-1:], *(cause or frames)[-1:]]
    return " < ".join(dict.fromkeys(f"{'/'.join(Path(f.filename).parts[-2:])}:{f.lineno} {f.name}" for f in named))


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status[status.index("VmHWM:") + 6 :].split(None, 1)[0]) * 1024


def processor_seconds(pid: int) -> float:
    """Processor time of a process, of all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
