"""Whole files or none: write under a temporary name, flush, rename; and what is said where a file cannot be written."""

from __future__ import annotations

import difflib
import errno
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_ALLOWED = {errno.EROFS, errno.EACCES, errno.EPERM}
FAILING = {errno.EIO, errno.ESTALE}
AGAIN = "delete it and run the same command again"
"""the remedy for a file that a run makes anew"""
UMASK = os.umask(0)
os.umask(UMASK)


class WriteError(OSError):
    """What could not be written (``filename``), and why (``strerror``)."""


@contextmanager
def writing(path: Path, size: int | None = None) -> Iterator[None]:
    """Inside, ``path`` is written, whoever does it: safetensors and torch have errors of their own for a disk that is full.

    Args:
        size: bytes to be written, where they are known.

    Raises:
        WriteError: where the disk, or the right to write, is lacking.
    """
    try:
        yield
    except WriteError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        number = _number(error)
        elsewhere = isinstance(error, OSError) and error.filename and not _belongs_to(Path(os.fsdecode(error.filename)), path)
        if elsewhere or number not in NO_ROOM | NOT_ALLOWED | FAILING:
            raise
        reason = os.strerror(number) + (", it seems" if isinstance(error, RuntimeError) else "")
        if number in NO_ROOM:
            needed = "" if size is None else f", {format_bytes(size)} needed"
            reason += f" ({format_bytes(free_bytes(path))} free there{needed})"
        raise WriteError(number, reason, str(path)) from error


def _belongs_to(found: Path, path: Path) -> bool:
    """Whether ``found`` is what is written, lies below it or, under a temporary name, beside it, or is a directory that it needs."""
    found, path = found.absolute(), path.absolute()
    if path.is_relative_to(found):
        return True
    if not found.is_relative_to(path.parent):
        return False
    beside = found.relative_to(path.parent).parts[0]
    return beside == path.name or beside.startswith(f".{path.name}.")


def _number(error: Exception) -> int:
    """The ``errno`` of a failed write; 0 where it is another error."""
    if isinstance(error, OSError):
        return error.errno or 0
    if isinstance(error, SafetensorError):
        found = re.search(r"\(os error (\d+)\)", str(error))
        return int(found[1]) if found else 0
    # torch tells how far it came, not why it came no further
    return errno.ENOSPC if "unexpected pos" in str(error) or "PytorchStreamWriter" in str(error) else 0


def nearest(path: Path) -> Path:
    """The path, or the lowest directory above it that exists."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def near_sibling(path: Path) -> str:
    """``; did you mean PATH?`` where something beside a path that is not there has nearly its name; empty otherwise."""
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1)
    return f"; did you mean {str(path.parent / near[0])!r}?" if near else ""


def wait_for_file(path: Path, seconds: float = 60) -> None:
    """Wait until a file that another process has written is seen here: a network file system may remember for a while that it was not there."""
    until = time.monotonic() + seconds
    while not path.is_file() and time.monotonic() < until:
        time.sleep(0.1)
        list(path.parent.iterdir())  # which makes most of them look again


def free_bytes(path: Path) -> int:
    """Bytes that may still be written where ``path`` lies, or would lie."""
    return shutil.disk_usage(nearest(path)).free


def size_of(path: Path) -> int:
    """Bytes of a file; 0 of what is none, or gone meanwhile."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def format_bytes(n: float) -> str:
    """Bytes, in KiB, MiB or GiB."""
    return f"{n / 2**30:,.1f} GiB" if n >= 2**30 else f"{n / 2**20:,.1f} MiB" if n >= 2**20 else f"{n / 2**10:,.1f} KiB"


def remove_leftovers(directory: Path) -> None:
    """Remove what a process that was killed was just writing; nobody else may be writing there."""
    for path in directory.rglob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def apply_umask(*paths: Path) -> None:
    """Give files the rights that the user's other files get: safetensors makes its own for the user alone."""
    for path in paths:
        path.chmod(0o666 & ~UMASK)


def flush(folder: Path) -> None:
    """Have the files below a folder on the disk: a node that is lost takes along what was not."""
    for path in (p for p in folder.rglob("*") if p.is_file()):
        with suppress(FileNotFoundError), path.open("rb") as handle:  # another process may be giving it its name
            os.fsync(handle.fileno())


def replace_file(path: Path, write: Callable[[Path], object], size: int | None = None) -> None:
    """Have ``write`` fill a temporary file beside ``path``, flush it, and put it in the place of ``path``; ``size``: bytes that it will take."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    with writing(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8; a reader sees the old file or the new one, never half of it."""
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write ``content``, whole or not at all."""
    replace_file(Path(path), lambda p: p.write_bytes(content), len(content))


def write_json(path: str | Path, value: Any) -> None:
    """Write strict JSON (NaN and infinity are refused: they would not read back elsewhere)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_in_place(path: str | Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` make a file under a temporary name and put it in its place, whole or not at all."""

    def write_for_others(place: Path) -> None:
        write(place)
        apply_umask(place)

    replace_file(Path(path), write_for_others)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A directory to fill, which takes the place of ``folder`` once it is left without an error; a start that was killed leaves it hidden."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    with writing(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            yield temporary
            apply_umask(*temporary.rglob("*.safetensors"))
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def link_files(paths: Iterable[Path], directory: Path) -> None:
    """Have these files in ``directory`` too: the same ones where the file system allows it, else copies."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in paths:
        replace_file(directory / path.name, lambda p, path=path: _link(path, p))


def _link(path: Path, place: Path) -> None:
    try:
        os.link(path, place)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(path, place)


def read_json(path: str | Path, *needs: str, kind: type = dict) -> Any:
    """Read one JSON file.

    Args:
        needs: keys that it must have. kind: of the value, dict or list.

    Raises:
        ValueError: when the file is not there, not JSON or something else than is looked for, with the way out.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is not there; run the command again that writes it") from error
    except (ValueError, RecursionError) as error:  # of JSON and of UTF-8
        raise ValueError(f"{path}: not JSON ({error}); {AGAIN}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path}: holds {type(value).__name__}, not {kind.__name__}; {AGAIN}")
    if lacking := [key for key in needs if key not in value]:
        raise ValueError(f"{path}: has no {', '.join(lacking)}; {AGAIN}")
    return value
