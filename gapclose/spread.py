"""Work that the processes of a launch share out, and what each of them found or met told to all.

All of the W processes must make the same calls in the same order. An error of any kind that one of them meets ends the work of all with the
same words: the others would wait for it. A ``ValueError``, a ``FloatingPointError`` and an ``OSError`` with a number are raised elsewhere as such,
any other error as :class:`MetElsewhere`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from gapclose.files import Unwritten
from gapclose.launch import peer_lost
from gapclose.progress import track

T = TypeVar("T")
R = TypeVar("R")

SAME: tuple[type[Exception], ...] = (ValueError, FloatingPointError)
"""kinds of errors that are made again of their words alone"""
Told = tuple[str, tuple[Any, ...]]
"""the name of a kind and what an error of it is made of"""


class MetElsewhere(RuntimeError):
    """An error that another process of this launch met, and whose kind cannot be raised here; that process shows its traceback."""


def deal(pieces: Sequence[T], work: Callable[[T], R], label: str) -> list[R]:
    """What ``work`` makes of every piece, in the order of the pieces; each process does every W-th of them.

    Raises:
        Exception: in all processes, when it is raised in one.
    """
    state = PartialState()
    rank, processes = state.process_index, state.num_processes
    mine = pieces[rank::processes]
    parts = together(lambda: [work(piece) for piece in track(mine, len(mine), label)])
    return [parts[n % processes][n // processes] for n in range(len(pieces))]


def together(work: Callable[[], T], *, joint: bool = False) -> list[T]:
    """What ``work`` gives in every process, by rank.

    Args:
        joint: the processes also communicate within ``work``. An error in the middle of it then ends its own process at once, and the launcher
            ends the rest: no word can reach processes that wait for something else. Only a ``FloatingPointError`` is told, which such work
            raises after the last communication.

    Raises:
        Exception: in all processes, when it is raised in one.
    """
    found, fault = _tried(work, (FloatingPointError,) if joint else (Exception,))
    told = gather_object([(found, fault and _words(fault))])
    if fault:
        raise fault
    for _, other in told:
        if other:
            raise _again(other)
    return [found for found, _ in told]


def main_alone(work: Callable[[], T]) -> T:
    """What ``work`` gives in the main process, where alone it is done.

    Raises:
        Exception: in all processes, when it is raised in the main one.
    """
    found, fault = _tried(work, (Exception,)) if PartialState().is_main_process else (None, None)
    (found, other) = broadcast_object_list([found, fault and _words(fault)])
    if fault:
        raise fault
    if other:
        raise _again(other)
    return found


def _tried(work: Callable[[], Any], kinds: tuple[type[Exception], ...]) -> tuple[Any, Exception | None]:
    try:
        return work(), None
    except kinds as fault:
        if peer_lost(fault):  # nobody is left to be told
            raise
        return None, fault


def _words(fault: Exception) -> Told:
    """An error, in a form that every process can read."""
    if isinstance(fault, OSError) and fault.errno is not None:
        return ("unwritten" if isinstance(fault, Unwritten) else "system"), (fault.errno, fault.strerror, _name(fault.filename))
    for kind in SAME:
        if isinstance(fault, kind):
            return kind.__name__, (str(fault),)
    return "other", (f"process {PartialState().process_index} of this run ended with {type(fault).__name__}: {fault}",)


def _name(file: Any) -> str | None:
    return None if file is None else str(file)


def _again(told: Told) -> Exception:
    """The error that another process has told."""
    kinds: dict[str, type[Exception]] = {"unwritten": Unwritten, "system": OSError, "other": MetElsewhere}
    kinds |= {kind.__name__: kind for kind in SAME}
    kind, arguments = told
    return kinds[kind](*arguments)
