"""What training changed on test, from ``change.json``, for console and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapclose.core.files import read_versioned
from gapclose.evaluation.change_file import VERSION

KINDS = {"gained": "Gained: wrong before, right after", "lost": "Lost: right before, wrong after", "still_wrong": "Still wrong"}
"""key of ``examples`` -> heading"""


def read_change(directory: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``change.json`` of a trained run; empty where there is none, or it is of another epoch.

    Raises:
        ValueError: when another version of gapclose wrote it.
    """
    path = directory / "change.json"
    if not summary["adapted"] or not path.is_file():
        return {}
    remedy = "delete it, or run `gapclose close` again with the same configuration, which writes it anew and trains nothing"
    found = read_versioned(path, VERSION, remedy)
    return found if found["epoch"] == summary["epoch"] else {}


@dataclass(frozen=True, kw_only=True)
class PremiseRow:
    """Answers to the items of one scope and premise: (count, share of the row) of accepted and rejected."""

    scope: str
    premise: str
    """``true`` or ``false``"""
    first: bool
    """whether it is the first row of its scope"""
    base: Sequence[tuple[int, float]]
    adapted: Sequence[tuple[int, float]]


def premise_rows(change: Mapping[str, Any]) -> list[PremiseRow]:
    """Return two rows per scope; empty where no concept is an alarm. A scope without items of a premise has no such row."""
    rows = []
    for scope, before in change["base"]["premises"].items():
        after = change["adapted"]["premises"][scope]
        for premise in ("true", "false"):
            sides = [[of[f"{premise}_{answer}"] for answer in ("accepted", "rejected")] for of in (before, after)]
            if not sum(sides[0]):
                continue
            base, adapted = ([(n, n / sum(side)) for n in side] for side in sides)
            rows.append(PremiseRow(scope=scope, premise=premise, first=not rows or rows[-1].scope != scope, base=base, adapted=adapted))
    return rows


def ranking_rows(change: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (label, base, adapted) of AUROC and calibration error of reading and action, as intervals."""
    before, after = change["base"], change["adapted"]
    rows = []
    for side in ("reading", "action"):
        rows += [
            (f"{side}, AUROC{'' if scope == 'all' else f' ({scope})'}", curves[side]["auroc"], after["roc"][scope][side]["auroc"])
            for scope, curves in before["roc"].items()
        ]
    for side in ("reading", "action"):
        errors = ({"value": of["calibration"][side]["ece"], "lower": None, "upper": None} for of in (before, after))
        rows.append((f"{side}, calibration error", *errors))
    return rows


def counts_line(change: Mapping[str, Any]) -> str:
    """Return how many answers turned, in a sentence."""
    of = change["counts"]
    return (
        f"of {change['n_items']} test items {of['gained']} were wrong and are right now (gained), {of['lost']} were right and are wrong now "
        f"(lost), {of['still_wrong']} are still wrong, {of['still_right']} still right"
    )


def compared(measured: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return cells, curves, confusion and calibration: of base and adapted model, or of what ``measurement.json`` has.

    Returns:
        ``cells``: rows with ``reading``, ``action`` and, after training, ``adapted``. ``roc``: scope
            -> name -> curve. ``confusion``: ``concepts``, ``said`` and ``tables``, caption -> counts; None
            without any. ``calibration``: name -> bins, ece and brier.
    """
    if not change:
        found, calibration = measured.get("confusion") or {}, measured.get("calibration") or {}
        tables = {"What the model says": found.get("action"), "What the probe reads": found.get("reading")}
        return {
            "cells": measured.get("cells") or [],
            "roc": measured.get("roc") or {},
            "confusion": {**found, "tables": tables} if found else None,
            "calibration": {"reading": calibration} if calibration.get("bins") else {},
        }
    base, adapted = change["base"], change["adapted"]
    tables = {
        "What the base model says": base["confusion"]["action"],
        "What the adapted model says": adapted["confusion"]["action"],
        "What the probe reads": base["confusion"]["reading"],
    }
    curves = {
        scope: {"reading": of["reading"], "base action": of["action"], "adapted action": adapted["roc"][scope]["action"]}
        for scope, of in base["roc"].items()
    }
    calibration = {
        "reading": base["calibration"]["reading"],
        "base action": base["calibration"]["action"],
        "adapted action": adapted["calibration"]["action"],
    }
    if base["confusion"]["reading"] != adapted["confusion"]["reading"]:  # adapters reach the probe's layer
        tables["What the probe reads of the adapted model"] = adapted["confusion"]["reading"]
        curves = {scope: {**of, "adapted reading": adapted["roc"][scope]["reading"]} for scope, of in curves.items()}
        calibration["adapted reading"] = adapted["calibration"]["reading"]
    return {
        "cells": [{**row, "adapted": after["action"]} for row, after in zip(base["cells"], adapted["cells"], strict=True)],
        "roc": curves,
        "confusion": {**base["confusion"], "tables": tables},
        "calibration": calibration,
    }


def without_change(directory: Path, summary: Mapping[str, Any]) -> str:
    """Say why a trained run shows nothing of base and adapted model side by side."""
    if not summary["adapted"]:
        return ""
    other = (directory / "change.json").is_file()
    return (
        f"This run has {'a change.json of another epoch' if other else 'no change.json'}. That file holds base and adapted model side by side; "
        "`gapclose close` with the same configuration writes it, and trains nothing again."
    )
