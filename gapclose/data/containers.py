"""Containers through PyAV (the extra ``media``): opening them, and choosing a stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gapclose.core.errors import ItemError

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp", ".m4a", ".aac")
"""files that PyAV opens; an audio part that names one means its sound track"""
MISSING = 0.05
"""share of the stated length that may be missing at the end, at least half a second: headers round,
and streams end unevenly"""
NO_FILM = ("attached_pic", "timed_thumbnails")
"""dispositions of video streams that hold a cover or previews"""


def is_film(path: str | Path) -> bool:
    """Whether a file's suffix means that PyAV, not libsndfile, reads its sound."""
    return Path(path).suffix.lower() in SUFFIXES


@contextmanager
def opened(path: Path, what: str = "film") -> Iterator[Any]:
    """Yield an open container; errors inside become an :class:`ItemError` about the ``what``."""
    try:
        import av
    except ImportError as error:
        raise ItemError(f"this {what} needs PyAV; `pip install av`") from error
    av.logging.set_level(None)  # pyright: ignore[reportArgumentType]  # its errors are also raised
    try:
        with av.open(str(path), metadata_errors="replace") as container:  # titles may have other encodings
            yield container
    except ItemError:
        raise
    except Exception as error:  # damaged files make PyAV raise errors of any kind
        raise undecodable(what, error) from error


def undecodable(what: str, error: Exception) -> ItemError:
    """Return the error for a file that a decoder cannot read."""
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    named = reason if isinstance(error, OSError | ValueError | RuntimeError) else f"{type(error).__name__}: {reason}"
    return ItemError(f"the {what} cannot be decoded ({named}); replace it")


def chosen(container: Any, kind: str) -> Any:
    """Return the ``video`` or ``audio`` stream that players choose, or None.

    FFmpeg's ``av_find_best_stream`` decides: the default disposition wins, then the number of
    frames and the bit rate. Attached pictures do not count as video. If FFmpeg prefers one, the
    default stream wins, then the largest.
    """
    from av.stream import Disposition

    never = sum(int(Disposition[name]) for name in NO_FILM)
    streams = [s for s in getattr(container.streams, kind) if not int(s.disposition) & never]
    if not streams:
        return None
    film = chosen(container, "video") if kind == "audio" else None
    best = container.streams.best(kind, film)
    if best is not None and best.index in {s.index for s in streams}:
        return best
    return max(streams, key=lambda s: (int(s.disposition) & int(Disposition["default"]), (s.width or 0) * (s.height or 0)))


def refuse_short(seconds: float, stated: float, what: str) -> None:
    """Raise ItemError if a stream is shorter than stated, by more than rounding explains."""
    if seconds < stated - max(0.5, MISSING * stated):
        raise ItemError(
            f"the {what} is truncated, or its header is wrong: {seconds:.1f} s of {stated:.1f} s are there; copy it again, or, where it is "
            "whole, write it anew"
        )
