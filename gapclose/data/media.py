"""Media: checked before a model loads, decoded once per file, shared by all questions of a clip.

Images are RGB :class:`PIL.Image.Image`, audio is float32 mono ``(samples,)`` at the model's
sampling rate, videos are :class:`gapclose.data.video.Video`. An audio part that names a video means
its sound track.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gapclose.core.errors import ErrorCollector, ItemError
from gapclose.data.audio import read_audio
from gapclose.data.containers import undecodable
from gapclose.data.images import read_image
from gapclose.data.item_set import Decoding, Framing, ItemSet
from gapclose.data.items import Item
from gapclose.data.media_cache import MediaCache
from gapclose.data.video import Video, read_video

SUPPORTED = ("image", "audio", "video")
MOST_SKIPPED = 0.01
"""share of the items that ``data.on_error: skip`` may leave out"""


@dataclass(frozen=True)
class Survey:
    """Every media file of a set, decoded once; keys are ``(kind, path)``."""

    faults: dict[tuple[str, str], str]
    """fault and remedy of missing, truncated, empty, silent, corrupt and not finite files"""
    sizes: dict[tuple[str, str], tuple[float, ...]]
    """of the other files: width and height in pixels, or length in seconds, as decoded"""


def survey(items: ItemSet) -> Survey:
    """Decode every media file of the set once."""

    def look(entry: tuple[str, str]) -> str | tuple[float, ...]:
        kind, path = entry
        try:
            if kind == "video":  # no model's sampling rate is needed, so the cache can keep it
                film = decode_once(kind, path, items.root, None, items.framing, cache)
                return film.frames.shape[2], film.frames.shape[1]
            value, rate = _decode(kind, items.root / path, None, items.framing)
        except ItemError as error:
            return str(error)
        return value.size if kind == "image" else (len(value) / rate,)

    cache = _cache(items.decoding)
    entries = list(dict.fromkeys(entry for item in items for entry in item.media))
    with ThreadPoolExecutor(max_workers=max(1, items.decoding.workers)) as pool:
        seen = dict(zip(entries, pool.map(look, entries), strict=True))
    faults = {entry: found for entry, found in seen.items() if isinstance(found, str)}
    return Survey(faults, {entry: found for entry, found in seen.items() if not isinstance(found, str)})


def faults(items: ItemSet) -> dict[tuple[str, str], str]:
    """Return :attr:`Survey.faults` of the set."""
    return survey(items).faults


def report_faults(items: ItemSet, found: Mapping[tuple[str, str], str], problems: ErrorCollector) -> None:
    """Add one line per faulty media file to ``problems``, with the first item that uses it."""
    gone: set[str] = set()
    for entry, fault in found.items():
        if entry[1] in gone:
            continue  # a missing video is not reported again for its audio
        gone |= set() if _is_file(items.root / entry[1]) else {entry[1]}
        user = next(i.id for i in items if entry in i.media)
        problems.add(f"{items.root / entry[1]}: item {user!r}: {fault}")


def drop_faulty(items: ItemSet, found: Mapping[tuple[str, str], str], problems: ErrorCollector) -> ItemSet:
    """Return the items whose media are usable; the others go to ``skipped``, each with its fault.

    More than 1 % of them is a problem.
    """
    skipped = {i.id: f"{items.root / e[1]}: {found[e]}" for i in items for e in reversed(i.media) if e in found}
    if len(skipped) > MOST_SKIPPED * len(items):
        ident, fault = next(iter(skipped.items()))
        problems.add(
            f"{len(skipped)} of {len(items)} items have media that cannot be used, and data.on_error skip leaves out {MOST_SKIPPED:.0%} at "
            f"most (first: item {ident!r}: {fault}); fix them; data.on_error raise lists all"
        )
    return replace(items, items=tuple(i for i in items if i.id not in skipped), skipped=tuple(skipped.items()))


def decode(kind: str, path: Path, rate: int | None, framing: Framing) -> Any:
    """Decode one image, audio file or video.

    Args:
        rate: in Hz, to which audio is resampled; None keeps its own.

    Raises:
        ItemError: with the fault of the file and the remedy.
    """
    return _decode(kind, path, rate, framing)[0]


def _decode(kind: str, path: Path, rate: int | None, framing: Framing) -> tuple[Any, int]:
    """As :func:`decode`, with the sampling rate of audio (0 for other kinds)."""
    if not _is_file(path):
        raise ItemError(f"no such {kind} file; restore it or remove the item")
    try:
        if path.stat().st_size == 0:
            raise ItemError(f"the {kind} file is empty; replace it")
        if kind == "audio":
            return read_audio(path, rate)
        return (read_image(path) if kind == "image" else read_video(path, framing)), 0
    except ItemError:
        raise
    except Exception as error:  # damaged files make decoders raise errors of any kind
        raise undecodable("film" if kind == "video" else kind, error) from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # an impossible file name
        return False


def decode_once(kind: str, path: str, root: Path, rate: int | None, framing: Framing, cache: MediaCache | None) -> Any:
    """As :func:`decode`, through the cache. Errors are not cached."""
    file = root / path
    if cache is None or not _is_file(file):
        return decode(kind, file, rate, framing)
    try:
        place = cache.place(kind, file, rate, framing)
    except OSError as error:
        raise ItemError(f"the {kind} file cannot be read ({error.strerror or error}); restore it") from error
    value = cache.get(place)
    if value is None:
        value = decode(kind, file, rate, framing)
        cache.put(place, value)
    return value


def _cache(decoding: Decoding) -> MediaCache | None:
    return MediaCache(decoding.cache, decoding.cache_gb) if decoding.cache else None


class MediaLoader:
    """Decodes files on demand, or ahead in threads, and keeps the most recent ones.

    It uses threads because PyAV, Pillow, libsndfile and soxr let other threads run while they
    decode. Processes would have to copy the data, and a fork would conflict with torch's own
    threads. The loaded values do not depend on the thread or the time of decoding.

    Args:
        root: directory that the items' paths are relative to.
        sampling_rate: in Hz, to which audio is resampled.
        framing: how videos are shown.
        decoding: threads, and the directory of decoded media.
        blank: kinds to blank (a control): ``image`` and ``video`` become mid-grey of the same size,
            ``audio`` becomes silence of the same length.
        limit, most_bytes: most files, and most bytes, to keep.
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
        """Start to decode the media of these items; :meth:`load` raises any error."""
        for item in items:
            for entry in item.media:
                self._users.setdefault(entry[1], item.id)
                if self._pool and entry not in self._kept and entry not in self._ahead:
                    self._ahead[entry] = self._pool.submit(self._decode, *entry)

    def _decode(self, kind: str, path: str) -> Any:
        return decode_once(kind, path, self.root, self.sampling_rate, self.framing, self._cache)

    def load(self, kind: str, path: str) -> Any:
        """Return one decoded image, audio array or video.

        Raises:
            ValueError: when it cannot be decoded, with the file, and with the item if :meth:`ahead`
                announced it.
        """
        key = (kind, path)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        try:
            begun = self._ahead.pop(key, None)
            value = begun.result() if begun else self._decode(kind, path)
        except ItemError as error:
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
    """Return mid-grey of the same size, or silence of the same length."""
    if isinstance(value, Video):
        return Video(frames=np.full_like(value.frames, 128), seconds=value.seconds)
    return Image.new("RGB", value.size, (128, 128, 128)) if isinstance(value, Image.Image) else np.zeros_like(value)


def _size(value: Any) -> int:
    """Bytes in memory."""
    return 3 * value.width * value.height if isinstance(value, Image.Image) else value.nbytes
