"""What a run decides by itself: keys that are ``auto`` (:mod:`gapclose.core.auto_decisions`), and ``recipe: auto``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gapclose.core.auto_decisions import decided
from gapclose.core.distributed import run_on_main
from gapclose.core.logging import get_logger
from gapclose.core.settings import AUTO, AUTO_KEYS, SHARE_PREFIX, read_settings
from gapclose.evaluation.run_records import record_of
from gapclose.metrics.next_steps import FAINT, FAINT_SETTINGS
from gapclose.observe.config import ObserveConfig
from gapclose.pipeline.config import Config, overwrite_config

logger = get_logger(__name__)


def take_over(config: Config) -> None:
    """Replace each ``auto`` by true or false where the run in ``run_dir`` was given that.

    ``recipe: auto`` takes what it set in that run.
    """
    before = read_settings(Path(config.run_dir))
    if config.recipe == before.get("recipe") == AUTO:
        set_all(config, {key: before[key] for key in FAINT_SETTINGS})
    for key in AUTO_KEYS:
        group, name = key.split(".")
        if getattr(getattr(config, group), name) == AUTO and isinstance(before.get(key), bool):
            setattr(getattr(config, group), name, before[key])


def set_all(config: Config, settings: Mapping[str, Any]) -> None:
    """Set dotted keys of a configuration."""
    for key, value in settings.items():
        group, _, name = key.rpartition(".")
        setattr(getattr(config, group) if group else config, name, value)


def follow_recipe(config: Config, directory: Path) -> None:
    """Set and store what ``recipe: auto`` prefers for the base model's reading of val.

    Every process must call this; the main process writes ``config.yaml`` again.
    """
    if config.recipe != AUTO:
        return
    base = run_on_main(lambda: record_of(directory, "base/val"))
    assert base is not None
    auroc = base["reading"]["auroc"]["value"]
    if base["state"] == "not judgeable":
        logger.info("recipe auto: the settings as they are, since the model does not answer such questions")
        return
    if auroc is not None and auroc >= FAINT:
        logger.info(f"recipe auto: the settings as they are, since the reading is strong on val (AUROC {auroc:.3f}, at least {FAINT:g})")
        return
    set_all(config, FAINT_SETTINGS)
    run_on_main(lambda: overwrite_config(config, directory / "config.yaml"))
    listed = " ".join(f"--{key} {value}" for key, value in FAINT_SETTINGS.items())
    had = "has no AUROC on val" if auroc is None else f"is faint on val (AUROC {auroc:.3f}, below {FAINT:g})"
    logger.info(f"recipe auto: labels first, then rounds on all layers, since the reading {had}; as {listed}")


def shares(config: ObserveConfig, directory: Path) -> bool:
    """Whether a run observes with a shared prefix, as given or as it decided; false where it has not yet."""
    return bool(decided(directory, SHARE_PREFIX)) if config.share_prefix == AUTO else bool(config.share_prefix)


def with_decision(config: ObserveConfig, directory: Path) -> ObserveConfig:
    """Return the configuration of observing with ``share_prefix`` as :func:`shares` has it."""
    return dataclasses.replace(config, share_prefix=shares(config, directory))


def stores_measured(observe: ObserveConfig) -> bool:
    """Whether the hidden-state cache also stores the items that are measured after every epoch.

    Not with a shared prefix. Generating answers reads the media even if states are stored, and a
    shared prefix reads them once for all questions of a clip, scores included, which is faster.
    """
    return observe.share_prefix is not True
