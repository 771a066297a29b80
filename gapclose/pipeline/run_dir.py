"""The directory of a run: its lock, its environment, and its binding to an item set."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import BaseFileLock, FileLock, Timeout

from gapclose.core.distributed import engine_given
from gapclose.core.files import read_json, write_json, write_text, writing
from gapclose.core.logging import get_logger
from gapclose.core.version import __version__
from gapclose.data.item_set import ItemSet

logger = get_logger(__name__)

SETTLE = 1.0
"""seconds within which a process that has taken a lock has written its note"""
LAPSE = 180
"""seconds within which a file server releases the locks of a lost node (by default, NFS version 4
takes 90 and Lustre 100)"""


def environment(seed: int, process: Any) -> dict[str, Any]:
    """Return versions, device, engine, processes, threads, seed and code revision of a run."""
    packages = ("torch", "transformers", "peft", "accelerate", "scikit-learn", "numpy")
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:  # git is not installed
        commit = ""
    return {
        "versions": {"gapclose": __version__, **{p: importlib.metadata.version(p) for p in packages}},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine(),
        "engine": engine_given(process),
        "processes": process.num_processes,
        "threads": torch.get_num_threads(),
        "seed": seed,
        "commit": commit or None,
    }


def lock_run_dir(directory: Path) -> BaseFileLock | None:
    """Lock a run directory until this process ends; return None if the file system has no locks.

    The kernel releases the lock however the process ends. The file server releases the locks of a
    lost node after a while, so a lock of another machine is waited for (:data:`LAPSE`).

    Raises:
        ValueError: when another process works in the directory, with its number and machine.
        WriteError: when the directory cannot be made.
    """
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    # no marker file instead of a lock: it would remain after a process is killed
    lock, note = FileLock(directory / ".lock", is_singleton=True, fallback_to_soft=False), directory / ".holder"
    try:
        try:
            lock.acquire(timeout=SETTLE)
        except Timeout:
            if _holder(note).endswith(_here()):
                raise
            logger.info(f"{directory} is locked ({_holder(note)}); waiting for {LAPSE} s, in which the lock of a lost node lapses")
            lock.acquire(timeout=LAPSE)
    except Timeout:
        raise ValueError(
            f"{directory}: another process works in this run directory ({_holder(note)}); let it end, or name another one (--run_dir)"
        ) from None
    except (OSError, NotImplementedError) as error:
        logger.warning(f"{directory} cannot be locked ({error}); let no other process work in it")
        return None
    write_text(note, f"process {os.getpid()}{_here()}")
    return lock


def unlock_run_dir(directory: Path, lock: BaseFileLock, *, made: bool) -> None:
    """Release a run directory in which no run was started.

    Args:
        made: the directory did not exist before; it is deleted if it holds no other files.
    """
    (directory / ".holder").unlink(missing_ok=True)
    if {path.name for path in directory.iterdir()} <= {".lock"}:
        (directory / ".lock").unlink(missing_ok=True)  # a waiting process notices this and makes its own
        if made:
            with suppress(OSError):  # another process was quicker
                directory.rmdir()
    lock.release()


def _here() -> str:
    return f" on {platform.node()}"


def _holder(note: Path) -> str:
    """Return the holder of a lock as written in its note."""
    return note.read_text(encoding="utf-8") if note.is_file() else f"not known which{_here()}"


def refuse_other_items(items: ItemSet, path: Path) -> str:
    """Check that the items bound at ``path``, if any, are these; return their fingerprint.

    Raises:
        ValueError: when the run has other items, to which its checkpoints and records belong.
    """
    now = items.fingerprint(labels=True)
    if path.is_file() and (before := read_json(path, "fingerprint")["fingerprint"]) != now:
        raise ValueError(
            f"{path.parent} holds a run on items {before}, and {items.root} now holds {now}: items, media or labels have changed. "
            "Give this run another directory (--run_dir), or delete that one."
        )
    return now


def bind_items(items: ItemSet, path: Path) -> None:
    """Write the items' fingerprint to ``path``, unless :func:`refuse_other_items` refuses."""
    found = {"root": str(items.root), "fingerprint": refuse_other_items(items, path)}
    left_out = {"skipped": [{"item": i, "fault": fault} for i, fault in items.skipped], "notes": list(items.notes)}
    orders = {"option_order": items.orders} if items.orders else {}
    write_json(path, {**found, "items": len(items), **left_out, **orders})
