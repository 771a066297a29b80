"""Work that the processes of a launch share out, and what each of them found or met told to all.

All of the W processes must make the same calls in the same order. A ``ValueError`` or ``FloatingPointError`` that one of them meets ends the work of
all: the others would wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from gapclose.progress import track

T = TypeVar("T")
R = TypeVar("R")
TOLD = (ValueError, FloatingPointError)


def deal(pieces: Sequence[T], work: Callable[[T], R], label: str) -> list[R]:
    """What ``work`` makes of every piece, in the order of the pieces; each process does every W-th of them.

    Raises:
        ValueError, FloatingPointError: in all processes, when it is raised in one.
    """
    state = PartialState()
    rank, processes = state.process_index, state.num_processes
    mine = pieces[rank::processes]
    parts = together(lambda: [work(piece) for piece in track(mine, len(mine), label)])
    return [parts[n % processes][n // processes] for n in range(len(pieces))]


def together(work: Callable[[], T]) -> list[T]:
    """What ``work`` gives in every process, by rank.

    Raises:
        ValueError, FloatingPointError: in all processes, when it is raised in one.
    """
    found, fault = _tried(work)
    told = gather_object([(found, fault and (type(fault), str(fault)))])
    if fault:
        raise fault
    for _, other in told:
        if other:
            raise other[0](other[1])
    return [found for found, _ in told]


def main_alone(work: Callable[[], T]) -> T:
    """What ``work`` gives in the main process, where alone it is done.

    Raises:
        ValueError, FloatingPointError: in all processes, when it is raised in the main one.
    """
    found, fault = _tried(work) if PartialState().is_main_process else (None, None)
    (found, other) = broadcast_object_list([found, fault and (type(fault), str(fault))])
    if fault:
        raise fault
    if other:
        raise other[0](other[1])
    return found


def _tried(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return work(), None
    except TOLD as fault:
        return None, fault
