"""Work that the processes of a launch share out, and what each of them found told to all.

All of the W processes must make the same calls in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

from gapclose.progress import track

T = TypeVar("T")
R = TypeVar("R")


def deal(pieces: Sequence[T], work: Callable[[T], R], label: str) -> list[R]:
    """What ``work`` makes of every piece, in the order of the pieces; each process does every W-th of them.

    Raises:
        ValueError: in all processes, when it is raised in one.
    """
    state = PartialState()
    rank, processes = state.process_index, state.num_processes
    mine = pieces[rank::processes]
    parts = _told(lambda: [work(piece) for piece in track(mine, len(mine), label)])
    return [parts[n % processes][n // processes] for n in range(len(pieces))]


def main_alone(work: Callable[[], T]) -> T:
    """What ``work`` gives in the main process, where alone it is done.

    Raises:
        ValueError: in all processes, when it is raised in the main one.
    """
    found = _told(lambda: work() if PartialState().is_main_process else None)[0]
    assert found is not None
    return found


def _told(work: Callable[[], T]) -> list[T]:
    """What ``work`` gives in every process, by rank."""
    try:
        found = work()
    except ValueError as error:  # a caller may go on after it, and the other processes wait for this one
        found = error
    told = gather_object([found])
    for one in told:
        if isinstance(one, ValueError):
            raise one
    return told
