"""Files of a run, checked when they are read: tensors with checksums, and complete folders.

Errors name file and remedy.

safetensors detects a truncated file, but not changed bytes. So the header of a run's tensor file
holds the CRC-32 of every tensor.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gapclose.core.files import AGAIN, apply_umask, read_json, replace_file, write_json


def checksum(tensor: torch.Tensor) -> int:
    """Return the CRC-32 of a tensor's bytes."""
    return zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def write_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, completely or not at all, with checksums (``crc32``) in its header."""
    ready = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    size = sum(v.nbytes for v in ready.values())
    sums = {"crc32": json.dumps({name: checksum(tensor) for name, tensor in ready.items()})}

    def write(place: Path) -> None:
        save_file(ready, place, metadata={**(metadata or {}), **sums})
        apply_umask(place)

    replace_file(Path(path), write, size)


CHUNK = 1 << 22
"""bytes of a file that are read at once"""
WHOLE = "complete.json"
"""written last into a folder, with the length and checksum of every other file"""


class Damaged(ValueError):
    """A file of a run is missing or changed; the message names the remedy."""


@contextmanager
def reading(path: Path, remedy: str = AGAIN) -> Iterator[None]:
    """Translate errors in reading one file of tensors; use this context for nothing else.

    Raises:
        Damaged: when the file is missing or differs from what was written, with ``remedy``.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise Damaged(f"{path} is not there; {remedy.replace('delete it and ', '')}") from error
    except OSError as error:
        if error.errno is not None:  # an error of the file system, not of the file
            raise
        raise Damaged(f"{path} is damaged ({error}); {remedy}") from error
    except Damaged:
        raise
    except (SafetensorError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged ({_in_a_line(error)}); {remedy}") from error


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{error}".split()) or type(error).__name__


def read_tensor(file: Any, name: str) -> torch.Tensor:
    """Return one tensor of an open safetensors file.

    Raises:
        ValueError: when its checksum differs from the stored one. The message does not name the
            file.
    """
    tensor, known = file.get_tensor(name), json.loads((file.metadata() or {}).get("crc32", "{}"))
    if name in known and checksum(tensor) != known[name]:
        raise ValueError(f"the checksum of {name} is not that of what was written")
    return tensor


def read_tensors(path: Path, remedy: str = AGAIN) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return all tensors of a file, and the metadata of its header.

    Raises:
        Damaged: as :func:`reading`.
    """
    with reading(path, remedy), safe_open(path, framework="pt") as file:
        return {name: read_tensor(file, name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (a safetensors file is no dict)


def seal(folder: Path, **facts: Any) -> None:
    """Record that a folder is complete, with ``facts`` and the length and checksum of its files."""
    files = {str(p.relative_to(folder)): _like(p) for p in sorted(folder.rglob("*")) if p.is_file() and p.name != WHOLE}
    write_json(folder / WHOLE, facts | {"files": files})


def damage(folder: Path) -> str | None:
    """Describe what is wrong with a sealed folder, with the file's name.

    Return None if nothing is, or if the folder was never sealed.
    """
    path = folder / WHOLE
    if not path.is_file():
        return None
    try:
        known = read_json(path).get("files", {})
        if not isinstance(known, dict):
            return f"{path} is damaged (files is {known!r})"
    except ValueError as error:
        return str(error).partition(";")[0]
    for name, like in known.items():
        if not (folder / name).is_file():
            return f"{folder / name} is not there"
        if (found := _like(folder / name)) != like:
            return f"{folder / name} is damaged ({found[0]} bytes with checksum {found[1]}, {like[0]} with {like[1]} were written)"
    return None


def refuse_damaged(folder: Path, remedy: str) -> None:
    """Raise :class:`Damaged` with the result of :func:`damage` and ``remedy``, if there is any."""
    if found := damage(folder):
        raise Damaged(f"{found}; {remedy}")


def _like(path: Path) -> list[int]:
    """Return the length in bytes and the CRC-32."""
    found = 0
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK):
            found = zlib.crc32(chunk, found)
        return [handle.tell(), found]
