"""Embed media in a page: thumbnails and audio as ``data:`` URIs, up to a total size.

Short audio stays 16-bit PCM. Longer audio is cut to its first seconds and becomes MP3. Every
browser plays both, but not every browser plays Ogg.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from PIL import Image, ImageOps

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, soundfile.LibsndfileError)
"""what a missing or damaged medium raises"""
SIDE = 192
"""pixels of a thumbnail's longer side"""
SECONDS = 10.0
"""seconds of audio that are kept"""
RATE = 16_000
"""highest sampling rate that is kept, in Hz"""
SHORT = 48_000
"""bytes up to which audio stays PCM (1.5 s at 16 kHz)"""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """One medium of an item on the page: a URI, or a note that says why there is none.

    Audio that was cut has both.
    """

    kind: str
    uri: str | None = None
    note: str | None = None
    seconds: float | None = None
    """length of the uncut audio"""
    tiny: bool = False
    """whether an image is so small that its pixels should stay sharp when enlarged"""


class Embedder:
    """Embeds media in at most ``budget`` bytes of URIs; media that do not fit become notes."""

    def __init__(self, root: Path, budget: int = 2_000_000) -> None:
        self.root, self.budget, self.left = root, budget, budget

    def embed(self, kind: str, path: str) -> Embedded:
        """Embed one medium; a missing or damaged file becomes a note: a page outlives its data."""
        try:
            if kind == "image":
                uri, side = thumbnail(self.root / path)
                made = Embedded(kind=kind, uri=uri, tiny=side < 64)
            elif kind == "audio":
                uri, seconds = player(self.root / path)
                note = f"the first {SECONDS:.0f} of {seconds:.0f} s" if seconds > SECONDS else None
                made = Embedded(kind=kind, uri=uri, seconds=seconds, note=note)
            else:
                return Embedded(kind=kind, note=f"{kind} is not shown here")
        except UNREADABLE as error:
            missing = not (self.root / path).is_file()
            return Embedded(kind=kind, note=f"{kind} {'not found' if missing else f'not readable ({type(error).__name__})'}")
        assert made.uri is not None
        if len(made.uri) > self.left:
            return Embedded(kind=kind, note=f"{kind} left out: this page holds at most {self.budget / 1e6:.1f} MB of media")
        self.left -= len(made.uri)
        return made


def thumbnail(path: Path) -> tuple[str, int]:
    """Return a data URI of an image at most :data:`SIDE` pixels wide and high, and its longer side.

    The format is PNG up to 4,000 bytes, else JPEG.
    """
    small = small_image(path)
    out = io.BytesIO()
    small.save(out, "PNG", optimize=True)
    if out.tell() > 4_000:
        out = io.BytesIO()
        small.save(out, "JPEG", quality=75)
        return _uri("image/jpeg", out), max(small.size)
    return _uri("image/png", out), max(small.size)


def small_image(path: Path) -> Image.Image:
    """Return an image upright, in RGB, and at most :data:`SIDE` pixels wide and high."""
    with Image.open(path) as image:
        image.draft("RGB", (SIDE * 2, SIDE * 2))
        small = ImageOps.exif_transpose(image).convert("RGB")
    small.thumbnail((SIDE, SIDE))
    return small


def first_seconds(path: Path) -> tuple[np.ndarray, int, float]:
    """Return the first :data:`SECONDS` of audio as mono float32, its rate in Hz, and the uncut length in seconds."""
    with soundfile.SoundFile(path) as sound:
        rate, seconds = sound.samplerate, sound.frames / sound.samplerate
        return sound.read(int(SECONDS * rate), dtype="float32", always_2d=True).mean(axis=1), rate, seconds


def player(path: Path) -> tuple[str, float]:
    """Return a data URI of the first :data:`SECONDS` of audio, and the uncut length in seconds.

    The audio is mono at :data:`RATE` Hz or below.
    """
    samples, rate, seconds = first_seconds(path)
    if rate > RATE:
        samples, rate = soxr.resample(samples, rate, RATE), RATE
    samples = np.clip(np.nan_to_num(samples), -1, 1)
    out, short = io.BytesIO(), len(samples) * 2 <= SHORT
    soundfile.write(out, samples, rate, format="WAV" if short else "MP3", subtype="PCM_16" if short else None)
    return _uri("audio/wav" if short else "audio/mpeg", out), seconds


def _uri(mime: str, out: io.BytesIO) -> str:
    return f"data:{mime};base64,{base64.b64encode(out.getvalue()).decode()}"
