"""What a run decides by itself: keys that are ``auto`` (:mod:`gapclose.core.auto_decisions`), and ``recipe: auto``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gapclose.core.auto_decisions import decided
from gapclose.core.distributed import run_on_main
from gapclose.core.files import write_json
from gapclose.core.logging import get_logger
from gapclose.core.settings import AUTO, AUTO_KEYS, RECIPE, SHARE_PREFIX, decisions, read_settings
from gapclose.evaluation.run_records import record_of
from gapclose.metrics.next_steps import FAINT, FAINT_SETTINGS
from gapclose.observe.config import ObserveConfig
from gapclose.pipeline.config import Config, overwrite_config, with_settings

logger = get_logger(__name__)


def take_over(config: Config) -> None:
    """Replace each ``auto`` by true or false where the run in ``run_dir`` was given that.

    ``recipe: auto`` takes what it set in that run.
    """
    before = read_settings(Path(config.run_dir))
    if config.recipe == before.get(RECIPE) == AUTO:
        _become(config, with_settings(config, {key: before[key] for key in FAINT_SETTINGS}))
    for key in AUTO_KEYS:
        group, name = key.split(".")
        if getattr(getattr(config, group), name) == AUTO and isinstance(before.get(key), bool):
            setattr(getattr(config, group), name, before[key])


def _become(config: Config, other: Config) -> None:
    for field in dataclasses.fields(config):
        setattr(config, field.name, getattr(other, field.name))


def follow_recipe(config: Config, directory: Path) -> None:
    """Set what ``recipe: auto`` prefers for the base model's reading of val.

    It is decided once. ``auto.json`` keeps the decision with its reason, and ``config.yaml`` the
    settings. Every process must call this; the main process writes.
    """
    if config.recipe != AUTO:
        return
    found = run_on_main(lambda: decisions(directory).get(RECIPE) or _decide(directory))
    settings = " ".join(f"--{key} {value}" for key, value in FAINT_SETTINGS.items())
    chosen = "the settings as they are" if found["value"] == "given" else f"labels first, then rounds on all layers ({settings})"
    logger.info(f"recipe auto: {chosen}, since {found['reason']}")
    if found["value"] == "faint":
        _become(config, with_settings(config, FAINT_SETTINGS))
        run_on_main(lambda: overwrite_config(config, directory / "config.yaml"))


def costliest(config: Config) -> Config:
    """Return the settings that a run may come to which cost the most: under ``recipe: auto`` those for a faint reading."""
    return with_settings(config, FAINT_SETTINGS) if config.recipe == AUTO else config


def _decide(directory: Path) -> dict[str, str]:
    """Decide for a run, and keep that in ``auto.json``; main process only."""
    base = record_of(directory, "base/val")
    assert base is not None
    auroc = base["reading"]["auroc"]["value"]
    if base["state"] == "not judgeable":
        value, reason = "given", "the model does not answer such questions"
    elif auroc is None:
        value, reason = "given", "the reading has no AUROC on val"
    elif auroc >= FAINT:
        value, reason = "given", f"the reading is strong on val (AUROC {auroc:.3f}, at least {FAINT:g})"
    else:
        value, reason = "faint", f"the reading is faint on val (AUROC {auroc:.3f}, below {FAINT:g})"
    found = {"value": value, "reason": reason}
    write_json(directory / "auto.json", decisions(directory) | {RECIPE: found})
    return found


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
