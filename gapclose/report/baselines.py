"""The best setting of every inference-time method, as it was chosen, for console and page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gapclose.core.settings import read_settings
from gapclose.metrics.config import GapConfig


def standard_budget(directory: Path) -> float:
    """Return the standard accuracy, 0..1, that a run may lose (``gap.standard_budget``)."""
    return float(read_settings(directory).get("gap.standard_budget", GapConfig().standard_budget))


def best_point(method: Mapping[str, Any], budget: float) -> dict[str, Any] | None:
    """Return the point of a method that counts within a run's budget of standard accuracy.

    Every point holds the setting that was best on the items it was chosen on (val or fit) within
    the point's own budget. A larger budget allows all settings of a smaller one, so the best point
    there is that of the largest budget within the run's. Figures of test play no part. None if
    there is no such point.
    """
    within = [point for point in method["points"] if point["budget"] is not None and point["budget"] <= budget + 1e-9]
    return max(within, key=lambda point: point["budget"], default=None)


def setting_words(point: Mapping[str, Any]) -> str:
    """Return a setting as ``gamma 2, delta 0.5``, or ``unchanged``."""
    return ", ".join(f"{name} {value:.3g}" for name, value in (point["setting"] or {}).items()) or "unchanged"
