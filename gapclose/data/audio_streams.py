"""Sound through PyAV, decoded to its end: sound tracks of videos, and compressed files (mp3, flac).

FFmpeg decodes all samples of the file. The stated length is compared afterwards, and never limits
it. Shapes: n samples, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from gapclose.core.errors import ItemError
from gapclose.data.audio_headers import states_mp3_length
from gapclose.data.audio_mixing import Mix, refuse_longer, refuse_rate
from gapclose.data.containers import chosen, opened, refuse_short

RESYNCED = ("mp3", "aac")
"""containers whose frames carry a start mark; players skip bytes between frames"""


def read_track(path: Path, rate: int, what: str = "sound track") -> np.ndarray:
    """Return the sound track as mono (samples,) float32 at ``rate`` Hz, from the first picture on.

    The channels are mixed by their mean. A track that starts later gets silence before it; sound
    before the first picture is dropped.

    Raises:
        ItemError: when there is no track, it is truncated or empty, ends before the pictures begin,
            its channels cancel, or it cannot be decoded.
    """
    with opened(path, "film" if what == "sound track" else what) as container:
        stream = chosen(container, "audio")
        if stream is None:
            raise ItemError("the film has no sound track; leave its audio part out, or replace it")
        resampler, blocks, mix, begin, length = _Resampler(rate), list[np.ndarray](), Mix(), None, 0
        for frame, apart in _frames(container, stream):
            begin = frame.time if begin is None else begin
            for block in apart:
                ready = resampler(mix.add(block), frame.sample_rate)
                blocks += ready
                length += sum(map(len, ready))
            refuse_longer(length)
        blocks += resampler.rest()
        if not any(map(len, blocks)):
            raise ItemError(f"the {what} has no samples; replace it")
        sound = np.concatenate(blocks)
        stated = _stated(container, stream, path)
        sounding = chosen(container, "video") is not None
    late = round(((begin or 0.0) - _pictures_begin(path, begin or 0.0)) * rate) if sounding else 0
    refuse_short(len(sound) / rate, stated, what)
    mix.refuse()
    if len(sound) + late <= 0:
        raise ItemError("the sound track ends before the pictures begin; replace the film, or give sound and pictures apart")
    refuse_longer(len(sound) + late)
    return np.pad(sound, (max(0, late), 0))[max(0, -late) :]


def read_compressed(path: Path) -> tuple[np.ndarray, int] | None:
    """Return a compressed sound file as mono (samples,) float32, and its rate in Hz.

    Return None if the file is a video.

    Raises:
        ItemError: when it is truncated or empty, changes its rate, its channels cancel, or it
            cannot be decoded.
    """
    with opened(path, "audio") as container:
        stream = chosen(container, "audio")
        if stream is None:
            raise ItemError("the file has no sound; replace it")
        if chosen(container, "video") is not None:
            return None
        mix, blocks, rate = Mix(), list[np.ndarray](), None
        for frame, apart in _frames(container, stream):
            rate = rate or frame.sample_rate  # for HE-AAC, the container states half
            if frame.sample_rate != rate:
                raise ItemError(
                    f"the sampling rate changes within the audio ({rate} Hz, then {frame.sample_rate} Hz); encode it again with one"
                )
            blocks += [mix.add(block) for block in apart]
        stated = _stated(container, stream, path)
    if not mix.length or not rate:
        raise ItemError("the audio has no samples; replace it")
    refuse_short(mix.length / rate, stated, "audio")
    mix.refuse()
    return np.concatenate(blocks), rate


def _stated(container: Any, stream: Any, path: Path) -> float:
    """Return the stated length of a stream in seconds; 0 if the file states none.

    FFmpeg then estimates a length from the file size and the first bit rate.
    """
    form = container.format.name
    guessed = form == "aac" or (form == "mp3" and not states_mp3_length(path))
    return 0.0 if guessed or not stream.duration else float(stream.duration * stream.time_base)


def _frames(container: Any, stream: Any) -> Iterator[tuple[Any, list[np.ndarray]]]:
    """Yield every frame of a sound stream, with its samples as blocks (n, C) float32."""
    from av.error import InvalidDataError

    packed, lost, heard = _Packed(), 0.0, 0.0
    lenient = container.format.name in RESYNCED
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except InvalidDataError:
            if not lenient:
                raise
            lost += float((packet.duration or 0) * packet.time_base)
            continue
        for frame in frames:
            refuse_rate(frame.sample_rate)
            heard += frame.samples / max(1, frame.sample_rate)
            yield frame, [b.to_ndarray().reshape(-1, len(b.layout.channels)) for b in packed(frame)]
    if lost:
        refuse_short(heard, heard + lost, "audio")


class _Packed:
    """PyAV's conversion to packed float32, restarted when a stream changes its format.

    Channels and rate stay.
    """

    def __init__(self) -> None:
        self.form, self.converter = None, None

    def __call__(self, frame: Any) -> list[Any]:
        from av import AudioResampler

        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if form != self.form:
            self.form, self.converter = form, AudioResampler(format="flt")
        assert self.converter is not None
        return self.converter.resample(frame)


class _Resampler:
    """Resamples mono blocks to ``rate`` Hz, with the resampler of sound files.

    It restarts when a stream changes its rate.
    """

    def __init__(self, rate: int) -> None:
        self.rate, self.own, self.stream = rate, rate, None

    def __call__(self, block: np.ndarray, own: int) -> list[np.ndarray]:
        """Return the output after the next (n,) float32 samples of rate ``own`` in Hz."""
        before = []
        if own != self.own:
            before, self.own = self.rest(), own
            self.stream = None if own == self.rate else soxr.ResampleStream(own, self.rate, 1, dtype="float32")
        return [*before, block if self.stream is None else self.stream.resample_chunk(block)]

    def rest(self) -> list[np.ndarray]:
        """Return the rest of the output, at the end of the input."""
        return [] if self.stream is None else [self.stream.resample_chunk(np.zeros(0, np.float32), last=True)]


def _pictures_begin(path: Path, otherwise: float) -> float:
    """Return when the first decodable picture is shown, in seconds of the container's clock.

    Without one, return ``otherwise``.
    """
    with opened(path) as container:
        stream = chosen(container, "video")
        if stream is None:
            return otherwise
        first = next((p.pts for p in container.demux(stream) if p.is_keyframe and p.pts is not None), None)
        return otherwise if first is None else float(max(first, stream.start_time or first) * stream.time_base)
