"""The hidden-state caches of a training (``train.cache_trunk``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gapclose.core.auto_decisions import decided, keep
from gapclose.core.settings import AUTO, CACHE_TRUNK
from gapclose.data.items import Item
from gapclose.observe.frozen_cache import HiddenStateCache
from gapclose.observe.frozen_writer import AUTO_SHARE, write_cache
from gapclose.pipeline.auto_settings import stores_measured, with_decision
from gapclose.pipeline.config import Config

if TYPE_CHECKING:
    from gapclose.pipeline.context import RunContext


def idle(config: Config) -> str | None:
    """Return why ``train.cache_trunk: auto`` comes to false whatever the model and the disk, or None."""
    if config.model.sharded:
        return "whole models fill it, which model.sharded is to avoid"
    if config.train.epochs * config.targets.rounds < 2:
        return "one epoch reads every item once, as filling it does"
    return None


def training_caches(run: RunContext, items: Sequence[Item], *, frozen: int, blank: Sequence[str]) -> dict[str, HiddenStateCache | None]:
    """Fill the hidden-state caches of the training items (``train``) and measured items (``val``).

    A cache that is off or cannot be filled is None or missing. That of ``val`` is missing where
    :func:`gapclose.pipeline.auto_settings.stores_measured` says so.
    """
    config, known = run.config, None
    auto = config.train.cache_trunk == AUTO
    if auto and (known := decided(run.directory, CACHE_TRUNK)) is None and (reason := idle(config)):
        known = keep(run.directory, CACHE_TRUNK, reason)
    if config.train.cache_trunk is False or known is False:
        return {}
    refused, deciding = list[str](), auto and known is None
    how: dict[str, Any] = {"frozen": frozen, "batch_size": config.observe.batch_size}
    measured = run.measured_items("val") if stores_measured(with_decision(config.observe, run.directory)) else None
    within: dict[str, Any] = {"share": AUTO_SHARE, "beside": measured, "refused": refused.append} if deciding else {}
    seen = run.items.holding([*{i.id: i for i in items}.values()])
    train = write_cache(run.loaded, seen, run.directory / "trunk" / "train", blank=blank, **how, **within)
    if deciding:
        keep(run.directory, CACHE_TRUNK, refused[0] if refused else None)
    if train is None:
        return {}
    if measured is None:
        return {"train": train}
    below = [layer for layer in run.measured_layers if layer <= frozen]
    return {"train": train, "val": write_cache(run.loaded, measured, run.directory / "trunk" / "val", layers=below, **how)}
