"""Media: checked before a model loads, decoded once per file, shared by all questions of a clip.

Images come out as RGB :class:`PIL.Image.Image`, audio as float32 mono arrays ``(samples,)`` at the model's sampling rate, films as
:class:`gapclose.films.Film`. An audio part that names a film means its sound track.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from PIL import Image, ImageOps

from gapclose.errors import Fault, Problems
from gapclose.families import longest_sound, part_for
from gapclose.films import Film, is_film, read_film, read_track, refuse_short, track_seconds
from gapclose.items import Decoding, Framing, Item, ItemSet
from gapclose.media_cache import MediaCache
from gapclose.truncated import promised_beyond

SUPPORTED = ("image", "audio", "video")
MOST_SKIPPED = 0.01
"""share of the items that ``data.on_error: skip`` may leave out"""
DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""modes of Pillow with more than 8 bits a channel: turned into RGB as they are, nearly all of their values would be cut off"""
BITS_PER_SAMPLE = 258
"""tag of a TIFF; Pillow opens colours of 16 bits as of 8"""
PAGED = ("TIFF", "GIF", "WEBP", "PNG")
"""formats whose files may hold several pictures, all of them meant (a JPEG may hold a preview of itself)"""
SILENT = 1e-5
"""a sound that stays below it (full scale is 1; one step of 16 bits is 3e-5) says nothing"""


def faults(items: ItemSet) -> dict[tuple[str, str], str]:
    """Decode every media file of the set once: ``(kind, path)`` -> what is wrong with it and the remedy, for those that are missing,
    truncated, empty, silent, corrupt or not finite."""

    def fault(entry: tuple[str, str]) -> str | None:
        try:
            if entry[0] == "video":  # the one kind that needs no model to be decoded for good
                decode_once(*entry, items.root, None, items.framing, cache)
            else:
                decode(entry[0], items.root / entry[1], None, items.framing)
        except Fault as error:
            return str(error)
        return None

    cache = _cache(items.decoding)
    entries = list(dict.fromkeys(entry for item in items for entry in item.media))
    with ThreadPoolExecutor(max_workers=max(1, items.decoding.workers)) as pool:
        return {entry: found for entry, found in zip(entries, pool.map(fault, entries), strict=True) if found}


def too_long(items: ItemSet, processor: Any) -> dict[tuple[str, str], str]:
    """Every sound that is longer than what the model's feature extractor takes in, with the remedy; the rest would be dropped silently."""
    samples, rate = longest_sound(processor), getattr(part_for(processor, "audio"), "sampling_rate", None)
    if not samples or not rate:
        return {}
    most, found = samples / rate, {}
    for path in dict.fromkeys(p for item in items for kind, p in item.media if kind == "audio"):
        seconds = _seconds(items.root / path)
        if seconds > 1.001 * most:  # a container states its length in coarse steps
            found["audio", path] = f"the audio lasts {seconds:.1f} s, and this model hears the first {most:.1f} s only; cut it"
    return found


def tell(items: ItemSet, found: Mapping[tuple[str, str], str], problems: Problems) -> None:
    """Add what is wrong with media files to ``problems``: one line per file, naming the first item that uses it and the remedy."""
    gone: set[str] = set()
    for entry, fault in found.items():
        if entry[1] in gone:
            continue  # a film that is missing to the eye is missing to the ear
        gone |= set() if (items.root / entry[1]).is_file() else {entry[1]}
        user = next(i.id for i in items if entry in i.media)
        problems.add(f"{items.root / entry[1]}: item {user!r}: {fault}")


def without(items: ItemSet, found: Mapping[tuple[str, str], str], problems: Problems) -> ItemSet:
    """The items whose media are whole; the others go to ``skipped``, each with its fault. More than 1 % of them is a problem."""
    skipped = {i.id: f"{items.root / e[1]}: {found[e]}" for i in items for e in reversed(i.media) if e in found}
    if len(skipped) > MOST_SKIPPED * len(items):
        ident, fault = next(iter(skipped.items()))
        problems.add(
            f"{len(skipped)} of {len(items)} items have media that cannot be used, and data.on_error skip leaves out {MOST_SKIPPED:.0%} at "
            f"most (first: item {ident!r}: {fault}); mend them; data.on_error raise lists all"
        )
    return replace(items, items=tuple(i for i in items if i.id not in skipped), skipped=tuple(skipped.items()))


def _seconds(path: Path) -> float:
    """Length of a sound by its header, or, where that has none (as recorders of live sound write it), of what is decoded; 0 where it cannot
    be read, which whoever decodes it will tell."""
    try:
        stated = track_seconds(path) if is_film(path) else soundfile.info(path).duration
        return stated or len(_audio(path, 16_000)) / 16_000
    except (soundfile.LibsndfileError, RuntimeError, OSError, Fault):
        return 0.0


def decode(kind: str, path: Path, rate: int | None, framing: Framing) -> Any:
    """One image, sound or film.

    Args:
        rate: in Hz, what a sound is resampled to; None leaves it.

    Raises:
        Fault: what is wrong with the file, and the remedy.
    """
    if not path.is_file():
        raise Fault(f"no such {kind} file; restore it or remove the item")
    if path.stat().st_size == 0:
        raise Fault(f"the {kind} file is empty; replace it")
    if kind == "image":
        return _image(path)
    return read_film(path, framing) if kind == "video" else _audio(path, rate)


def decode_once(kind: str, path: str, root: Path, rate: int | None, framing: Framing, cache: MediaCache | None) -> Any:
    """:func:`decode`, unless the cache has it. Raises: as it does; faults are not kept."""
    file = root / path
    if cache is None or not file.is_file():
        return decode(kind, file, rate, framing)
    place = cache.place(kind, file, rate, framing)
    value = cache.get(place)
    if value is None:
        value = decode(kind, file, rate, framing)
        cache.put(place, value)
    return value


def _cache(decoding: Decoding) -> MediaCache | None:
    return MediaCache(decoding.cache, decoding.cache_gb) if decoding.cache else None


def _image(path: Path) -> Image.Image:
    """RGB, turned as its EXIF note asks for; what shines through is laid on white."""
    try:
        with Image.open(path) as image:
            if image.mode in DEEP or (bits := _bits(image, path)) > 8:
                what = f"Pillow's mode {image.mode}" if image.mode in DEEP else f"{bits}, in {image.format}"
                raise Fault(
                    f"the image has more than 8 bits a channel ({what}), which would be cut off; write it as 8 bits, windowed as you want it seen"
                )
            if image.format in PAGED and (count := getattr(image, "n_frames", 1)) > 1:
                raise Fault(
                    f"the file holds {count} pictures, and only the first would be shown; give each a file of its own, or make a film"
                )
            upright = ImageOps.exif_transpose(image)
            if not upright.has_transparency_data:
                return upright.convert("RGB")
            clear = upright.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    except Fault:
        raise
    except (OSError, SyntaxError, ValueError, TypeError, struct.error, Image.DecompressionBombError) as error:
        raise Fault(f"the image cannot be decoded ({error}); replace it") from error


def _bits(image: Image.Image, path: Path) -> int:
    """Bits a channel that the file of an opened image has."""
    if image.format == "PNG":
        with path.open("rb") as handle:
            return handle.read(25)[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(BITS_PER_SAMPLE, (1,)))  # pyright: ignore[reportAttributeAccessIssue]
    return 8


def _audio(path: Path, rate: int | None) -> np.ndarray:
    """(samples,) float32, mono."""
    if is_film(path):
        mono = read_track(path, rate or 16_000)
    else:
        mono, own = _sound_file(path)
        if rate and own != rate:
            mono = soxr.resample(mono, own, rate)
    if np.abs(mono).max() < SILENT:
        raise Fault("the audio is silent throughout; replace it, or, where silence is meant, give it faint noise")
    return mono.astype(np.float32)


def _sound_file(path: Path) -> tuple[np.ndarray, int]:
    if lacking := promised_beyond(path):
        raise Fault(f"the audio is truncated: {lacking}; copy it again")
    try:
        with soundfile.SoundFile(path) as sound:
            rate, stated = sound.samplerate, sound.frames
            samples = sound.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise Fault(f"the audio cannot be decoded ({error}); replace it") from error
    if len(samples) == 0:
        raise Fault("the audio has no samples; replace it")
    refuse_short(len(samples) / rate, stated / rate, "audio")  # an mp3 says how many there are
    bad = int((~np.isfinite(samples)).sum())
    if bad:
        raise Fault(f"the audio has {bad} samples that are not finite; write it again without NaN or infinity")
    return samples.mean(axis=1), rate


class Media:
    """Decodes files on demand, or ahead in threads, and keeps the last ``limit`` of them, ``most_bytes`` at most.

    In threads, not processes: PyAV, Pillow, libsndfile and soxr let other threads run while they decode, nothing has to be copied between
    processes, and a fork would meet torch's own threads. What is loaded does not depend on who decoded it, or when.

    Args:
        root: what the paths of the items are relative to.
        sampling_rate: in Hz, what audio is resampled to.
        framing: how films are shown.
        decoding: threads, and the directory of decoded media.
        blank: kinds to blank (a control): ``image`` and ``video`` give mid-grey of their size, ``audio`` silence of its length.
    """

    def __init__(
        self,
        root: Path,
        sampling_rate: int,
        *,
        framing: Framing | None = None,
        decoding: Decoding | None = None,
        blank: Sequence[str] = (),
        limit: int = 4096,
        most_bytes: int = 2 << 30,
    ) -> None:
        assert set(blank) <= set(SUPPORTED), blank
        self.root, self.sampling_rate, self.blank, self.limit, self.most_bytes = root, sampling_rate, blank, limit, most_bytes
        self.framing, decoding = framing or Framing(), decoding or Decoding(workers=0)
        self._cache, self._users = _cache(decoding), dict[str, str]()
        self._pool = ThreadPoolExecutor(decoding.workers, "media") if decoding.workers else None
        self._ahead: dict[tuple[str, str], Future[Any]] = {}
        self._kept: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._bytes = 0

    def ahead(self, items: Iterable[Item]) -> None:
        """Begin to decode what these items will ask for; a fault is told when they do."""
        for item in items:
            for entry in item.media:
                self._users.setdefault(entry[1], item.id)
                if self._pool and entry not in self._kept and entry not in self._ahead:
                    self._ahead[entry] = self._pool.submit(self._decode, *entry)

    def _decode(self, kind: str, path: str) -> Any:
        return decode_once(kind, path, self.root, self.sampling_rate, self.framing, self._cache)

    def load(self, kind: str, path: str) -> Any:
        """One decoded image, sound or film.

        Raises:
            ValueError: naming the file, and the item where one was announced, when it cannot be decoded.
        """
        key = (kind, path)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        try:
            begun = self._ahead.pop(key, None)
            value = begun.result() if begun else self._decode(kind, path)
        except Fault as error:
            user = f"item {self._users[path]!r}: " if path in self._users else ""
            raise ValueError(f"{self.root / path}: {user}{error}") from error
        if kind in self.blank:
            value = blanked(value)
        self._kept[key] = value
        self._bytes += _size(value)
        while len(self._kept) > 1 and (len(self._kept) > self.limit or self._bytes > self.most_bytes):
            self._bytes -= _size(self._kept.popitem(last=False)[1])
        return value


def blanked(value: Any) -> Any:
    """Mid-grey of the same size, silence of the same length."""
    if isinstance(value, Film):
        return Film(frames=np.full_like(value.frames, 128), seconds=value.seconds)
    return Image.new("RGB", value.size, (128, 128, 128)) if isinstance(value, Image.Image) else np.zeros_like(value)


def _size(value: Any) -> int:
    """Bytes in memory."""
    return 3 * value.width * value.height if isinstance(value, Image.Image) else value.nbytes
