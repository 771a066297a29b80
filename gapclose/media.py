"""Media: checked before a model loads, decoded once per file, shared by all questions of a clip.

Images come out as RGB :class:`PIL.Image.Image`, audio as float32 mono arrays ``(samples,)`` at the model's sampling rate.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from PIL import Image

from gapclose.errors import Problems
from gapclose.families import longest_sound, part_for
from gapclose.items import ItemSet

SUPPORTED = ("image", "audio")


def check_media(items: ItemSet, problems: Problems) -> None:
    """Decode every media file of the set once; add to ``problems`` all that are missing, truncated, empty or not finite.

    One line per file, naming the first item that uses it and the remedy.
    """
    first_user: dict[tuple[str, str], str] = {}
    for item in items:
        for kind, path in item.media:
            first_user.setdefault((kind, path), item.id)

    def check(entry: tuple[tuple[str, str], str]) -> str | None:
        (kind, path), item_id = entry
        fault = _fault(kind, items.root / path)
        return None if fault is None else f"{items.root / path}: item {item_id!r}: {fault}"

    with ThreadPoolExecutor(max_workers=4) as pool:
        for message in pool.map(check, first_user.items()):
            if message:
                problems.add(message)


def check_lengths(items: ItemSet, processor: Any, problems: Problems) -> None:
    """Add to ``problems`` every sound that is longer than what the model's feature extractor takes in; the rest would be dropped silently."""
    samples, rate = longest_sound(processor), getattr(part_for(processor, "audio"), "sampling_rate", None)
    if not samples or not rate:
        return
    checked: set[str] = set()
    for item in items:
        for path in (p for kind, p in item.media if kind == "audio" and p not in checked):
            checked.add(path)
            try:
                seconds = soundfile.info(items.root / path).duration
            except (soundfile.LibsndfileError, RuntimeError, OSError):
                continue  # told by check_media
            if seconds > samples / rate + 1e-3:
                problems.add(
                    f"{items.root / path}: item {item.id!r}: the audio lasts {seconds:.1f} s, and this model hears the first "
                    f"{samples / rate:.1f} s only; cut it"
                )


def _fault(kind: str, path: Path) -> str | None:
    """What is wrong with one file, with its remedy, or None."""
    if kind not in SUPPORTED:
        return f"{kind} is not supported yet; give its frames as images and its sound track as audio"
    if not path.is_file():
        return f"no such {kind} file; restore it or remove the item"
    if path.stat().st_size == 0:
        return f"the {kind} file is empty; replace it"
    if kind == "image":
        try:
            with Image.open(path) as image:
                image.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return f"the image cannot be decoded ({error}); replace it"
        return None
    missing = _missing_wav_bytes(path)
    if missing:
        return f"the wav file is truncated: its header promises {missing} bytes more than the file holds; copy it again"
    try:
        samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        return f"the audio cannot be decoded ({error}); replace it"
    if len(samples) == 0:
        return "the audio has no samples; replace it"
    bad = int((~np.isfinite(samples)).sum())
    if bad:
        return f"the audio has {bad} samples that are not finite; write it again without NaN or infinity"
    return None


def _missing_wav_bytes(path: Path) -> int:
    """Bytes that a RIFF file's chunk headers promise and the file does not hold; 0 for other formats.

    Decoders read what is there and say nothing, so a half-copied recording would pass as a short one.
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        if handle.read(4) != b"RIFF" or size < 12:
            return 0
        position = 12
        while position + 8 <= size:
            handle.seek(position)
            name, length = struct.unpack("<4sI", handle.read(8))
            if name == b"data":
                return max(0, position + 8 + length - size) if length != 0xFFFFFFFF else 0
            position += 8 + length + (length & 1)
    return max(0, position - size)


class Media:
    """Decodes files on demand and keeps the last ``limit`` of them.

    Args:
        root: what the paths of the items are relative to.
        sampling_rate: in Hz, what audio is resampled to.
        blank: kinds to blank (a control): ``image`` gives mid-grey of its size, ``audio`` silence of its length.
    """

    def __init__(self, root: Path, sampling_rate: int, *, blank: Sequence[str] = (), limit: int = 4096) -> None:
        assert set(blank) <= set(SUPPORTED), blank
        self.root, self.sampling_rate, self.blank, self.limit = root, sampling_rate, blank, limit
        self._kept: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def load(self, kind: str, path: str) -> Any:
        """One decoded image or sound.

        Raises:
            ValueError: naming the file, when it cannot be decoded.
        """
        key = (kind, path)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        fault = _fault(kind, self.root / path)
        if fault:
            raise ValueError(f"{self.root / path}: {fault}")
        value = self._image(self.root / path) if kind == "image" else self._audio(self.root / path)
        self._kept[key] = value
        if len(self._kept) > self.limit:
            self._kept.popitem(last=False)
        return value

    def _image(self, path: Path) -> Image.Image:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
        return Image.new("RGB", rgb.size, (128, 128, 128)) if "image" in self.blank else rgb

    def _audio(self, path: Path) -> np.ndarray:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        mono = samples.mean(axis=1)
        if rate != self.sampling_rate:
            mono = soxr.resample(mono, rate, self.sampling_rate)
        return np.zeros_like(mono) if "audio" in self.blank else mono.astype(np.float32)
