"""The keys that are true, false or ``auto`` in a configuration (:mod:`gapclose.core.auto_decisions`)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gapclose.core.auto_decisions import decided
from gapclose.core.settings import AUTO, AUTO_KEYS, SHARE_PREFIX, read_settings
from gapclose.observe.config import ObserveConfig
from gapclose.pipeline.config import Config


def take_over(config: Config) -> None:
    """Replace each ``auto`` by true or false where the run in ``run_dir`` was given that."""
    before = read_settings(Path(config.run_dir))
    for key in AUTO_KEYS:
        group, name = key.split(".")
        if getattr(getattr(config, group), name) == AUTO and isinstance(before.get(key), bool):
            setattr(getattr(config, group), name, before[key])


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
