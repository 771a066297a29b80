"""Decoded media on disk, shared by questions, observations and runs; keyed by content and decoding.

A cache file is safetensors, written completely or not at all. When the directory exceeds its limit,
the least recently used files are removed. Several processes may share a directory: if one removes a
file, another decodes it again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from gapclose.core.files import write_in_place
from gapclose.core.hashing import content_digest
from gapclose.data.containers import is_film
from gapclose.data.item_set import Framing
from gapclose.data.video import Video

FORMAT = 4
"""version of storage and decoding; files of other versions are not found"""
DECODERS = {"image": ("pillow",), "video": ("av",), "film sound": ("av", "soxr"), "audio": ("soundfile", "soxr", "av")}
"""packages that decode a kind; another version may give other samples"""


class MediaCache:
    """A directory of decoded media.

    Args:
        directory: created if missing.
        gigabytes: limit of all its files together.
    """

    def __init__(self, directory: Path, gigabytes: float) -> None:
        self.directory, self.most_bytes = directory, int(gigabytes * 1e9)

    def place(self, kind: str, path: Path, rate: int | None, framing: Framing) -> Path:
        """Return the path of a file's decoded form, which need not exist."""
        by = "film sound" if kind == "audio" and is_film(path) else kind
        how: list[Any] = [FORMAT, by, rate if kind == "audio" else None, [framing.frames, framing.side] if kind == "video" else None]
        how += [_version(name) for name in DECODERS[by]]
        digest = hashlib.sha256(json.dumps([content_digest(path).hex(), how]).encode()).hexdigest()
        return self.directory / f"{digest[:40]}.safetensors"

    def get(self, place: Path) -> Any:
        """Return the value at ``place`` and mark it as used, or None.

        None means that it is missing, unreadable or damaged. Damaged files are removed. In another
        user's directory, files that cannot be marked or removed stay.
        """
        try:
            value = _value(load_file(place))
        except OSError:  # missing, or not readable for us
            return None
        except (SafetensorError, KeyError, IndexError, TypeError, ValueError):
            with suppress(OSError):
                place.unlink()
            return None
        with suppress(OSError):
            os.utime(place)
        return value

    def put(self, place: Path, value: Any) -> None:
        """Store a decoded file, then remove the least recently used files beyond the limit.

        A value that alone exceeds the limit is not stored.
        """
        if isinstance(value, Video):
            tensors = {"frames": value.frames, "seconds": np.array([value.seconds])}
        else:
            tensors = {"image": np.asarray(value)} if isinstance(value, Image.Image) else {"sound": value}
        if sum(t.nbytes for t in tensors.values()) > self.most_bytes:
            return
        write_in_place(place, lambda p: save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, p))
        self._shrink()

    def _shrink(self) -> None:
        held = []
        for entry in os.scandir(self.directory):
            if entry.name.endswith(".safetensors"):
                try:
                    facts = entry.stat()
                except FileNotFoundError:  # another process has removed it
                    continue
                held.append((facts.st_mtime_ns, facts.st_size, entry.path))
        excess = sum(size for _, size, _ in held) - self.most_bytes
        for _, size, path in sorted(held):
            if excess <= 0:
                return
            Path(path).unlink(missing_ok=True)
            excess -= size


def _value(tensors: dict[str, np.ndarray]) -> Any:
    """Return the stored value.

    Raises:
        KeyError, IndexError, TypeError, ValueError: when these are not the tensors of a decoded
            file.
    """
    if "frames" in tensors:
        return Video(frames=tensors["frames"], seconds=float(tensors["seconds"][0]))
    return Image.fromarray(tensors["image"]) if "image" in tensors else tensors["sound"]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
