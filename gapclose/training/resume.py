"""Checkpoints of a training: complete saves by all processes, and the checkpoint to resume from."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gapclose.core.distributed import run_on_all_ranks, run_on_main
from gapclose.core.files import WriteError, read_json, writing
from gapclose.core.logging import get_logger, is_main
from gapclose.core.tensor_files import WHOLE, Damaged, damage
from gapclose.models.sharding import is_wrapped

logger = get_logger(__name__)


@contextmanager
def whole_checkpoints(directory: Path, trainer: Any) -> Iterator[None]:
    """Context in which ``trainer`` writes complete checkpoints to ``directory``.

    The main process removes incomplete ones at the start (left by a killed run) and after a failed
    write, for example on a full disk.

    Raises:
        WriteError: in all processes, when one of them cannot write its part of a checkpoint.
    """
    save = trainer._save_checkpoint

    def save_together(*rest: Any, **more: Any) -> None:
        def part() -> None:
            with writing(directory):
                save(*rest, **more)

        # joint: an engine's processes communicate while saving
        run_on_all_ranks(part, joint=is_wrapped(trainer.model))

    trainer._save_checkpoint = save_together

    def clear() -> None:
        for path in directory.glob("checkpoint-*") if is_main() else ():
            if not (path / "complete.json").is_file():
                shutil.rmtree(path, ignore_errors=True)

    clear()
    try:
        with writing(directory):
            yield
    except WriteError:
        clear()
        raise


def last_complete_checkpoint(directory: Path, lost: Callable[[int], str | None] | None = None) -> Path | None:
    """Return the newest checkpoint whose files are complete and unchanged.

    Incomplete checkpoints are skipped silently and damaged ones with a warning. Both are
    overwritten later.

    Args:
        lost: returns the missing result of an epoch, or None. Checkpoints from that epoch on are
            skipped, so that it is trained and measured again.

    Raises:
        Damaged: when no checkpoint is usable and at least one is damaged.
    """
    found = [p.parent for p in directory.glob("checkpoint-*/complete.json")]
    skipped, damaged = list[str](), list[Path]()
    for folder in sorted(found, key=lambda p: int(p.name.split("-")[1]), reverse=True):
        if reason := damage(folder):
            damaged.append(folder)
        elif lost:
            reason = next((gone for epoch in range(1, int(_epoch(folder)) + 1) if (gone := lost(epoch))), None)
        if reason is None:
            for line in skipped:
                logger.warning(f"  {line}; going on from the checkpoint before it, {folder.name}")
            return folder
        skipped.append(reason)
    if damaged:
        folders = ", ".join(str(folder) for folder in damaged)
        raise Damaged(f"{'; '.join(skipped)}; delete {folders} and run the same command again, which trains from the beginning")
    for line in skipped:
        logger.warning(f"  {line}; training from the beginning")
    return None


def _epoch(checkpoint: Path) -> float:
    return float(read_json(checkpoint / WHOLE, "epoch")["epoch"])


def epochs_done(checkpoint: Path | None) -> float:
    """Return the epochs trained and measured before a checkpoint; 0 without one."""
    return 0.0 if checkpoint is None else run_on_main(lambda: _epoch(checkpoint))
