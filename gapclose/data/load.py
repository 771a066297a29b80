"""Load an item set from a directory of any known layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from gapclose.core.errors import ErrorCollector
from gapclose.data.config import WORDINGS, DataConfig, PromptsConfig
from gapclose.data.formats import read_set
from gapclose.data.interleave import interleave
from gapclose.data.item_set import Decoding, Framing, ItemSet
from gapclose.data.option_shuffle import shuffle_options
from gapclose.data.splits import SplitAssignment


def load_items(path: str | Path, **settings: Any) -> ItemSet:
    """Load and check the items in a directory of any known layout.

    Media and prompts are checked later, when the model is known.

    Args:
        path: directory with ``set.json`` and ``items.jsonl``, in the layout of IMAVB or AVHBench,
            or with tables and a column map.
        settings: of :class:`gapclose.data.config.DataConfig`, e.g. ``columns="map.yaml"``; those
            that only a run uses are refused.

    Raises:
        ValueError: all errors of the set at once.
    """
    if only := sorted(set(settings) & {"path", "on_error", "degraded", "sound"}):
        raise ValueError(f"load_items does not take {only}; they are settings of a run")
    problems, data = ErrorCollector(f"the item set {path}"), DataConfig(path=str(path), **settings)
    items = in_order(read_data(Path(path), data, problems), data, PromptsConfig(), problems)
    problems.raise_if_any()
    return items


def read_data(directory: Path, data: DataConfig, problems: ErrorCollector) -> ItemSet:
    """Read the items in ``directory``, in any known layout, and apply the settings of media."""
    items = read_set(
        directory,
        problems,
        SplitAssignment(shares=data.shares, seed=data.split_seed),
        columns=data.columns,
        about=data.about,
        reader=data.format,
    )
    items = interleave(items) if data.interleave else items
    decoding = Decoding(workers=data.workers, cache=Path(data.cache) if data.cache else None, cache_gb=data.cache_gb)
    return replace(items, framing=Framing(frames=data.frames, side=data.side), decoding=decoding)


def in_order(items: ItemSet, data: DataConfig, prompts: PromptsConfig, problems: ErrorCollector) -> ItemSet:
    """Return the items with their options in the order that the configuration requests."""
    if not data.shuffle_options:
        return items
    shown = any(name not in WORDINGS or name == "own" for name in prompts.names)
    return shuffle_options(items, data.split_seed, problems, shown=shown)
