"""The record of one measurement: a line of ``gap.jsonl``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gapclose.evaluation.measurement import SplitMeasurement
from gapclose.metrics.bootstrap import Interval
from gapclose.metrics.config import GapConfig
from gapclose.metrics.gap import closure, excludes_zero, intervals
from gapclose.metrics.power import balance
from gapclose.metrics.significance import holm, mcnemar, sign_flip
from gapclose.metrics.status import Evidence, dropped, state_of


def make_record(
    stage: str, epoch: float, now: SplitMeasurement, base: SplitMeasurement | None, config: GapConfig, seed: int
) -> dict[str, Any]:
    """Build one line of ``gap.jsonl``: every figure with its interval, the changes since
    ``base`` on the same clips, and the state."""
    record: dict[str, Any] = {"stage": stage, "epoch": epoch, "seed": seed, "n_items": now.n_items, "n_clips": now.n_clips}
    record |= intervals(now.overall)
    record["modality"] = {name: intervals(stats) for name, stats in now.modality.items()}
    if now.transfer is not None:
        record["transfer"] = intervals(now.transfer)
    if now.retention is not None:
        record["retention"] = Interval.of(now.retention).to_dict()
    if base is None:
        return record | {"acting": {scope: of.to_dict() for scope, of in now.acting.items()}, "state": _base_state(now)}
    changed = closure(base.overall, now.overall)
    record["change"] = intervals(changed)
    record["change"]["by_modality"] = {m: intervals(closure(base.modality[m], now.modality[m])) for m in now.modality}
    for name in ("fresh", "sentinel"):
        fall = base.overall[f"{name}_probe.balanced"] - now.overall[f"{name}_probe.balanced"]
        record["change"][f"{name}_drop"] = Interval.of(fall).to_dict()
    record["change"]["significance"] = significance(base, now, config, seed)
    if now.transfer is not None and base.transfer is not None:
        record["change"]["transfer"] = intervals(closure(base.transfer, now.transfer))
    if now.retention is not None and base.retention is not None:
        record["change"]["retention_drop"] = Interval.of(base.retention - now.retention).to_dict()
    record["frozen_probe_shift"] = float(np.abs(now.residual - base.residual).max())
    record["state"] = state_of(_evidence(changed, now, base, config), config)
    return record


def _base_state(base: SplitMeasurement) -> str:
    """Return whether there is a gap to close, as one word of
    :data:`gapclose.metrics.status.STATES`."""
    if not base.judgeable:
        return "not judgeable"
    return "open" if excludes_zero(base.overall["gap.balanced"]) else "no gap"


def significance(base: SplitMeasurement, now: SplitMeasurement, config: GapConfig, seed: int) -> dict[str, dict[str, float]]:
    """Test whether the action changed beyond chance, per modality.

    ``p`` comes from sign flips of clips; ``p_holm`` is Holm-corrected over the modalities.
    ``mcnemar`` is the exact McNemar test, which takes items for independent and is therefore too
    optimistic where a clip has several.
    """
    found, gain = {}, now.right.astype(float) - base.right
    for name in now.modality:
        keep = now.labels.modality == name
        part = now.labels.take(keep)
        p = sign_flip(gain[keep] * balance(part.cells[0]), part.clip, replicates=config.replicates, seed=seed)
        found[name] = {"p": p, "mcnemar": mcnemar(now.right[keep], base.right[keep])}
    corrected = holm({name: of["p"] for name, of in found.items()})
    return {name: {**of, "p_holm": corrected[name]} for name, of in found.items()}


def _evidence(changed: Mapping[str, np.ndarray], now: SplitMeasurement, base: SplitMeasurement, config: GapConfig) -> Evidence:
    def below_base(name: str) -> bool:
        return dropped(now.overall[f"{name}.balanced"], base.overall[f"{name}.balanced"], config.reading_tolerance)

    return Evidence(
        closure=Interval.of(changed["closure"]),
        beyond_reading=Interval.of(changed["beyond_reading"]),
        standard_drop=Interval.of(changed["standard_drop"]),
        frozen_fell=below_base("reading"),
        fresh_fell=below_base("fresh_probe"),
        parse_rate=now.parse_rate,
        base_parse_rate=base.parse_rate,
    )
