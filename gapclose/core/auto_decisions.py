"""``auto.json``: what a run decided for the keys that are true, false or ``auto``.

A decision is made once, at the first use, and kept, so that the run goes on as it began.
``config.yaml`` keeps the word that was given.
"""

from __future__ import annotations

from pathlib import Path

from gapclose.core.distributed import run_on_main
from gapclose.core.files import write_json
from gapclose.core.logging import get_logger
from gapclose.core.settings import decisions

logger = get_logger(__name__)


def decided(directory: Path, key: str) -> bool | None:
    """Return what the run decided for a key, or None; all processes get the same answer."""
    return run_on_main(lambda: decisions(directory).get(key, {}).get("value"))


def store(directory: Path, key: str, reason: str | None) -> None:
    """Store a decision; main process only."""
    write_json(directory / "auto.json", decisions(directory) | {key: {"value": reason is None, "reason": reason}})


def keep(directory: Path, key: str, reason: str | None) -> bool:
    """Store and log a decision: true without a ``reason``, else false. Return it."""
    run_on_main(lambda: store(directory, key, reason))
    return announce(key, reason)


def announce(key: str, reason: str | None) -> bool:
    """Log a decision that is kept elsewhere; return it."""
    logger.info(f"{key} auto: {'on' if reason is None else f'off, since {reason}'}")
    return reason is None
