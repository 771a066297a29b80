"""Guards: what must not go on for long while training. They stop a run with the reason, and the best checkpoint so far is kept.

Guards look at the records of ``val``, one after every epoch, by the rules of :mod:`gapclose.metrics.status`: a fall counts where its estimate is beyond
the budget and its interval above zero; parsing is compared by its estimate. Controls of training (``targets.control``) are run to see how far they go, so only
the guard of the loss acts on them.

Some are silent by construction: ``over-rejection`` under ``gap.choose: shifted``, and ``fresh`` under ``lora.layers: after_probe``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gapclose.metrics.bootstrap import Interval
from gapclose.metrics.config import GapConfig
from gapclose.metrics.status import beyond, parses
from gapclose.training.config import GuardsConfig

Record = Mapping[str, Any]


def _over_rejection(record: Record, base: Record, gap: GapConfig, config: GuardsConfig) -> str | None:
    if gap.choose == "shifted":  # a shift of the rejections, chosen on val, will keep to the budget, whatever the model loses as it is
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
    # under lora.layers: after_probe its residuals are the base model's own, and it cannot fall
    return _beyond(record["change"]["fresh_drop"], gap.reading_tolerance, "the fresh probe's accuracy fell by", "gap.reading_tolerance")


def _sentinel(record: Record, base: Record, gap: GapConfig, config: GuardsConfig) -> str | None:
    return _beyond(record["change"]["sentinel_drop"], gap.reading_tolerance, "the sentinel's accuracy fell by", "gap.reading_tolerance")


def _adapter(record: Record, base: Record, gap: GapConfig, config: GuardsConfig) -> str | None:
    return None if record["adapter_changed"] else "every adapter weight that starts at zero still is: the model is the base model"


def _beyond(drop: Mapping[str, float | None], budget: float, words: str, key: str) -> str | None:
    """The reason, where a figure fell beyond its budget (:func:`gapclose.metrics.status.beyond`)."""
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
"""name -> the reason to object to a record, given the base's on the same split, or None; ``loss`` is the trainer's, which looks at every step"""


def check_guards(record: Record, base: Record, gap: GapConfig, config: GuardsConfig) -> dict[str, str]:
    """What every guard that is on has against a record, by name."""
    checks = {name: check for name, check in GUARDS.items() if name not in config.silent}
    return {name: reason for name, check in checks.items() if (reason := check(record, base, gap, config))}


def triggered(records: Sequence[Record], config: GuardsConfig) -> dict[str, str]:
    """The guards that objected in each of the last ``patience`` epochs, with the latest reason.

    Args:
        records: of the epochs so far, oldest first, with their ``objections``. Of guards that were turned off since, they do not count.
    """
    last = records[-config.patience :]
    if len(last) < config.patience:
        return {}
    agreed = {name: reason for name, reason in last[-1]["objections"].items() if all(name in r["objections"] for r in last)}
    return {name: reason for name, reason in agreed.items() if name not in config.silent}
