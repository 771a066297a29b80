"""Sound files of every format as mono float32 at the model's rate, decoded to their actual end.

libsndfile reads uncompressed samples behind a header (wav, aiff, au, Wave64, RF64, CAF and rarer
ones), and ogg. It stops where the header says, so :mod:`gapclose.data.audio_headers` first corrects
a header that contradicts its file. PyAV reads mp3 and flac, because libsndfile cannot read beyond
the length in their headers (libsndfile issues 1001 and 1038). PyAV also reads several ogg streams
in one file, of which libsndfile reads the first, and formats that libsndfile does not know.
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
"""Hz, for the sound of a video when no model is known"""
BLOCK = 1 << 22
"""samples of all channels that are decoded at once: 16 MiB"""
HEADED = (".au", ".snd")
"""suffixes of files that libsndfile reads as raw u-law at 8,000 Hz if their header is damaged"""


def read_audio(path: Path, rate: int | None) -> tuple[np.ndarray, int]:
    """Return a sound, or a video's sound track, as mono (samples,) float32, and its rate in Hz.

    Args:
        rate: in Hz, to which it is resampled; None keeps the rate of a sound file.

    Raises:
        ItemError: with the fault of the file and the remedy.
    """
    found = None if is_film(path) else _sound_file(path)
    if found is None:
        mono, own = read_track(path, rate or USUAL_RATE, "sound track" if is_film(path) else "audio"), rate or USUAL_RATE
    else:
        mono, own = found
        refuse_rate(own)
    refuse_levels(mono)
    # without a model's rate, the usual one shows whether resampling is possible
    heard = rate or USUAL_RATE
    if own != heard:
        refuse_longer(len(mono) * heard // own, heard)
        if len(mono) * heard < own:
            raise ItemError(f"the audio is too short: {len(mono)} samples at {own:,} Hz leave none at {heard:,} Hz; remove the item")
    if rate and own != rate:
        mono = soxr.resample(mono, own, rate)
    return mono.astype(np.float32, copy=False), rate or own


def _sound_file(path: Path) -> tuple[np.ndarray, int] | None:
    """Return mono samples and their rate; None for a video, and for formats that PyAV must read."""
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
    """Yield (n, C) float32 as long as libsndfile delivers samples.

    ``SoundFile.blocks`` trusts the stated number, and returns uninitialised memory if there are
    fewer.
    """
    while len(block := sound.read(max(1, BLOCK // sound.channels), dtype="float32", always_2d=True)):
        yield block


def _otherwise(path: Path, fault: ItemError) -> None:
    """Return if PyAV opens a file that libsndfile does not know; raise ``fault`` if not."""
    try:
        with opened(path, "audio") as container:
            if chosen(container, "audio") is not None:
                return
    except ItemError as other:
        raise (other if "PyAV" in str(other) else fault) from other
    raise fault
