"""The stored settings of a run, read without importing heavy libraries (some print on import)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from gapclose.core.files import read_json

# Prefixes of keys. EXECUTION_ONLY_KEYS: where and how a run was executed; comparisons ignore it.
# RESUMABLE_KEYS: may change when a run is resumed.
EXECUTION_ONLY_KEYS = (
    "tracking",
    "log_level",
    "wandb.",
    "export.",
    "run_dir",
    "observe.shared",
    "data.workers",
    "data.cache",
    "model.architecture",
    "model.sharded",
    "probe.device",
    "train.logging_steps",
    "train.save_steps",
    "train.micro_batch_size",
    "train.cache_trunk",
)
RESUMABLE_KEYS = (
    *EXECUTION_ONLY_KEYS,
    "force",
    "observe.versions",
    "guards.off",
    "guards.patience",
    "controls.",
    "prompts.measured",
    "prompts.refit",
)

AUTO = "auto"
"""value of a key in :data:`AUTO_KEYS`, and of :data:`RECIPE`: the run decides"""
RECIPE = "recipe"
"""key that is given or auto; what a run decided stands in its ``auto.json``, and what that set in
its ``config.yaml``"""
SHARE_PREFIX, CACHE_TRUNK = AUTO_KEYS = ("observe.share_prefix", "train.cache_trunk")
"""keys that are true, false or auto; what a run decided stands in its ``auto.json``
(:mod:`gapclose.core.auto_decisions`)"""

WHOLE_KEYS = ("model.template",)
"""keys whose value is a mapping with names that the user chooses"""


LAST_GROUP = "grpo"
"""the last group of a stored configuration"""


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested configuration as dotted key -> value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        group = isinstance(value, dict) and prefix + key not in WHOLE_KEYS
        flat |= flatten(value, f"{prefix}{key}.") if group else {prefix + key: value}
    return flat


def decisions(directory: Path) -> dict[str, dict[str, Any]]:
    """Return what a run decided for ``auto``: key -> ``value`` and ``reason``.

    The value is true or false, with a reason for false, else null. Of :data:`RECIPE` it is given or
    faint, always with a reason.
    """
    path = directory / "auto.json"
    return read_json(path) if path.is_file() else {}


def read_settings(directory: Path) -> dict[str, Any]:
    """Return every setting of a run as dotted key -> value; empty where there is no config.yaml.

    Raises:
        ValueError: when the file is damaged.
    """
    path = directory / "config.yaml"
    if not path.is_file():
        return {}
    remedy = "delete it and run the command again that made this run: it is written anew"
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(f'{error}'.split())}); {remedy}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: holds {type(tree).__name__}, not keys and values; {remedy}")
    # every complete file of a run ends so
    if not text.endswith("\n") or ("run_dir" in tree and LAST_GROUP not in tree):
        raise ValueError(f"{path}: its end is cut off; {remedy}")
    return flatten(tree)
