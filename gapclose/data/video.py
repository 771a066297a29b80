"""Films through PyAV (the extra ``media``): uniform frames as a player shows them, and what is wrong with a file.

Shapes: F frames, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from gapclose.core.errors import ItemError
from gapclose.data.containers import chosen, opened, refuse_short
from gapclose.data.item_set import Framing

UNINDEXED = ("avi", "mpeg", "mpegts")
"""PyAV's names of containers where a jump lands anywhere, or frames do not carry their own times: decoded from the start"""
MOST_PIXELS = 1 << 26
"""of a frame as it is stored; decoders hold several of them at once"""
WIDEST = 64
"""times as wide as high, or the other way round, that a stored pixel may be shown; beyond, a header is taken for damaged"""


@dataclass(frozen=True, kw_only=True)
class Video:
    """What is shown of a film."""

    frames: np.ndarray
    """(F, H, W, 3) uint8 RGB"""
    seconds: float
    """from one frame to the next"""

    @property
    def nbytes(self) -> int:
        return self.frames.nbytes


def read_video(path: Path, framing: Framing) -> Video:
    """``framing.frames`` frames, evenly in time from the first to the last, no side longer than ``framing.side`` pixels.

    A film with fewer frames repeats some, so that all films are shown alike.

    Raises:
        ItemError: when the file is no film, has no pictures, is cut short, or a frame that is shown cannot be decoded.
    """
    with opened(path) as container:
        stream = _pictures(container)
        times, keys = _packets(container, stream)
        wanted = _evenly(times, framing.frames)
        jumps = container.format.name not in UNINDEXED
        shown = _by_jumps(container, stream, {n: times[n] for n in wanted}, keys, framing.side) if jumps else None
        step = float((times[wanted[-1]] - times[wanted[0]]) * stream.time_base) / max(1, framing.frames - 1)
    if shown is None:
        shown = _in_order(path, wanted, times, framing.side)
    sizes = {p.shape for p in shown.values()}
    if len(sizes) > 1:
        raise ItemError(f"the size of the pictures changes within the film ({sorted(s[:2] for s in sizes)}); encode it again in one size")
    return Video(frames=np.stack([shown[n] for n in wanted]), seconds=step)


def _pictures(container: Any) -> Any:
    """The stream that is shown, ready to be decoded. Raises: ItemError, when there is none, or its pictures are too large."""
    stream = chosen(container, "video")
    if stream is None:
        cover = " but a cover" if container.streams.video else ""
        raise ItemError(f"the film has no pictures{cover}; give it as audio, or replace it")
    if (stream.width or 0) * (stream.height or 0) > MOST_PIXELS:
        raise ItemError(f"the film has pictures of {stream.width} x {stream.height} pixels, more than {MOST_PIXELS:,}; scale it down")
    stream.thread_type = "SLICE"  # in threads for whole frames, FFmpeg's H.264 decoder loses by chance that a frame is damaged (8.0)
    return stream


def _packets(container: Any, stream: Any) -> tuple[list[int], list[int]]:
    """Presentation times of all frames that are shown, and of those that can be decoded by themselves, in the stream's ticks, rising.

    A file may leave frames out of what it shows (edit lists); decoders need them, and give them to nobody.
    """
    times, keys, end, last = [], [], 0, 0.0
    for packet in container.demux():
        if not packet.size or packet.pts is None:
            continue
        last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index == stream.index:
            if not packet.is_discard:
                times.append(packet.pts)
                end = max(end, packet.pts + (packet.duration or 0))
            if packet.is_keyframe:
                keys.append(packet.pts)
    if not times or not keys:
        raise ItemError("the film has no frames; replace it")
    if stream.frames and not stream.duration and len(times) < stream.frames:
        raise ItemError(f"the film is truncated: it holds {len(times)} of {stream.frames} frames; copy it again")
    if stream.duration:
        refuse_short(float((end - (stream.start_time or 0)) * stream.time_base), float(stream.duration * stream.time_base), "film")
    else:  # the length of the whole container, of which another stream may be the longest
        refuse_short(last - (container.start_time or 0) / 1e6, (container.duration or 0) / 1e6, "film")
    first = min(keys)  # what comes before it, in a stream that was cut out of a longer one, cannot be decoded
    return sorted(t for t in times if t >= first), sorted(keys)


def _evenly(times: Sequence[int], count: int) -> list[int]:
    """Places of ``count`` of the times, rising: those nearest to an even division of the whole stretch, however the frames are spaced."""
    known = np.asarray(times)
    return [int(np.abs(known - t).argmin()) for t in np.linspace(known[0], known[-1], count)]


def _by_jumps(container: Any, stream: Any, wanted: dict[int, int], keys: list[int], side: int) -> dict[int, np.ndarray] | None:
    """The pictures at times ``wanted`` (place -> time, rising), by jumps to the last key frame before one where that saves decoding.

    None where a jump lands too late, or no frame has just that time: then the whole film must be gone through.
    """
    shown: dict[int, np.ndarray] = {}
    frames, reached = iter(()), None  # reached: time of the frame decoded last
    for place, target in wanted.items():
        key = max(k for k in keys if k <= target)
        if reached is None or key > reached:
            container.seek(key, stream=stream)
            frames = container.decode(stream)
        frame = next((f for f in frames if f.pts is None or f.pts >= target), None)
        if frame is None or frame.pts != target:
            return None
        reached = target
        shown[place] = _undamaged(frame, target * stream.time_base, side, stream.sample_aspect_ratio)
    return shown


def _in_order(path: Path, wanted: Sequence[int], times: Sequence[int], side: int) -> dict[int, np.ndarray]:
    """Place -> picture, by decoding the film from its start.

    Where as many frames come out as are shown, they are counted, for in some containers they carry wrong times; where some are lacking,
    those are taken that have just the times of the wanted ones.
    """
    seen: list[int | None] = []
    counted, timed = dict[int, np.ndarray](), dict[int | None, np.ndarray]()
    targets = {n: times[n] for n in wanted}
    with opened(path) as container:
        stream = _pictures(container)
        for place, frame in enumerate(_from_first_key(container, stream)):
            if place in targets or frame.pts in targets.values():
                at = times[min(place, len(times) - 1)] * stream.time_base
                counted[place] = timed[frame.pts] = _undamaged(frame, at, side, stream.sample_aspect_ratio)
            seen.append(frame.pts)
        if len(seen) == len(times):
            return counted
        rising = None not in seen and seen == sorted(set(seen))  # pyright: ignore[reportArgumentType]
        lacking = [t for t in targets.values() if not rising or t not in timed]
        if lacking:
            at = float((lacking[0] - times[0]) * stream.time_base)
            raise ItemError(f"the film cannot be decoded at {at:.1f} s ({len(seen)} of {len(times)} frames come out); replace it")
    return {n: timed[t] for n, t in targets.items()}


def _from_first_key(container: Any, stream: Any) -> Iterator[Any]:
    """All frames; packets before the first key frame are not even given to the decoder, which may refuse them."""
    begun = False
    for packet in container.demux(stream):
        begun = begun or packet.is_keyframe
        if begun:
            yield from packet.decode()


def _undamaged(frame: Any, seconds: Any, side: int, shape: Fraction | None) -> np.ndarray:
    if frame.is_corrupt:
        raise ItemError(f"the film is corrupt at {float(seconds):.1f} s; replace it")
    return _picture(frame, side, shape)


def _picture(frame: Any, side: int, shape: Fraction | None) -> np.ndarray:
    """(H, W, 3), scaled down where a side is too long, its pixels square, turned and mirrored as the file asks for.

    Args:
        shape: width of a stored pixel by its height, as it is to be shown; None or 0: square.
    """
    wide = max(Fraction(1), shape or 1)
    high = max(Fraction(1), 1 / shape if shape else 1)
    if max(wide, high) > WIDEST:
        raise ItemError(f"the film states pixels of {shape} times their height in width, so its header is damaged; encode it again")
    shown = frame.width * wide, frame.height * high
    scale = min(1.0, side / max(shown))
    width, height = (max(1, round(float(n) * scale)) for n in shown)
    pixels = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray()
    return np.ascontiguousarray(_placed(pixels, frame))


def _placed(pixels: np.ndarray, frame: Any) -> np.ndarray:
    """(H, W, 3) by the frame's display matrix, to the next right angle.

    The matrix (a, b, u; c, d, v; x, y, w) of ISO/IEC 14496-12 takes a point (p, q), q downwards, to (a p + c q, b p + d q).
    """
    from av.sidedata.sidedata import Type

    matrix = next((np.frombuffer(bytes(data), np.int32) for data in frame.side_data if data.type == Type.DISPLAYMATRIX), None)
    if matrix is None or len(matrix) < 9:
        return pixels
    a, b, c, d = (int(matrix[n]) for n in (0, 1, 3, 4))
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
