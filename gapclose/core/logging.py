"""Logging: the logger ``gapclose`` and its children print nothing until a handler is installed.

As a library gapclose leaves that to the application. The command line and the recipes call
:func:`configure_logging`.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
QUIET_SECONDS = 2.0  # work shorter than this shows nothing
LINE_SECONDS = 10.0  # between plain lines
LEVELS = ("debug", "info", "warning", "error")
"""values of the key ``log_level``"""


def is_main() -> bool:
    """Whether this process is rank 0 of a launch, or the only process."""
    return int(os.environ.get("RANK", "0")) == 0


def _from_main_or_error(record: logging.LogRecord) -> bool:
    """A filter: below errors only rank 0 logs."""
    return record.levelno >= logging.ERROR or is_main()


def get_logger(name: str) -> logging.Logger:
    """The logger of a module, which drops what is no error on every process but rank 0.

    Args:
        name: ``__name__`` of the module. Outside the package the logger becomes a child of ``gapclose``, so that a recipe logs as the package does.
    """
    logger = logging.getLogger(name if name.partition(".")[0] == "gapclose" else f"gapclose.{name}")
    logger.addFilter(_from_main_or_error)  # filters of a parent see no records of its children
    return logger


logger = get_logger("gapclose")


def spell_out() -> None:
    """Make standard output and error escape characters outside their encoding (``\\u8996``).

    By default such a character ends the command.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


class PlainFormatter(logging.Formatter):
    """The message alone; a warning or an error has its level before it, after the indentation."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = record.message.lstrip(" ")
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return record.message[: len(record.message) - len(text)] + level + text


class StdoutHandler(logging.Handler):
    """Prints every record as one line on what is standard output at that moment. A closed pipe raises as for every ``print``."""

    def emit(self, record: logging.LogRecord) -> None:
        spell_out()
        print(f"{self.format(record)}\n", end="", flush=True)  # in one call: processes share the output


def configure_logging(level: str) -> None:
    """Print what gapclose logs at ``level`` and above, as plain lines on standard output. A second call changes the level.

    Args:
        level: one of :data:`LEVELS`.

    Raises:
        ValueError: for another level.
    """
    if level not in LEVELS:
        raise ValueError(f"log_level is {level!r}; choose one of {list(LEVELS)}")
    logger.setLevel(level.upper())
    if not any(isinstance(handler, StdoutHandler) for handler in logger.handlers):
        handler = StdoutHandler()
        handler.setFormatter(PlainFormatter())
        logger.addHandler(handler)


def show_warnings() -> None:
    """Print warnings on standard error, unless the application has installed a handler for them.

    For parts of the library whose warnings a user must see without any set-up.
    """
    if logging.root.handlers or any(not isinstance(handler, logging.NullHandler) for handler in logger.handlers):
        return
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(PlainFormatter())
    logger.addHandler(handler)


def shows_bars() -> bool:
    """Whether progress bars are drawn: on a terminal, from rank 0, where the logger is enabled for INFO."""
    return is_main() and sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)


def progress(work: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yield from ``work`` while showing how far it is: a bar on a terminal, log records elsewhere."""
    if shows_bars():
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
            logger.info(f"{label}: {done}/{total}, about {remaining:.0f} s left")
            last = now
    if time.monotonic() - start > QUIET_SECONDS:
        logger.info(f"{label}: {done}/{total} in {time.monotonic() - start:.1f} s")
