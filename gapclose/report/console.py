"""Print the measurements of a run as tables and sentences for a terminal."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from gapclose.core.files import read_json
from gapclose.core.logging import spell_out
from gapclose.evaluation.run_records import read_records, summarise
from gapclose.evaluation.summary_text import (
    budget_name,
    claims,
    next_steps,
    prompt_name,
    show,
    skipped_words,
    turned,
    verdict,
    written_words,
)
from gapclose.report.baselines import best_point, setting_words, standard_budget
from gapclose.report.change import counts_line, premise_rows, ranking_rows, read_change
from gapclose.report.tables import Row, print_table, visible

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


FILE_WIDTH = 160
"""columns of a file or pipe, where every table fits"""


def wide_console() -> Console:
    """Return a console on standard output.

    A file or pipe has :data:`FILE_WIDTH` columns, unless COLUMNS is set. Names from the data
    are printed literally: brackets are not markup, and ``:smile:`` is not an emoji. Characters that
    the output's encoding does not have are printed as escapes.
    """
    spell_out()
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else FILE_WIDTH
    return Console(width=width, markup=False, emoji=False)


def print_sentence(console: Console, text: str) -> None:
    """Print a sentence, wrapped between words and around intervals; in a file or pipe on one line, where it can be searched for."""
    text = visible(text)
    if console.width >= FILE_WIDTH and not console.is_terminal:
        console.print(text, highlight=False, soft_wrap=True)
        return
    whole = re.sub(r"(?<=\d) (?=\[-?\d)|(?<=\d,) (?=-?[\d.]+\])", "\N{NO-BREAK SPACE}", text)
    for line in textwrap.wrap(whole, console.width, break_long_words=False, break_on_hyphens=False):
        console.print(line.replace("\N{NO-BREAK SPACE}", " "), highlight=False, soft_wrap=True)


def print_report(directory: Path, console: Console | None = None, *, everything: bool = False) -> None:
    """Print the measurements of a run: stages, test, modalities, then the verdict and the next step in words.

    Args:
        everything: the whole table of inference-time baselines, not a line for each method.
    """
    console = console or wide_console()
    summary, records = summarise(directory), read_records(directory)
    out = skipped_words(summary["n_skipped"])
    headings = ("stage", "action", "generated", "reading", "fresh", "sentinel", "retained", "closure", "state")
    stages = []
    for r in records:
        plain = (r["action"]["balanced"], r["generated"]["balanced_lenient"], r["reading"]["balanced"], r["fresh_probe"]["balanced"])
        plain += (r["sentinel_probe"]["balanced"], r.get("retention"), r.get("change", {}).get("closure"))
        cells = ["-" if v is None or v["value"] is None else f"{v['value']:.3f}" for v in plain]
        stages.append([r["stage"], *cells, r["state"]])
    title = f"{directory}: balanced accuracy by stage{out}"
    print_table(console, title, headings, stages, words=("stage", "state"), aside=("fresh", "sentinel", "retained"))
    _print_test(summary, out, console)
    _print_modalities(summary, out, console)
    if summary["prompts"]:
        print_prompts(summary["prompts"], console)
    if change := read_change(directory, summary):
        print_change(change, console)
    path = directory / "measurement.json"
    measured = read_json(path) if path.is_file() else {}
    if baselines := measured.get("baselines"):
        if everything:
            print_baselines(baselines, summary, console)
        else:
            print_best_baselines(baselines, summary, standard_budget(directory), console)
    *sentences, last = verdict(summary)
    written = [
        f"{name}: the base model wrote {words}" for name, of in (measured.get("written") or {}).items() for words in written_words(of)
    ]
    for line in [*claims(summary), *written, *sentences, *(f"next: {step}" for step in next_steps(summary)), last]:
        print_sentence(console, line)


def _print_test(summary: dict[str, Any], out: str, console: Console) -> None:
    """Print every figure on test clips, of base and adapted model."""
    title = f"test: {summary['n_clips']} clips, {summary['n_items']} items{out}, 1 seed ({summary['seed']}), 95 % clip-bootstrap intervals"
    adapted = summary["adapted"] or {}
    rows: list[Row] = [(label, show(summary["base"][key]), show(adapted.get(key))) for label, key in TEST_ROWS.items()]
    both = {label: summary["gap"][kind] for label, kind in GAPS.items()}
    both |= {f"{kind} probe, balanced": summary[f"{kind}_probe"] for kind in ("fresh", "sentinel")}
    both |= {"held-out question type, action": summary["transfer"]} if summary["transfer"] else {}
    rows += [None, *((label, show(of["base"]), show(of["adapted"])) for label, of in both.items())]
    print_table(console, title, ("figure", "base", "adapted"), rows, words=("figure",))


def _print_modalities(summary: dict[str, Any], out: str, console: Console) -> None:
    """Print action, reading, gap and closure of every modality."""
    title = f"by modality (p: whether the change of the action is chance){out}"
    headings = ("modality", "verdict", "action base", "action adapted", "reading", "gap base", "gap adapted", "closure", "p (Holm)")
    rows = []
    for name, part in summary["modality"].items():
        gap = part["gap"]["balanced"]
        row = (part["base"], part["adapted"], part["reading"], gap["base"], gap["adapted"], part["closure"])
        word, gain = summary["verdicts"].get(name, {}).get("word", "-"), part["significance"]
        rows.append([name, word, *(show(value, 2) for value in row), f"{gain['p_holm']:.2g}" if gain else "-"])
    print_table(console, title, headings, rows, words=("modality", "verdict"))


def print_change(change: dict[str, Any], console: Console) -> None:
    """Print what training changed on test: answers by premise, ranking and calibration, and how many answers turned."""
    headings = ("premise", "base accepts", "base rejects", "adapted accepts", "adapted rejects")
    rows: list[Row] = []
    for row in premise_rows(change):
        rows += [None] if rows and row.first else []
        cells = [f"{count} ({100 * share:.0f} %)" for side in (row.base, row.adapted) for count, share in side]
        rows.append([f"{row.premise} ({row.scope})", *cells])
    if rows:
        print_table(console, "test: answers by premise, items", headings, rows, words=("premise",))
    found = [(label, show(before), show(after)) for label, before, after in ranking_rows(change)]
    if found:
        print_table(console, "test: ranking and calibration", ("figure", "base", "adapted"), found, words=("figure",))
    print_sentence(console, counts_line(change))


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
        rows = [[prompt_name(name), *(show(figure(of[side], path), 2) for path in columns.values())] for name, of in prompts.items()]
        print_table(console, title, ("prompt", *columns), rows, words=("prompt",))


def _baselines_title(baselines: dict[str, Any], summary: dict[str, Any]) -> str:
    out = skipped_words(summary["n_skipped"])
    return f"without training: chosen on {baselines['n_choice']} items of {baselines['chosen_on']}, judged on test{out}"


def print_best_baselines(baselines: dict[str, Any], summary: dict[str, Any], budget: float, console: Console) -> None:
    """Print a line for every inference-time baseline, with the setting that was chosen within the run's budget."""

    def row(name: str, point: dict[str, Any], change: dict[str, Any] | None, setting: str) -> list[str]:
        plain = ["-" if not of or of["value"] is None else f"{of['value'] + 0:.2f}" for of in (change, point["rejection"])]
        return [name, show(point["balanced"], 2), *plain, setting]

    rows: list[Row] = [row("base model", baselines["base"], None, "-")]
    for method in baselines["methods"]:
        if point := best_point(method, budget):
            rows.append(row(method["name"], point, point["gain"]["standard_accuracy"], setting_words(point)))
    if summary["adapted"]:
        rows += [None, row("trained (this run)", summary["adapted"], turned(summary["standard_drop"]), "-")]
    title = f"{_baselines_title(baselines, summary)}; at most {100 * budget:g} points of standard accuracy lost there (all: --all)"
    headings = ("method", "balanced", "standard acc. change", "rejected", "setting")
    print_table(console, title, headings, rows, words=("method", "setting"))


def print_baselines(baselines: dict[str, Any], summary: dict[str, Any], console: Console) -> None:
    """Print the inference-time baselines by method and budget, and this run's trained model."""
    headings = ("method", "budget, points", "balanced", "option, balanced", "standard acc. change", "rejected", "AUROC")

    def row(name: str, budget: str, point: dict[str, Any], change: dict[str, Any] | None) -> list[str]:
        figures = (point["balanced"], point["option_balanced"], change, point["rejection"], point["auroc"])
        return [name, budget, *(show(figure, 2) for figure in figures)]

    rows: list[Row] = [row("base model", "", baselines["base"], None)]
    for method in baselines["methods"]:
        rows.append(None)
        for point in method["points"]:
            budget = budget_name(point) + ("" if point["setting"] else " (unchanged)")
            rows.append(row(method["label"], budget, point, point["gain"]["standard_accuracy"]))
    if summary["adapted"]:
        rows += [None, row("trained (this run)", "", summary["adapted"], turned(summary["standard_drop"]))]
    print_table(console, _baselines_title(baselines, summary), headings, rows, words=("method", "budget, points"))
