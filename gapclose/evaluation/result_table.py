"""The table of a run that a notebook shows in place of a result."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from gapclose.evaluation.summary_text import next_steps, show, state_line

ROWS = {
    "reading": "reading, balanced accuracy",
    "action": "action, balanced accuracy",
    "gap": "gap (reading - action)",
    "standard_accuracy": "standard accuracy",
    "rejection": "false premises rejected",
    "false_alarm": "true premises rejected",
}
"""figure -> its heading, in the order of the table"""


def result_table(summary: Mapping[str, Any]) -> str:
    """Return figures on test with their intervals, the state and the next step, as HTML.

    Args:
        summary: of :func:`gapclose.evaluation.run_records.summarise`.
    """
    sides = [name for name in ("base", "adapted") if summary[name]]
    reading, gap = summary["reading"]["balanced"], summary["gap"]["balanced"]
    figures = {name: {"reading": reading, "gap": gap[name], "action": summary[name]["balanced"], **summary[name]} for name in sides}
    heads = "".join(f"<th>{name} model</th>" for name in sides)
    lines = [f"<tr><th></th>{heads}</tr>"]
    for key, label in ROWS.items():
        cells = "".join(f"<td>{escape(show(figures[name][key]))}</td>" for name in sides)
        lines.append(f'<tr><th style="text-align:left">{label}</th>{cells}</tr>')
    if summary["closure"] is not None:
        empty = "<td></td>" * (len(sides) - 1)
        lines.append(f'<tr><th style="text-align:left">closure</th>{empty}<td>{escape(show(summary["closure"]))}</td></tr>')
    caption = f"test: {summary['n_clips']} clips, {summary['n_items']} items, seed {summary['seed']}, 95 % clip-bootstrap intervals"
    words = [state_line(dict(summary)), *(f"next: {step}" for step in next_steps(summary))]
    return f"<table><caption>{caption}</caption>{''.join(lines)}</table>" + "".join(f"<p>{escape(line)}</p>" for line in words)
