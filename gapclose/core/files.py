"""Write files completely or not at all (temporary name, flush, rename). Explain failed writes."""

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

from gapclose.core.version import __version__

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_ALLOWED = {errno.EROFS, errno.EACCES, errno.EPERM}
FAILING = {errno.EIO, errno.ESTALE}
AGAIN = "delete it and run the same command again"
"""the remedy for a file that a run can create again"""
UMASK = os.umask(0)
os.umask(UMASK)


class WriteError(OSError):
    """A file (``filename``) could not be written, and why (``strerror``)."""


@contextmanager
def writing(path: Path, size: int | None = None) -> Iterator[None]:
    """Translate errors in writing ``path`` inside this context into one type.

    safetensors and torch have error types of their own for a full disk.

    Args:
        size: bytes to be written, where known.

    Raises:
        WriteError: when the disk is full or fails, or writing is not permitted. Other errors pass
            unchanged.
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
    """Whether ``found`` is ``path``, below it, its temporary file, or a directory above it."""
    found, path = found.absolute(), path.absolute()
    if path.is_relative_to(found):
        return True
    if not found.is_relative_to(path.parent):
        return False
    beside = found.relative_to(path.parent).parts[0]
    return beside == path.name or beside.startswith(f".{path.name}.")


def _number(error: Exception) -> int:
    """Return the ``errno`` of a failed write; 0 for another error."""
    if isinstance(error, OSError):
        return error.errno or 0
    if isinstance(error, SafetensorError):
        found = re.search(r"\(os error (\d+)\)", str(error))
        return int(found[1]) if found else 0
    # torch reports how many bytes it wrote, but not why it stopped
    return errno.ENOSPC if "unexpected pos" in str(error) or "PytorchStreamWriter" in str(error) else 0


def nearest(path: Path) -> Path:
    """Return the path, or the lowest existing directory above it."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def near_sibling(path: Path) -> str:
    """``; did you mean PATH?`` where something beside a path that is not there has nearly its name; empty otherwise."""
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1)
    return f"; did you mean {str(path.parent / near[0])!r}?" if near else ""


def wait_for_file(path: Path, seconds: float = 60) -> None:
    """Wait until a file that another process has written is visible here.

    A network file system may cache for a while that the file did not exist.
    """
    until = time.monotonic() + seconds
    while not path.is_file() and time.monotonic() < until:
        time.sleep(0.1)
        list(path.parent.iterdir())  # makes most network file systems look again


def free_bytes(path: Path) -> int:
    """Return the free bytes on the disk of ``path``, which need not exist."""
    return shutil.disk_usage(nearest(path)).free


def size_of(path: Path) -> int:
    """Return the bytes of a file; 0 if there is no such file."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def format_bytes(n: float) -> str:
    """Format a number of bytes in KiB, MiB or GiB."""
    return f"{n / 2**30:,.1f} GiB" if n >= 2**30 else f"{n / 2**20:,.1f} MiB" if n >= 2**20 else f"{n / 2**10:,.1f} KiB"


def remove_leftovers(directory: Path) -> None:
    """Remove unfinished files of a killed process; no other process may be writing there."""
    for path in directory.rglob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def apply_umask(*paths: Path) -> None:
    """Give files the user's default permissions; safetensors lets only the user read its files."""
    for path in paths:
        path.chmod(0o666 & ~UMASK)


def flush(folder: Path) -> None:
    """Flush the files below a folder to disk: a lost node loses data that was not flushed."""
    for path in (p for p in folder.rglob("*") if p.is_file()):
        # another process may be renaming a file
        with suppress(FileNotFoundError), path.open("rb") as handle:
            os.fsync(handle.fileno())


def replace_file(path: Path, write: Callable[[Path], object], size: int | None = None) -> None:
    """Have ``write`` fill a temporary file beside ``path``, flush it, and move it to ``path``.

    Args:
        size: bytes to be written, where known.
    """
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
    """Write ``text`` as UTF-8; a reader sees the old file or the new one, never a part."""
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write ``content`` completely or not at all."""
    replace_file(Path(path), lambda p: p.write_bytes(content), len(content))


def write_json(path: str | Path, value: Any) -> None:
    """Write strict JSON; NaN and infinity are refused, because other programs cannot read them."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_in_place(path: str | Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` fill a temporary file and move it to ``path``, completely or not at all."""

    def write_for_others(place: Path) -> None:
        write(place)
        apply_umask(place)

    replace_file(Path(path), write_for_others)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary directory that replaces ``folder`` when the context ends without an error.

    After a killed process, it remains as a hidden directory.
    """
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
    """Hard-link these files into ``directory``, or copy them where that is impossible."""
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
        needs: required keys. kind: required type of the value, dict or list.

    Raises:
        ValueError: when the file is missing, is not JSON, or has another type or misses a key. The
            message names the remedy.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is not there; run the command again that writes it") from error
    except (ValueError, RecursionError) as error:  # errors of JSON and of UTF-8
        raise ValueError(f"{path}: not JSON ({error}); {AGAIN}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path}: holds {type(value).__name__}, not {kind.__name__}; {AGAIN}")
    if lacking := [key for key in needs if key not in value]:
        raise ValueError(f"{path}: has no {', '.join(lacking)}; {AGAIN}")
    return value


def read_versioned(path: str | Path, version: int, remedy: str, *needs: str) -> dict[str, Any]:
    """Read a JSON object of a given form.

    Args:
        version: what its ``version`` must be. remedy: what to do about another.
        needs: required keys.

    Raises:
        ValueError: as :func:`read_json`, and for another version.
    """
    found = read_json(path, *needs)
    if found.get("version") != version:
        raise ValueError(f"{path} has version {found.get('version')!r} and this gapclose ({__version__}) reads version {version}; {remedy}")
    return found
