"""Progress of long work: a bar on a terminal, plain lines elsewhere; only on the main process."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
QUIET_SECONDS = 2.0  # work shorter than this shows nothing
LINE_SECONDS = 10.0  # between plain lines


def is_main() -> bool:
    """Whether this process may print: rank 0 of a launch, or the only process."""
    return int(os.environ.get("RANK", "0")) == 0


def spell_out() -> None:
    """Make standard output and error escape characters outside their encoding (``\\u8996``).

    By default such a character ends the command.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def say(message: str) -> None:
    """Print one line on the main process."""
    if is_main():
        spell_out()
        print(f"{message}\n", end="", flush=True)  # one call, because processes share the output


def progress(work: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yield from ``work`` and show the progress."""
    if not is_main():
        yield from work
        return
    if sys.stderr.isatty():
        from rich.markup import escape
        from rich.progress import track as rich_track

        yield from rich_track(work, total=total, description=escape(label), transient=True)
        return
    start = last = time.monotonic()
    done = 0
    for done, item in enumerate(work, start=1):
        yield item
        now = time.monotonic()
        if now - last > LINE_SECONDS and done < total:
            remaining = (now - start) / done * (total - done)
            say(f"{label}: {done}/{total}, about {remaining:.0f} s left")
            last = now
    if time.monotonic() - start > QUIET_SECONDS:
        say(f"{label}: {done}/{total} in {time.monotonic() - start:.1f} s")
