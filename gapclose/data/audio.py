"""Sound files of every format as mono float32 at the model's rate, decoded to their end whatever their headers state.

libsndfile reads samples that lie as they are behind a header (wav, aiff, au, Wave64, RF64, CAF and rarer ones), and ogg. It stops where a header
tells it to, so that :mod:`gapclose.data.audio_headers` first sets right a header that contradicts its file. mp3 and flac go through PyAV, since
libsndfile cannot read beyond the length that it takes from their headers (libsndfile issues 1001 and 1038). So do several ogg streams in
one file, of which libsndfile reads the first, and whatever libsndfile does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import soundfile
import soxr

from gapclose.core.errors import ItemError
from gapclose.data.audio_headers import Corrected, decoder, size_fields
from gapclose.data.audio_mixing import Mix, refuse_levels, refuse_longer, refuse_rate
from gapclose.data.audio_streams import read_compressed, read_track
from gapclose.data.containers import chosen, is_film, opened, refuse_short, undecodable

USUAL_RATE = 16_000
"""Hz, of a film's sound as long as no model is there"""
BLOCK = 1 << 22
"""samples of all channels that are decoded at once: 16 MiB"""
HEADED = (".au", ".snd")
"""suffixes of files that libsndfile takes for raw u-law of 8,000 Hz where their header is damaged"""


def read_audio(path: Path, rate: int | None) -> tuple[np.ndarray, int]:
    """A sound, or the sound track of a film, mixed to mono: (samples,) float32, and its sampling rate in Hz.

    Args:
        rate: in Hz, what it is resampled to; None leaves a sound file as it is.

    Raises:
        ItemError: what is wrong with it, and the remedy.
    """
    found = None if is_film(path) else _sound_file(path)
    if found is None:
        mono, own = read_track(path, rate or USUAL_RATE, "sound track" if is_film(path) else "audio"), rate or USUAL_RATE
    else:
        mono, own = found
        refuse_rate(own)
    refuse_levels(mono)
    heard = rate or USUAL_RATE  # so that what cannot be resampled is told before the model's rate is known
    if own != heard:
        refuse_longer(len(mono) * heard // own, heard)
        if len(mono) * heard < own:
            raise ItemError(f"the audio is too short: {len(mono)} samples at {own:,} Hz leave none at {heard:,} Hz; remove the item")
    if rate and own != rate:
        mono = soxr.resample(mono, own, rate)
    return mono.astype(np.float32, copy=False), rate or own


def _sound_file(path: Path) -> tuple[np.ndarray, int] | None:
    """Mono samples and their rate; None where the file is a film, or nothing that libsndfile knows and PyAV may."""
    how = decoder(path)
    if how != "libsndfile":
        return read_compressed(path) if how == "compressed" else None
    fields = size_fields(path)
    with ExitStack() as files:
        try:
            sound = files.enter_context(soundfile.SoundFile(files.enter_context(Corrected(path, fields)) if fields else path))
        except soundfile.LibsndfileError as error:
            return _otherwise(path, undecodable("audio", error))
        if sound.format in ("MP3", "MPEG", "FLAC") or sound.subtype == "MPEG_LAYER_III":
            return read_compressed(path)
        if sound.format == "RAW" and path.suffix.lower() in HEADED:
            raise ItemError(f"the audio has no header, which a {path.suffix} file begins with, so it is damaged; replace it")
        mix, rate, stated = Mix(), sound.samplerate, sound.frames
        blocks = [mix.add(block) for block in _blocks(sound)]
    if not mix.length:
        raise ItemError("the audio has no samples; replace it")
    refuse_short(mix.length / max(1, rate), stated / max(1, rate), "audio")
    mix.refuse()
    return np.concatenate(blocks), rate


def _blocks(sound: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """(n, C) float32, as long as libsndfile delivers samples.

    ``SoundFile.blocks`` goes by the stated number, and hands out memory that nobody wrote where fewer are delivered.
    """
    while len(block := sound.read(max(1, BLOCK // sound.channels), dtype="float32", always_2d=True)):
        yield block


def _otherwise(path: Path, fault: ItemError) -> None:
    """Whether PyAV opens what libsndfile does not know. Raises: the ``fault`` where it does not."""
    try:
        with opened(path, "audio") as container:
            if chosen(container, "audio") is not None:
                return
    except ItemError as other:
        raise (other if "PyAV" in str(other) else fault) from other
    raise fault
