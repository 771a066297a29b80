"""Videos through PyAV (the extra ``media``): evenly spaced frames as a player shows them.

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
"""PyAV's names of containers that seek inexactly or whose frames have no times: decoded from the
start"""
MOST_PIXELS = 1 << 26
"""of a stored frame; decoders hold several at once"""
WIDEST = 64
"""largest ratio of width to height, or the inverse, of a displayed pixel; beyond it, a header
counts as damaged"""


@dataclass(frozen=True, kw_only=True)
class Video:
    """The frames of a video that a model sees."""

    frames: np.ndarray
    """(F, H, W, 3) uint8 RGB"""
    seconds: float
    """time from one frame to the next"""

    @property
    def nbytes(self) -> int:
        return self.frames.nbytes


def read_video(path: Path, framing: Framing) -> Video:
    """Return ``framing.frames`` frames, evenly in time from the first to the last.

    Their sides are at most ``framing.side`` pixels. A video with fewer frames repeats some, so that
    all videos have the same number.

    Raises:
        ItemError: when the file is not a video, has no pictures, is truncated, changes its size, or
            a selected frame cannot be decoded.
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
    """Return the displayed stream, ready to decode.

    Raises:
        ItemError: when there is none, or its pictures are too large.
    """
    stream = chosen(container, "video")
    if stream is None:
        cover = " but a cover" if container.streams.video else ""
        raise ItemError(f"the film has no pictures{cover}; give it as audio, or replace it")
    if (stream.width or 0) * (stream.height or 0) > MOST_PIXELS:
        raise ItemError(f"the film has pictures of {stream.width} x {stream.height} pixels, more than {MOST_PIXELS:,}; scale it down")
    # with frame threads, FFmpeg's H.264 decoder sometimes loses the mark of a damaged frame (8.0)
    stream.thread_type = "SLICE"
    return stream


def _packets(container: Any, stream: Any) -> tuple[list[int], list[int]]:
    """Return the sorted presentation times of all displayed frames and of all key frames, in ticks.

    A file may exclude frames from display (edit lists); decoders need them, but do not return them.
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
    else:  # the length of the container, whose longest stream may be another
        refuse_short(last - (container.start_time or 0) / 1e6, (container.duration or 0) / 1e6, "film")
    # in a stream cut out of a longer one, earlier frames cannot be decoded
    first = min(keys)
    return sorted(t for t in times if t >= first), sorted(keys)


def _evenly(times: Sequence[int], count: int) -> list[int]:
    """Return the indices of the times nearest to an even division of their range, rising."""
    known = np.asarray(times)
    return [int(np.abs(known - t).argmin()) for t in np.linspace(known[0], known[-1], count)]


def _by_jumps(container: Any, stream: Any, wanted: dict[int, int], keys: list[int], side: int) -> dict[int, np.ndarray] | None:
    """Return index -> picture for ``wanted`` (index -> time, rising), by jumps between key frames.

    It jumps to the last key frame before a picture where that saves decoding. It returns None if a
    jump lands too late, or no frame has exactly that time; the complete video must then be decoded.
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
    """Return index -> picture, by decoding the video from its start.

    If as many frames come out as are displayed, they are counted, because some containers carry
    wrong times. If frames are missing, the selected ones are found by their exact times.
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
    """Yield all frames from the first key frame on; the decoder may refuse earlier packets."""
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
    """Return (H, W, 3): scaled down if a side is too long, with square pixels, turned and mirrored.

    Args:
        shape: displayed width of a stored pixel divided by its height; None or 0: square.
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
    """Turn and mirror (H, W, 3) by the frame's display matrix, to the nearest right angle.

    The matrix (a, b, u; c, d, v; x, y, w) of ISO/IEC 14496-12 maps a point (p, q), q downwards, to
    (a p + c q, b p + d q).
    """
    from av.sidedata.sidedata import Type

    matrix = next((np.frombuffer(bytes(data), np.int32) for data in frame.side_data if data.type == Type.DISPLAYMATRIX), None)
    if matrix is None or len(matrix) < 9:
        return pixels
    a, b, c, d = (int(matrix[n]) for n in (0, 1, 3, 4))
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
