"""Whole files or none: write under a temporary name, flush, rename."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8; a reader sees the old file or the new one, never half of it."""
    _replace(Path(path), lambda p: p.write_text(text, encoding="utf-8"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write ``content``, whole or not at all."""
    _replace(Path(path), lambda p: p.write_bytes(content))


def write_json(path: str | Path, value: Any) -> None:
    """Write strict JSON (NaN and infinity are refused: they would not read back elsewhere)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all."""
    ready = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    _replace(Path(path), lambda p: save_file(ready, p, metadata=dict(metadata or {})))


def write_in_place(path: str | Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` make a file under a temporary name and put it in its place, whole or not at all."""
    _replace(Path(path), write)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A directory to fill, which takes the place of ``folder`` once it is left without an error; a start that was killed leaves it hidden."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def link_files(paths: Iterable[Path], directory: Path) -> None:
    """Have these files in ``directory`` too: the same ones where the file system allows it, else copies."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in paths:
        _replace(directory / path.name, lambda p, path=path: _link(path, p))


def _link(path: Path, place: Path) -> None:
    try:
        os.link(path, place)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(path, place)


def read_json(path: str | Path) -> Any:
    """Read one JSON file.

    Raises:
        ValueError: when the file is not JSON, with the way out.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}); delete it and run the same command again") from error
