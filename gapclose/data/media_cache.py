"""Decoded media on disk, shared by questions, observations and runs: found by a file's content and by how it is decoded.

A file of the cache is safetensors, written whole or not at all; the least recently used ones go when the directory grows beyond its bound.
Several processes may share a directory: what one has just removed, another decodes again.
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
"""of what is stored and how it is decoded here; another number makes older files strangers"""
DECODERS = {"image": ("pillow",), "video": ("av",), "film sound": ("av", "soxr"), "audio": ("soundfile", "soxr", "av")}
"""packages by which a kind is decoded: another version may give other samples"""


class MediaCache:
    """A directory of decoded media.

    Args:
        directory: made where it is missing.
        gigabytes: what its files may take together.
    """

    def __init__(self, directory: Path, gigabytes: float) -> None:
        self.directory, self.most_bytes = directory, int(gigabytes * 1e9)

    def place(self, kind: str, path: Path, rate: int | None, framing: Framing) -> Path:
        """Where the decoded form of a file lies, or would lie."""
        by = "film sound" if kind == "audio" and is_film(path) else kind
        how: list[Any] = [FORMAT, by, rate if kind == "audio" else None, [framing.frames, framing.side] if kind == "video" else None]
        how += [_version(name) for name in DECODERS[by]]
        digest = hashlib.sha256(json.dumps([content_digest(path).hex(), how]).encode()).hexdigest()
        return self.directory / f"{digest[:40]}.safetensors"

    def get(self, place: Path) -> Any:
        """What lies there, marked as used; None where nothing does that can be read, or what does is damaged (it is then removed).

        In a directory of somebody else's, what may not be marked or removed stays as it is.
        """
        try:
            value = _value(load_file(place))
        except OSError:  # not there, or not to be read by us
            return None
        except (SafetensorError, KeyError, IndexError, TypeError, ValueError):
            with suppress(OSError):
                place.unlink()
            return None
        with suppress(OSError):
            os.utime(place)
        return value

    def put(self, place: Path, value: Any) -> None:
        """Store a decoded file, then remove what was not used for longest while there is too much; nothing where it alone is too much."""
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
                except FileNotFoundError:  # another process was quicker
                    continue
                held.append((facts.st_mtime_ns, facts.st_size, entry.path))
        excess = sum(size for _, size, _ in held) - self.most_bytes
        for _, size, path in sorted(held):
            if excess <= 0:
                return
            Path(path).unlink(missing_ok=True)
            excess -= size


def _value(tensors: dict[str, np.ndarray]) -> Any:
    """What was stored. Raises: KeyError, IndexError, TypeError or ValueError, when these are not the tensors of a decoded file."""
    if "frames" in tensors:
        return Video(frames=tensors["frames"], seconds=float(tensors["seconds"][0]))
    return Image.fromarray(tensors["image"]) if "image" in tensors else tensors["sound"]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
