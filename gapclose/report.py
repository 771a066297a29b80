"""Read a run's record of truth, ``gap.jsonl``, and show it: tables for a terminal, one JSON object."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gapclose.files import read_json
from gapclose.gap import STATES

TEST_ROWS = {
    "action, balanced": "balanced",
    "action generated, balanced": "generated_balanced",
    "options right, balanced": "option_balanced",
    "standard accuracy": "standard_accuracy",
    "false premises rejected": "rejection",
    "false alarms": "false_alarm",
    "action, AUROC": "auroc",
    "action, d'": "dprime",
    "action, criterion": "criterion",
    "answers that parse (strict)": "parse_strict",
    "retention": "retention",
}
"""label -> key of a side of :func:`summarise`, in the order in which tables show them"""
GAPS = {"gap, balanced": "balanced", "gap, matched false alarms": "matched", "gap, AUROC": "auroc"}


def read_records(directory: Path) -> list[dict[str, Any]]:
    """Every measurement of a run, oldest first; empty before the first one."""
    path = directory / "gap.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def record_of(directory: Path, stage: str) -> dict[str, Any] | None:
    """The record of one stage, or None."""
    return next((r for r in read_records(directory) if r["stage"] == stage), None)


def summarise(directory: Path) -> dict[str, Any]:
    """The figures of a run on test clips as one JSON object; what was not measured (yet) is None.

    Raises:
        ValueError: when the run has not measured its base model.
    """
    base, adapted = record_of(directory, "base/test"), record_of(directory, "adapted/test")
    if base is None:
        raise ValueError(
            f"{directory}: no measurement of the base model on test in gap.jsonl; run `gapclose measure` or `gapclose close` first"
        )
    controls, change = base["controls"], (adapted or {}).get("change", {})
    probe = read_json(directory / "probes" / "frozen.json")
    summary: dict[str, Any] = {
        "base": _side(base),
        "adapted": _side(adapted),
        "reading": {**base["reading"], "layer": probe["layer"], "family": probe["family"]},
        "closure": change.get("closure"),
        "closure_auroc": change.get("closure_auroc"),
        "auroc_gain": change.get("auroc_gain"),
        "standard_drop": change.get("standard_drop"),
        "retention_drop": change.get("retention_drop"),
        "reading_change": change.get("reading_change"),
        "frozen_probe_shift": (adapted or {}).get("frozen_probe_shift"),
        "fresh_probe": _both(base, adapted, "fresh_probe", "balanced"),
        "sentinel_probe": _both(base, adapted, "sentinel_probe", "balanced"),
        "text_only": {"balanced": controls["text_only"]["all"]},
        "majority": {"balanced": controls["majority"]["all"]},
        "reading_minus_text": controls["reading_minus_text"],
        "real": controls["real"],
        "gap": {kind: _both(base, adapted, "gap", kind) for kind in ("balanced", "matched", "auroc")},
        "modality": {name: _modality(name, base, adapted) for name in base["modality"]},
        "transfer": None,
        "state": (adapted or base)["state"],
        "epoch": (adapted or base)["epoch"],
        "n_clips": base["n_clips"],
        "n_items": base["n_items"],
        "seed": base["seed"],
    }
    if "transfer" in base:
        inside = change.get("transfer")
        closures = (inside["closure"]["value"], change["closure"]["value"]) if inside else (None, None)
        summary["transfer"] = {
            "base": base["transfer"]["action"]["balanced"],
            "adapted": adapted["transfer"]["action"]["balanced"] if adapted else None,
            "reading": base["transfer"]["reading"]["balanced"],
            "closure": inside["closure"] if inside else None,
            "share_of_closure": closures[0] / closures[1] if closures[0] is not None and closures[1] else None,
        }
    return summary


def _side(record: dict[str, Any] | None) -> dict[str, Any] | None:
    if record is None:
        return None
    kept = ("balanced", "option_balanced", "standard_accuracy", "rejection", "false_alarm", "auroc", "dprime", "criterion")
    return {
        **{k: record["action"][k] for k in kept},
        "generated_balanced": record["generated"]["balanced_lenient"],
        "parse_strict": record["generated"]["parse_strict"],
        "parse_lenient": record["generated"]["parse_lenient"],
        "retention": record.get("retention"),
    }


def _modality(name: str, base: dict[str, Any], adapted: dict[str, Any] | None) -> dict[str, Any]:
    before, after = base["modality"][name], adapted["modality"][name] if adapted else None
    return {
        "base": before["action"]["balanced"],
        "adapted": after["action"]["balanced"] if after else None,
        "reading": before["reading"]["balanced"],
        "rejection": {"base": before["action"]["rejection"], "adapted": after["action"]["rejection"] if after else None},
        "gap": {kind: _both(before, after, "gap", kind) for kind in ("balanced", "matched", "auroc")},
        "closure": adapted["change"]["by_modality"][name]["closure"] if adapted else None,
    }


def _both(base: dict[str, Any], adapted: dict[str, Any] | None, group: str, name: str) -> dict[str, Any]:
    return {"base": base[group][name], "adapted": adapted[group][name] if adapted else None}


def show(interval: dict[str, float | None] | None, digits: int = 3) -> str:
    """``0.812 [0.790, 0.834]``, or a dash."""
    if interval is None or interval["value"] is None:
        return "-"
    if interval["lower"] is None:
        return f"{interval['value']:.{digits}f}"
    return f"{interval['value']:.{digits}f} [{interval['lower']:.{digits}f}, {interval['upper']:.{digits}f}]"


def wide_console() -> Console:
    """Standard output; where it is no terminal (a file, a pipe) and COLUMNS says nothing, wide enough for every table."""
    return Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=160)


def add_columns(table: Table, headings: Sequence[str], words: Sequence[str]) -> None:
    """Add columns, those of ``words`` to the left. On a narrow terminal they fold; cut off, headings could not be told apart."""
    for heading in headings:
        table.add_column(heading, justify="left" if heading in words else "right", overflow="fold")


def print_report(directory: Path, console: Console | None = None) -> None:
    """Print what a run measured: every stage, then the verdict on test clips in words."""
    console = console or wide_console()
    summary, records = summarise(directory), read_records(directory)
    stages = Table(title=f"{directory}: balanced accuracy by stage")
    headings = ("stage", "action", "generated", "reading", "fresh", "sentinel", "retained", "closure", "state")
    add_columns(stages, headings, ("stage", "state"))
    for r in records:
        plain = (r["action"]["balanced"], r["generated"]["balanced_lenient"], r["reading"]["balanced"], r["fresh_probe"]["balanced"])
        plain += (r["sentinel_probe"]["balanced"], r.get("retention"), r.get("change", {}).get("closure"))
        cells = ["-" if v is None or v["value"] is None else f"{v['value']:.3f}" for v in plain]
        stages.add_row(r["stage"], *cells, r["state"])
    console.print(stages)

    test = Table(
        title=f"test: {summary['n_clips']} clips, {summary['n_items']} items, 1 seed ({summary['seed']}), 95 % clip-bootstrap intervals"
    )
    add_columns(test, ("figure", "base", "adapted"), ("figure",))
    adapted = summary["adapted"] or {}
    for label, key in TEST_ROWS.items():
        test.add_row(label, show(summary["base"][key]), show(adapted.get(key)))
    test.add_section()
    for label, kind in GAPS.items():
        test.add_row(label, show(summary["gap"][kind]["base"]), show(summary["gap"][kind]["adapted"]))
    test.add_row("fresh probe, balanced", show(summary["fresh_probe"]["base"]), show(summary["fresh_probe"]["adapted"]))
    test.add_row("sentinel probe, balanced", show(summary["sentinel_probe"]["base"]), show(summary["sentinel_probe"]["adapted"]))
    if summary["transfer"]:
        test.add_row("held-out question type, action", show(summary["transfer"]["base"]), show(summary["transfer"]["adapted"]))
    console.print(test)

    parts = Table(title="by modality")
    add_columns(parts, ("modality", "action base", "action adapted", "reading", "gap base", "gap adapted", "closure"), ("modality",))
    for name, part in summary["modality"].items():
        gap = part["gap"]["balanced"]
        row = (part["base"], part["adapted"], part["reading"], gap["base"], gap["adapted"], part["closure"])
        parts.add_row(name, *(show(value, 2) for value in row))
    console.print(parts)
    for line in verdict(summary):
        console.print(line, highlight=False)


def verdict(summary: dict[str, Any]) -> list[str]:
    """What the figures say, in sentences."""
    reading, text = summary["reading"], summary["text_only"]["balanced"]
    lines = [
        f"reading: {show(reading['balanced'])} balanced, AUROC {show(reading['auroc'])}, from layer {reading['layer']} ({reading['family']}); "
        f"the text alone gives {show(text)}, the majority class {show(summary['majority']['balanced'])}"
    ]
    for scope, real in summary["real"].items():
        if scope != "all" and not real:
            difference = show(summary["reading_minus_text"][scope])
            lines.append(
                f"the gap in {scope} is NOT shown to be real: reading minus text-only control is {difference}, which is not above zero"
            )
    if summary["closure"] is not None:
        lines.append(
            f"closure: {show(summary['closure'])} (reading changed by {show(summary['reading_change'])}); "
            f"standard accuracy fell by {show(summary['standard_drop'])}"
            + (f", retention by {show(summary['retention_drop'])}; " if summary["retention_drop"] else "; ")
            + f"the adapter is that of epoch {summary['epoch']}; "
            f"residuals under the frozen probe moved by {summary['frozen_probe_shift']:.3g}"
        )
        if summary["transfer"] and summary["transfer"]["closure"]:
            lines.append(f"closure on the held-out question type: {show(summary['transfer']['closure'])}")
    lines.append(f"state: {summary['state']} ({STATES[summary['state']]})")
    return lines
