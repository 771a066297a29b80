"""The settings of a run as it stored them, read without the libraries that a run needs (some of which print when imported)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

# Untold: where and how a run was executed, which a comparison leaves out. Free: what may differ between two starts of one run.
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

WHOLE_KEYS = ("model.template",)
"""keys whose value is a mapping with names of the user's own"""


LAST_GROUP = "grpo"
"""the group that a stored configuration ends with"""


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as dotted key -> value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        group = isinstance(value, dict) and prefix + key not in WHOLE_KEYS
        flat |= flatten(value, f"{prefix}{key}.") if group else {prefix + key: value}
    return flat


def read_settings(directory: Path) -> dict[str, Any]:
    """Every setting of a run as dotted key -> value; empty where there is no config.yaml.

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
    if not text.endswith("\n") or ("run_dir" in tree and LAST_GROUP not in tree):  # as every file of a run has
        raise ValueError(f"{path}: its end is cut off; {remedy}")
    return flatten(tree)
