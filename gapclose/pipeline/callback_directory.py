"""The directory of a training that ``GapCallback`` measures: whether it is free, and with what a training may go on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from typing import Any

from gapclose.core.auto_decisions import store
from gapclose.core.files import read_json, write_json
from gapclose.core.settings import AUTO, SHARE_PREFIX, flatten
from gapclose.evaluation.run_records import CALLBACK_MARK, read_records, write_records
from gapclose.pipeline.config import changed_settings
from gapclose.pipeline.measure_context import MeasureContext

SETTINGS = ("seed", "probe", "observe", "gap", "prompts", "labelling")
"""keys of the configuration that decide the figures"""
FILES = (CALLBACK_MARK, "auto.json", "gap.jsonl", "probes", "observations")
"""what the callback writes there"""


def claim_callback_directory(run: MeasureContext, base: str, resumed: int, splits: Sequence[str], *, has_adapters: bool) -> str:
    """Make the directory ready, and return the fingerprint of the base model. Main process only.

    Args:
        run: of the training, with its items.
        base: fingerprint of the model as it is now. resumed: optimiser steps that it has taken.
        splits: those that are observed.

    Raises:
        ValueError: when the directory holds something else, or not the base model of the training
            that is resumed.
    """
    directory, items = run.directory, run.items.fingerprint(labels=True)
    now = {"items": items, "settings": {name: _plain(getattr(run.config, name)) for name in SETTINGS}}
    before = read_json(directory / CALLBACK_MARK, "base", "items", "settings") if (directory / CALLBACK_MARK).is_file() else None
    if before is None and any((directory / name).exists() for name in FILES):
        raise ValueError(f"{directory} holds a run of gapclose; give GapCallback another directory (out=...)")
    if resumed and before is None and not has_adapters:
        raise ValueError(
            f"the training goes on from step {resumed}, and {directory} holds no measurement of its base model; name the directory of its "
            "start (out=...), or start anew"
        )
    if resumed and before is not None:
        if changed := _changed(run, before, now):
            raise ValueError(
                f"{directory}: {' and '.join(changed)} of GapCallback are not those with which this training started; use the same, or "
                "another directory (out=...)"
            )
        observed = directory / "observations"
        if not has_adapters and (missing := [s for s in splits if not (observed / f"base-{s}" / "manifest.json").is_file()]):
            raise ValueError(
                f"{observed}: the base model's observations of {', '.join(missing)} are not there, and the weights are trained already; "
                "restore them, or start anew"
            )
        for left in observed.glob("now-*"):  # of a measurement that was interrupted, after another step
            shutil.rmtree(left)
        write_records(directory, [r for r in read_records(directory) if r.get("step", 0) <= resumed and r["stage"] != "adapted/test"])
        return before["base"]
    for name in FILES:
        path = directory / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / CALLBACK_MARK, {"base": base, **now})
    return base


def _changed(run: MeasureContext, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs from the start of the training, which keeps the ``share_prefix`` that was given there. Main process only."""
    directory, began = run.directory, flatten(before["settings"])
    changed = (["items"] if before["items"] != now["items"] else []) + (
        ["settings"] if changed_settings(began, now["settings"], directory) else []
    )
    given = began.get(SHARE_PREFIX)
    if not changed and isinstance(given, bool) and run.config.observe.share_prefix == AUTO:
        store(directory, SHARE_PREFIX, None if given else "this training began so")
    return changed


def _plain(value: Any) -> Any:
    """Return a setting as it is read back from JSON."""
    return json.loads(json.dumps(dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value))
