"""Print the measurements of a run as tables and sentences for a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gapclose.core.files import read_json
from gapclose.core.logging import spell_out
from gapclose.evaluation.run_records import prompt_name, read_records, skipped_words, summarise
from gapclose.evaluation.summary_text import budget_name, claims, show, turned, verdict

TEST_ROWS = {
    "action, balanced": "balanced",
    "action generated, balanced": "generated_balanced",
    "options right, balanced": "option_balanced",
    "standard accuracy": "standard_accuracy",
    "rejection rate": "rejection",
    "false alarms": "false_alarm",
    "action, AUROC": "auroc",
    "action, d'": "dprime",
    "action, criterion": "criterion",
    "probability of the options": "option_mass",
    "answers that parse (strict)": "parse_strict",
    "answers that parse (lenient)": "parse_lenient",
    "retention": "retention",
}
"""label -> key of a side of :func:`summarise`, in the order of tables"""
GAPS = {"gap, balanced": "balanced", "gap, matched false alarms": "matched", "gap, AUROC": "auroc"}


def wide_console() -> Console:
    """Return a console on standard output.

    In a file or pipe it is wide enough for every table, unless COLUMNS is set. Names from the data
    are printed literally: brackets are not markup, and ``:smile:`` is not an emoji. Characters that
    the output's encoding does not have are printed as escapes.
    """
    spell_out()
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
    return Console(width=width, markup=False, emoji=False)


def add_columns(table: Table, headings: Sequence[str], words: Sequence[str]) -> None:
    """Add columns, those in ``words`` left-aligned.

    On a narrow terminal they fold, because cut headings could look alike.
    """
    for heading in headings:
        table.add_column(heading, justify="left" if heading in words else "right", overflow="fold")


def print_report(directory: Path, console: Console | None = None) -> None:
    """Print the measurements of a run: stages, test, modalities, then the verdict in words."""
    console = console or wide_console()
    summary, records = summarise(directory), read_records(directory)
    out = skipped_words(summary["n_skipped"])
    stages = Table(title=f"{directory}: balanced accuracy by stage{out}")
    headings = ("stage", "action", "generated", "reading", "fresh", "sentinel", "retained", "closure", "state")
    add_columns(stages, headings, ("stage", "state"))
    for r in records:
        plain = (r["action"]["balanced"], r["generated"]["balanced_lenient"], r["reading"]["balanced"], r["fresh_probe"]["balanced"])
        plain += (r["sentinel_probe"]["balanced"], r.get("retention"), r.get("change", {}).get("closure"))
        cells = ["-" if v is None or v["value"] is None else f"{v['value']:.3f}" for v in plain]
        stages.add_row(r["stage"], *cells, r["state"])
    console.print(stages)

    test = Table(
        title=f"test: {summary['n_clips']} clips, {summary['n_items']} items{out}, 1 seed ({summary['seed']}), 95 % clip-bootstrap intervals"
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

    parts = Table(title=f"by modality (p: whether the change of the action is chance){out}")
    headings = (
        "modality",
        "verdict",
        "action base",
        "action adapted",
        "reading",
        "gap base",
        "gap adapted",
        "closure",
        "p (Holm)",
    )
    add_columns(parts, headings, ("modality", "verdict"))
    for name, part in summary["modality"].items():
        gap = part["gap"]["balanced"]
        row = (part["base"], part["adapted"], part["reading"], gap["base"], gap["adapted"], part["closure"])
        word, gain = summary["verdicts"].get(name, {}).get("word", "-"), part["significance"]
        parts.add_row(name, word, *(show(value, 2) for value in row), f"{gain['p_holm']:.2g}" if gain else "-")
    console.print(parts)
    if summary["prompts"]:
        print_prompts(summary["prompts"], console)
    path = directory / "measurement.json"
    if path.is_file() and (baselines := read_json(path).get("baselines")):
        print_baselines(baselines, summary, console)
    for line in [*claims(summary), *verdict(summary)]:
        console.print(line, highlight=False, soft_wrap=True)


PROMPT_COLUMNS = {
    "action": ("action", "balanced"),
    "generated": ("generated", "balanced"),
    "answers that match": ("generated", "matched"),
    "reading": ("reading", "balanced"),
    "reading, refitted": ("within", "reading", "balanced"),
    "gap": ("gap", "balanced"),
    "gap, refitted": ("within", "gap", "balanced"),
}
"""heading -> path of the figure in the part of :func:`summarise` about a prompt"""
ADAPTED_COLUMNS = {
    "action": ("action", "balanced"),
    "generated": ("generated", "balanced"),
    "answers that match": ("generated", "matched"),
    "action gained": ("change", "action_gain"),
    "closure": ("change", "closure"),
    "standard acc. lost": ("change", "standard_drop"),
}


def figure(record: dict[str, Any], path: Sequence[str]) -> dict[str, float | None] | None:
    """Return the interval at the end of a path of keys, or None."""
    found: Any = record
    for key in path:
        found = (found or {}).get(key)
    return found


def print_prompts(prompts: dict[str, Any], console: Console) -> None:
    """Print action, reading and gap under every measured prompt, of base and adapted model."""
    sides = {"base": ("test under several prompts, base model; the first is the run's own", PROMPT_COLUMNS)}
    if all(of["adapted"] for of in prompts.values()):
        sides["adapted"] = ("test under several prompts, adapted model, trained under the first", ADAPTED_COLUMNS)
    for side, (title, columns) in sides.items():
        table = Table(title=title)
        add_columns(table, ("prompt", *columns), ("prompt",))
        for name, of in prompts.items():
            table.add_row(prompt_name(name), *(show(figure(of[side], path), 2) for path in columns.values()))
        console.print(table)


def print_baselines(baselines: dict[str, Any], summary: dict[str, Any], console: Console) -> None:
    """Print the inference-time baselines by method and budget, and this run's trained model."""
    table = Table(
        title=f"without training: chosen on {baselines['n_choice']} items of {baselines['chosen_on']}, judged on test"
        + skipped_words(summary["n_skipped"])
    )
    headings = ("method", "budget, points", "balanced", "option, balanced", "standard acc. change", "rejected", "AUROC")
    add_columns(table, headings, ("method",))

    def add(name: str, budget: str, point: dict[str, Any], change: dict[str, Any] | None) -> None:
        figures = (point["balanced"], point["option_balanced"], change, point["rejection"], point["auroc"])
        table.add_row(name, budget, *(show(figure, 2) for figure in figures))

    add("base model", "", baselines["base"], None)
    for method in baselines["methods"]:
        table.add_section()
        for point in method["points"]:
            first = point is method["points"][0]
            budget = budget_name(point) + ("" if point["setting"] else " (unchanged)")
            add(method["label"] if first else "", budget, point, point["gain"]["standard_accuracy"])
    if summary["adapted"]:
        table.add_section()
        add("trained (this run)", "", summary["adapted"], turned(summary["standard_drop"]))
    console.print(table)
