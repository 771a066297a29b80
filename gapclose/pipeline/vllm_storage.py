"""Where vLLM leaves hidden states for the monitor: a private directory in memory, and how it is kept small."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

STORAGE = "GAPCLOSE_STORAGE"
"""environment variable with the directory, for ``vllm serve``; needed where it is not the default"""
KEPT = 600.0
"""seconds after which a file that no request has removed is left over"""
SWEPT = 60.0
"""seconds between two looks for such files"""
NAMES = ("*.safetensors", "*.safetensors.lock")
"""files of vLLM; :func:`sweep` removes no others"""


def default_storage() -> Path:
    """The directory of this user, in memory."""
    return Path("/dev/shm") / f"gapclose-{os.getuid()}"


def private_directory(path: Path) -> Path:
    """Make a directory that only this user can enter, or check that it is one. Return it.

    Hidden states tell what was asked.

    Raises:
        ValueError: when it exists and is no directory, belongs to another user, or others may enter it.
    """
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except FileNotFoundError as error:
        raise ValueError(f"{path}: {path.parent} does not exist; name another directory (--storage)") from error
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise ValueError(f"{path}: no directory; hidden states need one that only you can enter")
    if found.st_uid != os.getuid():
        raise ValueError(f"{path} belongs to user {found.st_uid}, not to you ({os.getuid()}); name another directory (--storage)")
    if (mode := stat.S_IMODE(found.st_mode)) & 0o077:
        raise ValueError(f"{path} has mode {mode:04o}, so that others may read the hidden states of requests; give it 0700, or delete it")
    return path


def sweep(folder: Path, begun: float | None = None) -> int:
    """Remove the files of requests that failed or were aborted; return how many.

    Args:
        begun: time at which the oldest request in progress began, in seconds since the epoch. What is
            newer is left, since such a request may still be read.
    """
    before, removed = time.time() - KEPT, 0
    before = before if begun is None else min(before, begun)
    for path in [path for pattern in NAMES for path in folder.glob(pattern)]:
        try:
            if path.lstat().st_mtime < before:
                path.unlink()
                removed += 1
        except FileNotFoundError:  # its own request has removed it
            continue
    return removed
