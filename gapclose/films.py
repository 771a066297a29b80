"""Films through PyAV (the extra ``media``): uniform frames, the sound track, and what is wrong with a file.

Shapes: F frames, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gapclose.errors import Fault
from gapclose.items import Framing

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp", ".m4a", ".aac")
"""files that PyAV opens, also where an audio part names one: then its sound track is meant"""
MISSING = 0.05
"""share of a film's stated length that may be missing at its end, and half a second at least: headers round, streams end unevenly"""
UNINDEXED = ("avi", "mpeg", "mpegts")
"""PyAV's names of containers where a jump lands anywhere, or frames do not carry their own times: decoded from the start"""


@dataclass(frozen=True, kw_only=True)
class Film:
    """What is shown of a film."""

    frames: np.ndarray
    """(F, H, W, 3) uint8 RGB"""
    seconds: float
    """from one frame to the next"""

    @property
    def nbytes(self) -> int:
        return self.frames.nbytes


def is_film(path: str | Path) -> bool:
    """Whether PyAV rather than libsndfile reads the sound of a file."""
    return Path(path).suffix.lower() in SUFFIXES


def read_film(path: Path, framing: Framing) -> Film:
    """``framing.frames`` frames, evenly in time from the first to the last, no side longer than ``framing.side`` pixels.

    A film with fewer frames repeats some, so that all films are shown alike.

    Raises:
        Fault: when the file is no film, has no pictures, is cut short, or a frame that is shown cannot be decoded.
    """
    with _opened(path) as container:
        if not container.streams.video:
            raise Fault("the film has no pictures; give it as audio, or replace it")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        times, keys = _packets(container, stream)
        wanted = _evenly(times, framing.frames)
        jumps = container.format.name not in UNINDEXED
        shown = _by_jumps(container, stream, {n: times[n] for n in wanted}, keys, framing.side) if jumps else None
        step = float((times[wanted[-1]] - times[wanted[0]]) * stream.time_base) / max(1, framing.frames - 1)
    if shown is None:
        shown = _in_order(path, wanted, times, framing.side)
    sizes = {p.shape for p in shown.values()}
    if len(sizes) > 1:
        raise Fault(f"the size of the pictures changes within the film ({sorted(s[:2] for s in sizes)}); encode it again in one size")
    return Film(frames=np.stack([shown[n] for n in wanted]), seconds=step)


def read_track(path: Path, rate: int) -> np.ndarray:
    """The sound track, mixed to mono and resampled to ``rate`` Hz: (samples,) float32, from the moment when the pictures begin.

    A track that starts later has silence before it; what sounds before the first picture is left out.

    Raises:
        Fault: when there is none, it is cut short or empty, or it cannot be decoded.
    """
    import av

    with _opened(path) as container:
        if not container.streams.audio:
            raise Fault("the film has no sound track; leave its audio part out, or replace it")
        stream = container.streams.audio[0]
        resampler, blocks, begin = av.AudioResampler(format="flt", layout="mono", rate=rate), [], None
        for frame in container.decode(stream):
            begin = frame.time if begin is None else begin
            blocks += [block.to_ndarray()[0] for block in resampler.resample(frame)]
        blocks += [block.to_ndarray()[0] for block in resampler.resample(None)] if blocks else []
        if not blocks:
            raise Fault("the sound track has no samples; replace it")
        sound = np.concatenate(blocks).astype(np.float32)
        stated = float(stream.duration * stream.time_base) if stream.duration else 0.0
    late = round(((begin or 0.0) - _pictures_begin(path, begin or 0.0)) * rate)
    refuse_short(len(sound) / rate, stated, "sound track")
    if len(sound) + late <= 0:
        raise Fault("the sound track ends before the pictures begin; replace the film, or give sound and pictures apart")
    return np.pad(sound, (max(0, late), 0))[max(0, -late) :]


def _pictures_begin(path: Path, otherwise: float) -> float:
    """When the first picture that can be decoded is shown, in seconds of the container's clock; ``otherwise`` where there is none."""
    with _opened(path) as container:
        for stream in container.streams.video:
            first = next((p.pts for p in container.demux(stream) if p.is_keyframe and p.pts is not None), None)
            return otherwise if first is None else float(max(first, stream.start_time or first) * stream.time_base)
    return otherwise


def track_seconds(path: Path) -> float:
    """How long a film's sound track says that it lasts, in seconds; 0 where it does not say or cannot be read."""
    try:
        with _opened(path) as container:
            for stream in container.streams.audio:
                if not stream.duration:
                    return float(container.duration or 0) / 1e6
                begin = float((stream.start_time or 0) * stream.time_base)
                return float(stream.duration * stream.time_base) + max(0.0, begin - _pictures_begin(path, begin))
    except Fault:  # told by whoever decodes it
        pass
    return 0.0


def film_inputs(films: Sequence[Film], processor: Any = None) -> dict[str, Any]:
    """What a transformers processor is given for the films of a batch: frames as they are, and when they were; nothing for none."""
    if not films:
        return {}
    from transformers.video_utils import VideoMetadata

    facts = []
    for film in films:
        count, (height, width) = len(film.frames), film.frames.shape[1:3]
        rate = 1 / film.seconds if film.seconds > 0 else 1.0
        facts.append(
            VideoMetadata(
                total_num_frames=count, fps=rate, duration=count / rate, height=height, width=width, frames_indices=list(range(count))
            )
        )
    how = {"video_metadata": facts, "do_sample_frames": False, **_smaller_size(processor)}
    return {"videos": [f.frames for f in films], "videos_kwargs": how}


def _smaller_size(processor: Any) -> dict[str, Any]:
    """The size that the checkpoint's video processor states, where it is below the one that the class of its processor puts in its place.

    Transformers 5.23 has Qwen2.5-Omni's enlarge every frame to 100,352 pixels at least (128 tokens), whatever the checkpoint says. That is
    how the published models saw films in training; a small model states less, and means it. Remove when the checkpoint's size is kept.
    """
    stated = getattr(type(processor), "videos_kwargs", None)
    usual = stated.get("size") if isinstance(stated, dict) else None
    own = getattr(getattr(processor, "video_processor", None), "size", None)
    if not usual or not own or own["longest_edge"] >= usual["longest_edge"]:
        return {}
    return {"size": {key: own[key] for key in ("shortest_edge", "longest_edge")}}


def set_film_times(inputs: dict[str, Any], films: Sequence[Film], processor: Any) -> None:
    """Put the films' own pace where a processor states one for all of them.

    Qwen2.5-Omni's says that every film was sampled twice a second (transformers 5.23); its model places frames in time by it. Remove when
    it looks at the metadata, as the processor of Qwen2.5-VL does.
    """
    import torch

    if "video_second_per_grid" in inputs:
        patch = processor.video_processor.temporal_patch_size
        inputs["video_second_per_grid"] = torch.tensor([f.seconds * patch for f in films])


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open container; whatever PyAV complains about inside comes out as a :class:`Fault`."""
    try:
        import av
    except ImportError as error:
        raise Fault("films need PyAV; `pip install av`, or install gapclose with its extra `media`") from error
    av.logging.set_level(None)  # pyright: ignore[reportArgumentType]  # its complaints are raised as well
    try:
        with av.open(str(path)) as container:
            yield container
    except Fault:
        raise
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Fault(f"the film cannot be decoded ({reason}); replace it") from error


def _packets(container: Any, stream: Any) -> tuple[list[int], list[int]]:
    """Presentation times of all frames that are shown, and of those that can be decoded by themselves, in the stream's ticks, rising.

    A file may leave frames out of what it shows (edit lists); decoders need them, and give them to nobody.
    """
    times, keys, end = [], [], 0
    for packet in container.demux(stream):
        if packet.size and packet.pts is not None:
            if not packet.is_discard:
                times.append(packet.pts)
                end = max(end, packet.pts + (packet.duration or 0))
            if packet.is_keyframe:
                keys.append(packet.pts)
    if not times or not keys:
        raise Fault("the film has no frames; replace it")
    if stream.frames and not stream.duration and len(times) < stream.frames:
        raise Fault(f"the film is truncated: it holds {len(times)} of {stream.frames} frames; copy it again")
    start = stream.start_time or 0
    stated = float(stream.duration * stream.time_base) if stream.duration else float(container.duration or 0) / 1e6
    refuse_short(float((end - start) * stream.time_base), stated, "film")
    first = min(keys)  # what comes before it, in a stream that was cut out of a longer one, cannot be decoded
    return sorted(t for t in times if t >= first), sorted(keys)


def _evenly(times: Sequence[int], count: int) -> list[int]:
    """Places of ``count`` of the times, rising: those nearest to an even division of the whole stretch, however the frames are spaced."""
    known = np.asarray(times)
    return [int(np.abs(known - t).argmin()) for t in np.linspace(known[0], known[-1], count)]


def refuse_short(seconds: float, stated: float, what: str) -> None:
    """Raises: Fault, when less is there than was stated, by more than rounding explains."""
    if seconds < stated - max(0.5, MISSING * stated):
        raise Fault(f"the {what} is truncated: {seconds:.1f} s of {stated:.1f} s are there; copy it again")


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
        shown[place] = _undamaged(frame, target * stream.time_base, side)
    return shown


def _in_order(path: Path, wanted: Sequence[int], times: Sequence[int], side: int) -> dict[int, np.ndarray]:
    """Place -> picture, by decoding the film from its start.

    Where as many frames come out as are shown, they are counted, for in some containers they carry wrong times; where some are lacking,
    those are taken that have just the times of the wanted ones.
    """
    seen: list[int | None] = []
    counted, timed = dict[int, np.ndarray](), dict[int | None, np.ndarray]()
    targets = {n: times[n] for n in wanted}
    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for place, frame in enumerate(_from_first_key(container, stream)):
            if place in targets or frame.pts in targets.values():
                counted[place] = timed[frame.pts] = _undamaged(frame, times[min(place, len(times) - 1)] * stream.time_base, side)
            seen.append(frame.pts)
        if len(seen) == len(times):
            return counted
        rising = None not in seen and seen == sorted(set(seen))  # pyright: ignore[reportArgumentType]
        lacking = [t for t in targets.values() if not rising or t not in timed]
        if lacking:
            at = float((lacking[0] - times[0]) * stream.time_base)
            raise Fault(f"the film cannot be decoded at {at:.1f} s ({len(seen)} of {len(times)} frames come out); replace it")
    return {n: timed[t] for n, t in targets.items()}


def _from_first_key(container: Any, stream: Any) -> Iterator[Any]:
    """All frames; packets before the first key frame are not even given to the decoder, which may refuse them."""
    begun = False
    for packet in container.demux(stream):
        begun = begun or packet.is_keyframe
        if begun:
            yield from packet.decode()


def _undamaged(frame: Any, seconds: Any, side: int) -> np.ndarray:
    if frame.is_corrupt:
        raise Fault(f"the film is corrupt at {float(seconds):.1f} s; replace it")
    return _picture(frame, side)


def _picture(frame: Any, side: int) -> np.ndarray:
    """(H, W, 3), scaled down where a side is too long, turned as the file asks for."""
    scale = min(1.0, side / max(frame.width, frame.height))
    width, height = (max(1, round(n * scale)) for n in (frame.width, frame.height))
    pixels = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray()
    return np.ascontiguousarray(np.rot90(pixels, k=round(frame.rotation / 90)))
