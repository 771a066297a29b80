"""Controls of a run as rows of the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def controls(summary: Mapping[str, Any], base: Mapping[str, Any], measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every control with a row per scope: guarded figure, own figure, difference, meaning.

    Without measurement.json, these are the two controls in ``gap.jsonl``.
    """
    given = measured.get("controls")
    if given is None:
        known = base["controls"]
        given = [
            {"name": "text_only", "label": "text only", "question": "could the wording alone give it away?", "guards": "reading",
             "balanced": known["text_only"], "difference": known["reading_minus_text"]},
            {"name": "majority", "label": "majority class", "question": "is it more than always naming the commonest concept?",
             "guards": "reading", "balanced": known["majority"]},
        ]  # fmt: skip
    shown = []
    for control in given:
        rows = []
        for scope in sorted(control["balanced"], key=lambda s: (s != "all", s)):
            difference, chance = ((control.get(key) or {}).get(scope) for key in ("difference", "chance"))
            rows.append(
                {
                    "scope": scope,
                    "guarded": _guarded(summary, control["guards"], scope),
                    "balanced": control["balanced"][scope],
                    "auroc": (control.get("auroc") or {}).get(scope),
                    "difference": difference,
                    "meaning": _meaning(difference, chance, (control.get("at_chance") or {}).get(scope)),
                }
            )
        shown.append({**control, "rows": rows})
    return shown


def _guarded(summary: Mapping[str, Any], guards: str, scope: str) -> Any:
    """Return the balanced accuracy that a control guards, of reading or action, or None."""
    if guards not in ("reading", "action"):
        return None
    part = summary["modality"].get(scope)
    if scope == "all":
        return summary["reading" if guards == "reading" else "base"]["balanced"]
    return part["reading" if guards == "reading" else "base"] if part else None


def _meaning(difference: Any, chance: float | None, at_chance: bool | None) -> tuple[bool, str] | None:
    """Return (whether the result is as expected, description), or None if nothing is claimed."""
    good, words = True, []
    if chance is not None and chance < 1:
        good = at_chance is not False
        told = {True: "at chance ({}), as it should be", False: "not at chance ({})", None: "too few clips to tell it from chance ({})"}
        words.append(told[at_chance].format(f"{chance:.2f}"))
    if difference is not None and difference["lower"] is not None:
        beaten = difference["lower"] > 0
        good = good and beaten
        if chance is None and not beaten:  # no fault: e.g. residuals without the wording may read as well
            return None
        words.append("the reading beats it" if beaten else "the reading does not beat it")
    return (good, "; ".join(words)) if words else None
