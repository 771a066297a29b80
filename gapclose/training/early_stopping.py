"""Guards: conditions that end training early with a reason. The best checkpoint so far is kept.

Guards check the records of ``val``, one after every epoch, by the rules of
:mod:`gapclose.metrics.status`: a drop counts if its estimate exceeds the budget and its interval is
above zero; parsing is compared by its estimate. For controls of training (``targets.control``) only
the loss guard is active, because they are run to see how far they go.

Two guards can never object under some settings: ``over-rejection`` under ``gap.choose: shifted``,
and ``fresh`` under ``lora.layers: after_probe``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gapclose.metrics.bootstrap import Interval
from gapclose.metrics.config import GapConfig
from gapclose.metrics.status import beyond, parses
from gapclose.training.config import GuardsConfig

Record = Mapping[str, Any]


def learning(record: Record) -> bool:
    """Whether the consistency loss on val still falls, or is above that of a model that cannot tell items apart.

    Models learn to object before they learn when to. Until then they reject too much and lose what they
    should keep, and much of it comes back.
    """
    loss = record.get("consistency")
    return bool(loss) and bool(loss["falling"] or loss["excess"]["value"] > loss.get("constant", np.inf))


def _over_rejection(record: Record, base: Record, gap: GapConfig, config: GuardsConfig) -> str | None:
    if gap.choose == "shifted":  # the shift, chosen on val, keeps to the budget
        return None
    if learning(record):
        return None
    return _beyond(record["change"]["standard_drop"], gap.standard_budget, "standard accuracy fell by", "gap.standard_budget")


def _parsing(record: Record, base: Record, gap: GapConfig, config: GuardsConfig) -> str | None:
    now, before = (r["generated"]["parse_lenient"]["value"] for r in (record, base))
    if parses(now, before, gap):
        return None
    return f"{now:.3f} of the answers parse, {before:.3f} of the base model's (gap.parse_floor {gap.parse_floor:g})"


def _retention(record: Record, base: Record, gap: GapConfig, config: GuardsConfig) -> str | None:
    drop = record["change"].get("retention_drop")
    return drop and _beyond(drop, config.retention_budget, "retention fell by", "guards.retention_budget")


def _fresh(record: Record, base: Record, gap: GapConfig, config: GuardsConfig) -> str | None:
    # cannot drop under lora.layers: after_probe, where it reads the base model's residuals
    return _beyond(record["change"]["fresh_drop"], gap.reading_tolerance, "the fresh probe's accuracy fell by", "gap.reading_tolerance")


def _sentinel(record: Record, base: Record, gap: GapConfig, config: GuardsConfig) -> str | None:
    return _beyond(record["change"]["sentinel_drop"], gap.reading_tolerance, "the sentinel's accuracy fell by", "gap.reading_tolerance")


def _adapter(record: Record, base: Record, gap: GapConfig, config: GuardsConfig) -> str | None:
    return None if record["adapter_changed"] else "every adapter weight that starts at zero still is: the model is the base model"


def _beyond(drop: Mapping[str, float | None], budget: float, words: str, key: str) -> str | None:
    """Return the reason when a figure drops :func:`gapclose.metrics.status.beyond` its budget."""
    fall = Interval.from_dict(drop)
    if not beyond(fall, budget):
        return None
    return f"{words} {fall.value:.3f} [{fall.lower:.3f}, {fall.upper:.3f}], beyond {key} {budget:g}"


GUARDS: dict[str, Callable[[Record, Record, GapConfig, GuardsConfig], str | None]] = {
    "over-rejection": _over_rejection,
    "parsing": _parsing,
    "retention": _retention,
    "fresh": _fresh,
    "sentinel": _sentinel,
    "adapter": _adapter,
}
"""name -> function of a record, the base model's record on the same split and the settings that
returns an objection or None; the trainer checks ``loss`` itself at every step"""


def check_guards(record: Record, base: Record, gap: GapConfig, config: GuardsConfig) -> dict[str, str]:
    """Return the objections of all active guards to a record, by name."""
    checks = {name: check for name, check in GUARDS.items() if name not in config.silent}
    return {name: reason for name, check in checks.items() if (reason := check(record, base, gap, config))}


def triggered(records: Sequence[Record], config: GuardsConfig) -> dict[str, str]:
    """Return the guards that objected in each of the last ``patience`` epochs, with a reason.

    The reason is that of the latest epoch. An epoch in which the model is :func:`learning` does not
    count for the guard of retention: its objection keeps the epoch from being exported, and no more.

    Args:
        records: of the epochs so far, oldest first, with ``objections``. Objections of guards that
            are off by now do not count.
    """
    last = records[-config.patience :]
    if len(last) < config.patience:
        return {}

    def counts(name: str, record: Record) -> bool:
        return name in record["objections"] and not (name == "retention" and learning(record))

    agreed = {name: reason for name, reason in last[-1]["objections"].items() if all(counts(name, r) for r in last)}
    return {name: reason for name, reason in agreed.items() if name not in config.silent}
