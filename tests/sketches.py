"""Figures of the tests: whether they are drawn, or files of their kind are written in which nothing is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

DRAW = Figure.savefig


def sketch(figure: Figure, place: Any, *, format: str, **_: Any) -> None:
    """In place of ``Figure.savefig``: nothing is laid out or drawn; a bitmap is as large as one might be."""
    if format == "svg":
        place.write('<svg viewBox="0 0 1 1"></svg>')
    else:
        Path(place).write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(10_000))


@contextmanager
def _saved_by(save: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield


def drawn() -> Any:
    """Within, figures are drawn as they are for users."""
    return _saved_by(DRAW)


def sketched() -> Any:
    """Within, they are not."""
    return _saved_by(sketch)
