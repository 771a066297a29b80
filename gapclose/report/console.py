"""What a run measured, as tables and sentences for a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gapclose.files import read_json
from gapclose.progress import spell_out
from gapclose.report.summary import (
    layer_words,
    prompt_name,
    prompt_words,
    read_records,
    round_words,
    skipped_words,
    summarise,
    target_words,
    unimproved_words,
)
from gapclose.states import STATES

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
"""label -> key of a side of :func:`summarise`, in the order in which tables show them"""
GAPS = {"gap, balanced": "balanced", "gap, matched false alarms": "matched", "gap, AUROC": "auroc"}


def show(interval: dict[str, float | None] | None, digits: int = 3) -> str:
    """``0.812 [0.790, 0.834]``, or a dash."""
    if interval is None or interval["value"] is None:
        return "-"
    value, lower, upper = (None if x is None else f"{round(x, digits) + 0:.{digits}f}" for x in interval.values())  # + 0: no -0.00
    return f"{value}" if lower is None else f"{value} [{lower}, {upper}]"


def wide_console() -> Console:
    """Standard output; where it is no terminal (a file, a pipe) and COLUMNS says nothing, wide enough for every table.

    Names from the data are printed as they are: brackets are no markup and ``:smile:`` is no emoji. What the output's encoding lacks is
    printed as an escape.
    """
    spell_out()
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
    return Console(width=width, markup=False, emoji=False)


def add_columns(table: Table, headings: Sequence[str], words: Sequence[str]) -> None:
    """Add columns, those of ``words`` to the left. On a narrow terminal they fold; cut off, headings could not be told apart."""
    for heading in headings:
        table.add_column(heading, justify="left" if heading in words else "right", overflow="fold")


def print_report(directory: Path, console: Console | None = None) -> None:
    """Print what a run measured: every stage, then the verdict on test clips in words."""
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
"""heading -> where the figure stands in what :func:`summarise` says of a prompt"""
ADAPTED_COLUMNS = {
    "action": ("action", "balanced"),
    "generated": ("generated", "balanced"),
    "answers that match": ("generated", "matched"),
    "action gained": ("change", "action_gain"),
    "closure": ("change", "closure"),
    "standard acc. lost": ("change", "standard_drop"),
}


def figure(record: dict[str, Any], path: Sequence[str]) -> dict[str, float | None] | None:
    """The interval at the end of a path of keys, or None."""
    found: Any = record
    for key in path:
        found = (found or {}).get(key)
    return found


def print_prompts(prompts: dict[str, Any], console: Console) -> None:
    """Action, reading and gap under every prompt that was measured, and what training under the first of them did to the others."""
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
    """What can be had without training, a row for every method and budget, and what the training of this run came to."""
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


def turned(interval: dict[str, float | None]) -> dict[str, float | None]:
    """The interval of minus the figure."""
    ends = {"value": interval["value"], "lower": interval["upper"], "upper": interval["lower"]}
    return {name: None if end is None else -end for name, end in ends.items()}


def budget_name(point: dict[str, Any]) -> str:
    """The standard accuracy that a setting was allowed to lose where it was chosen, in points."""
    return "any" if point["budget"] is None else f"{100 * point['budget']:g}"


def claims(summary: dict[str, Any]) -> list[str]:
    """What may be claimed of every modality, a word and its reason each, and where training went on in spite of it."""
    lines = [f"{of['word']} - {of['sentence']}" for of in summary["verdicts"].values()]
    if gate := summary["gate"]:
        words = ", ".join(f"{name} {of['word']}" for name, of in gate["verdicts"].items())
        lines.append(f"whether to train was decided on val ({gate['n_clips']} clips): {words}")
    if summary["forced"]:
        lines.append(f"forced: trained on the reading of {' and '.join(summary['forced'])} although it was not shown to be real")
    lines += [f"stopped by the guard {name}: {reason}" for name, reason in summary["stopped"].items()]
    lines += round_words(summary["rounds"])
    lines += prompt_words(summary["prompts"])
    return lines


def caveats(summary: Mapping[str, Any]) -> list[str]:
    """What there is to know of a trained run before its figures are used, in sentences."""
    return [*unimproved_words(summary.get("unimproved")), *target_words(summary.get("targets", []))]


def verdict(summary: dict[str, Any]) -> list[str]:
    """What the figures say, in sentences."""
    reading, text = summary["reading"], summary["text_only"]["balanced"]
    lines = [
        f"reading: {show(reading['balanced'])} balanced, AUROC {show(reading['auroc'])}, from {layer_words(reading['layers'])} ({reading['family']}); "
        f"the text alone gives {show(text)}, the majority class {show(summary['majority']['balanced'])}"
    ]
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
    return [*lines, *caveats(summary), state_line(summary)]


ABOUT_READING = {
    "real": "the reading is real",
    "readable without training": "the reading needs no training",
    "explained by text": "the text explains the reading",
    "not readable": "nothing is read",
    "too few clips": "too few clips to judge the reading",
    "not judgeable": "the model does not answer such questions",
}
"""word of a verdict -> what it says about a modality"""


def state_line(summary: dict[str, Any]) -> str:
    """The state of the run, and for every modality what its verdict is about: the reading, and where that is real, the base model's gap."""
    parts = [f"state: {summary['state']} ({STATES[summary['state']]})"]
    for name, of in summary["verdicts"].items():
        gap = summary["modality"][name]["gap"]["balanced"]["base"]
        shown = gap["lower"] is not None and gap["lower"] > 0
        of_gap = f", and the base model's gap of {show(gap)} is {'shown' if shown else 'not shown'}" if of["word"] == "real" else ""
        parts.append(f"{name}: {ABOUT_READING.get(of['word'], of['word'])}{of_gap}")
    return "; ".join(parts)
