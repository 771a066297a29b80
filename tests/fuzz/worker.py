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
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.fuzz.check_media import check_media
from tests.fuzz.check_texts import check_configuration, check_set
from tests.fuzz.inputs import Input, Inputs, write_input

MOST_BYTES = 2 << 30
"""of memory that one input may take beyond what the worker had"""
MOST_ADDRESSES = 12 << 30
"""of address space beyond that of the imported packages; it protects the machine, while MOST_BYTES is what is checked"""
MOST_CPU = 10.0
"""seconds of processor time, of all threads, for one input"""
MOST_WALL = 60.0
"""seconds of the clock, for what waits without working"""
PAGE = resource.getpagesize()
VARYING = re.compile(r"/dev/shm/\S*|/tmp/\S*|0x[0-9a-f]+|\d+|'[^']*'|\"[^\"]*\"|b'.*")
"""what differs between two messages of one kind"""


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


def run_one(given: Input, directory: Path) -> bool:
    """Whether the input is read; False where it is refused. Raises: whatever escapes the loaders."""
    if given.role in ("set", "films"):
        return check_set(directory, decode=given.role == "set")
    if given.role == "configuration":
        return check_configuration(directory / given.name)
    return check_media(directory, given.role, given.name)


def work(pipe: Connection, shared: Any, directory: Path, inputs: Inputs, seed: int) -> None:
    """Serve numbers from ``pipe`` until it closes.

    Args:
        shared: number of the input at hand, processor seconds and resident bytes at its beginning, for whoever watches.
    """
    directory.mkdir()
    log = (directory / "log").open("w+")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    faulthandler.enable(log)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE + MOST_ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            return
        given = inputs(seed, number)
        shared[:] = [number, time.process_time(), resident(os.getpid())]
        pipe.send(_outcome(given, number, directory / "input"))
        log.seek(0)
        log.truncate()


def _outcome(given: Input, number: int, directory: Path) -> Outcome:
    directory.mkdir()
    write_input(given, directory)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, begun, wall, read, finding = resident(os.getpid()), time.process_time(), time.monotonic(), False, None
    try:
        read = run_one(given, directory)
    except (Exception, SystemExit) as error:
        finding = Finding(number=number, kind=given.kind, what=type(error).__name__, message=shown(error), place=place_of(error))
    seconds, taken = time.process_time() - begun, _peak() - before
    if finding is None and taken > MOST_BYTES:
        finding = Finding(number=number, kind=given.kind, what="memory", message=f"{taken / 2**30:.1f} GiB", place="")
    if finding is None and (seconds > MOST_CPU or time.monotonic() - wall > MOST_WALL):
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


if sys.platform != "linux":
    raise ImportError("the fuzzer reads /proc, which only Linux has")
