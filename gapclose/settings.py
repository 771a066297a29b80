"""The settings of a run as it stored them, read without the libraries that a run needs (some of which print when imported)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

# Untold: where and how a run was executed, which a comparison leaves out. Free: what may differ between two starts of one run.
UNTOLD_KEYS = (
    "tracking",
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
FREE_KEYS = (*UNTOLD_KEYS, "force", "guards.off", "guards.patience", "controls.", "prompts.measured", "prompts.refit")

WHOLE_KEYS = ("model.template",)
"""keys whose value is a mapping with names of the user's own"""


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as dotted key -> value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        group = isinstance(value, dict) and prefix + key not in WHOLE_KEYS
        flat |= flatten(value, f"{prefix}{key}.") if group else {prefix + key: value}
    return flat


def read_settings(directory: Path) -> dict[str, Any]:
    """Every setting of a run as dotted key -> value; empty where there is no config.yaml."""
    path = directory / "config.yaml"
    return flatten(yaml.safe_load(path.read_text(encoding="utf-8"))) if path.is_file() else {}
