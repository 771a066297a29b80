"""The keys that are true, false or ``auto``, and what a run decided for ``auto``.

A decision is made once, at the first use, and kept in ``auto.json`` of the run, so that the run goes
on as it began. ``config.yaml`` keeps the word that was given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gapclose.core.distributed import run_on_main
from gapclose.core.files import read_json, write_json
from gapclose.core.logging import get_logger
from gapclose.core.settings import AUTO, AUTO_KEYS, read_settings
from gapclose.observe.config import ObserveConfig
from gapclose.pipeline.config import Config

logger = get_logger(__name__)


def decisions(directory: Path) -> dict[str, dict[str, Any]]:
    """Return what a run decided: key -> ``value`` (bool) and ``reason`` (of false, else null)."""
    path = directory / "auto.json"
    return read_json(path) if path.is_file() else {}


def decided(directory: Path, key: str) -> bool | None:
    """Return what the run decided for a key, or None; all processes get the same answer."""
    return run_on_main(lambda: decisions(directory).get(key, {}).get("value"))


def keep(directory: Path, key: str, reason: str | None) -> bool:
    """Store and log a decision: true without a ``reason``, else false. Return it."""
    found = {"value": reason is None, "reason": reason}
    run_on_main(lambda: write_json(directory / "auto.json", decisions(directory) | {key: found}))
    logger.info(f"{key} auto: {'on' if reason is None else f'off, since {reason}'}")
    return found["value"]


def take_over(config: Config) -> None:
    """Replace each ``auto`` by true or false where the run in ``run_dir`` was given that."""
    before = read_settings(Path(config.run_dir))
    for key in AUTO_KEYS:
        group, name = key.split(".")
        if getattr(getattr(config, group), name) == AUTO and isinstance(before.get(key), bool):
            setattr(getattr(config, group), name, before[key])


def sharing(config: ObserveConfig, directory: Path, refusal: Callable[[], str | None] | None = None) -> ObserveConfig:
    """Return the configuration of observing with ``share_prefix`` decided.

    Args:
        refusal: returns why ``auto`` comes to false, or None; called where nothing is decided yet.
            Without it, ``auto`` then counts as false.
    """
    if config.share_prefix != AUTO:
        return config
    key = "observe.share_prefix"
    found = decided(directory, key)
    if found is None and refusal:
        found = keep(directory, key, refusal())
    return dataclasses.replace(config, share_prefix=bool(found))


def stores_measured(observe: ObserveConfig) -> bool:
    """Whether the hidden-state cache also stores the items that are measured after every epoch.

    Not with a shared prefix. Generating answers reads the media even if states are stored, and a
    shared prefix reads them once for all questions of a clip, scores included, which is faster.
    """
    return observe.share_prefix is not True
