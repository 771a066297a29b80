"""Draw the figures of a run from its numbers: inline SVG for the page, and ``figures/epochs.png``.

Without matplotlib every function of a figure returns None.

An interval is ``{"value", "lower", "upper"}``, any of them None. The colours of Okabe and Ito are
distinct for colour-blind readers; markers, dashes and fills make the same distinctions in grey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gapclose.core.files import write_in_place
from gapclose.evaluation.run_records import read_records, record_of
from gapclose.evaluation.summary_text import skipped_words
from gapclose.report.style import INK, new_figure, styled, to_svg, whole_numbers, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

READING, FRESH, SENTINEL, ACTION, GENERATED, PALE = "#0072B2", "#56B4E9", "#009E73", "#D55E00", "#E69F00", "#e6e6e6"
WIDTH = 4.1  # inches: on a phone, one point of type is then slightly more than a pixel
Interval = Mapping[str, float | None]


def known(interval: Interval | None) -> bool:
    """Whether there is a value to draw."""
    return interval is not None and interval["value"] is not None


def numbers(intervals: Sequence[Interval | None]) -> np.ndarray:
    """Return (3, n): values and both ends, nan if unknown; an unknown end equals its value."""
    rows = [
        [None] * 3 if i is None else [i["value"], *(i[k] if i[k] is not None else i["value"] for k in ("lower", "upper"))]
        for i in intervals
    ]
    return np.array([[np.nan if x is None else x for x in row] for row in rows], dtype=float).reshape(-1, 3).T


def _band(axes: Axes, x: Sequence[float], intervals: Sequence[Interval | None], *, band: bool = True, **look: Any) -> None:
    """Draw a line, and its interval as a band."""
    value, lower, upper = numbers(intervals)
    axes.plot(x, value, markersize=4.5, **look)
    if band:
        axes.fill_between(x, lower, upper, color=look["color"], alpha=0.15, linewidth=0)


EPOCH_LINES = (
    ("reading (frozen probe)", ("reading", "balanced"), READING, "o", "-"),
    ("reading (fresh probe)", ("fresh_probe", "balanced"), FRESH, "s", "--"),
    ("reading (sentinel probe)", ("sentinel_probe", "balanced"), SENTINEL, "^", ":"),
    ("action (scored)", ("action", "balanced"), ACTION, "D", "-"),
    ("action (generated)", ("generated", "balanced_lenient"), GENERATED, "v", "--"),
)


def _validation(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted((r for r in records if r["stage"].endswith("/val")), key=lambda r: r["epoch"])


def _accuracies(axes: Axes, records: Sequence[Mapping[str, Any]], text: Interval | None) -> None:
    """Draw balanced accuracy of action and readings by epoch, and the text-only control on test."""
    for label, (group, name), colour, marker, style in EPOCH_LINES:
        epochs, values = [r["epoch"] for r in records], [r[group][name] for r in records]
        _band(axes, epochs, values, band=style == "-", color=colour, marker=marker, linestyle=style, label=label)
    if text is not None and text["value"] is not None:
        axes.axhline(text["value"], color="0.5", linewidth=1, linestyle="-.", label="text only (test)")
    axes.set(ylabel="balanced accuracy", ylim=(min(0.4, axes.get_ylim()[0]), 1.02))
    whole_numbers(axes.xaxis)
    axes.grid(axis="y", color=PALE)


def _counts(record: Mapping[str, Any], what: str) -> str:
    out = skipped_words(record.get("n_skipped", 0))
    return f"{record['n_clips']} {what} clips, 1 seed ({record['seed']}){out}, 95 % intervals"


@styled
def epochs_svg(records: Sequence[Mapping[str, Any]], text: Interval | None) -> str | None:
    """Draw reading and action per epoch on validation clips, and below them closure and states.

    Returns None before the first record.
    """
    records = _validation(records)
    if not records:
        return None
    changed = [r for r in records if "change" in r]
    figure = new_figure(figsize=(WIDTH, 5.4 if changed else 3.4), layout="constrained")
    rows = figure.subplots(2 if changed else 1, 1, sharex=True, squeeze=False, height_ratios=[2, 1.25] if changed else [1])[:, 0]
    _accuracies(rows[0], records, text)
    figure.legend(*rows[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    counts = _counts(records[0], "validation")
    label = f"Balanced accuracy per epoch. {counts}. " + "; ".join(
        f"epoch {r['epoch']}: action {interval_text(r['action']['balanced'])}, reading {interval_text(r['reading']['balanced'])}"
        for r in records
    )
    if changed:
        closures = [r["change"]["closure"] for r in changed]
        value, lower, upper = numbers(closures)
        epochs = [r["epoch"] for r in changed]
        rows[1].axhline(1, color="0.5", linewidth=1, linestyle=":")
        rows[1].axhline(0, color="0.5", linewidth=1)
        rows[1].errorbar(
            epochs, value, np.maximum(0, [value - lower, upper - value]), color=INK, marker="o", markersize=4.5, capsize=2.5, linewidth=1
        )
        low, high = np.nanmin([0, *lower]), np.nanmax([1, *upper])
        for record, top in zip(changed, upper, strict=True):
            word = record["state"].replace("-", "-\n")
            rows[1].annotate(
                word, (record["epoch"], top if np.isfinite(top) else 0), (0, 4), textcoords="offset points", ha="center", fontsize=7.5
            )
        rows[1].set(ylabel="closure", ylim=(low - 0.1, high + 0.55 * (high - low)), xlim=(-0.4, max(epochs) + 0.5))
        label += ". Closure: " + "; ".join(
            f"epoch {r['epoch']}: {interval_text(c)}, {r['state']}" for r, c in zip(changed, closures, strict=True)
        )
    rows[-1].set_xlabel("epoch (0 is the base model)")
    rows[0].set_title(counts, loc="left")
    return to_svg(figure, "epochs", label)


@styled
def draw_epochs(directory: Path) -> Path | None:
    """Draw balanced accuracy of action and readings on val per epoch to ``figures/epochs.png``.

    Intervals are 95 %. Returns None before the first record.
    """
    records = _validation(read_records(directory))
    if not records:
        return None
    base = record_of(directory, "base/test")
    figure = new_figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    _accuracies(axes, records, base["controls"]["text_only"]["all"] if base else None)
    axes.set_xlabel("epoch (0 is the base model)")
    axes.set_title(f"What the model reads and what it says: {_counts(records[0], 'validation')}", fontsize=10)
    axes.legend(loc="lower right" if len(records) == 1 else "best")
    path = directory / "figures" / "epochs.png"
    write_in_place(path, lambda p: figure.savefig(p, format="png", dpi=150, transparent=False))
    return path


MARKS = {
    "reading": (READING, "o", True), "base action": (ACTION, "D", False), "adapted action": (ACTION, "D", True),
    "adapted reading": (READING, "s", False), "asked action": (ACTION, "^", True),
    "action": (ACTION, "D", True), "closure": (INK, "s", True),
}  # fmt: skip


@styled
def points_svg(name: str, rows: Sequence[tuple[str, Mapping[str, Interval | None]]], title: str, xlabel: str) -> str | None:
    """Draw intervals as horizontal bars; None if nothing is known.

    Args:
        rows: (label, intervals by key of :data:`MARKS`) of every row.
    """
    rows = [(label, {k: i for k, i in parts.items() if known(i)}) for label, parts in rows]
    rows = [(label, parts) for label, parts in rows if parts]
    kinds = [k for k in MARKS if any(k in parts for _, parts in rows)]
    if not rows:
        return None
    figure = new_figure(figsize=(WIDTH, 1.15 + len(rows) * (0.2 + 0.17 * len(kinds))), layout="constrained")
    axes = figure.subplots()
    for k, kind in enumerate(kinds):
        colour, marker, filled = MARKS[kind]
        value, lower, upper = numbers([parts.get(kind) for _, parts in rows])
        y = np.arange(len(rows)) + (k - (len(kinds) - 1) / 2) * 0.62 / max(len(kinds), 1)
        axes.errorbar(
            value, y, xerr=np.maximum(0, [value - lower, upper - value]), linestyle="none", color=colour, marker=marker, markersize=5.5, capsize=2,
            markerfacecolor=colour if filled else "white", label=kind,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [wrap(label) for label, _ in rows])
    axes.set(xlabel=xlabel, ylim=(len(rows) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=PALE)
    axes.set_axisbelow(True)
    low, high = axes.get_xlim()
    axes.set_xlim(min(0, low), max(1.02, high))
    axes.set_title(title, loc="left")
    if len(kinds) > 1:
        figure.legend(loc="outside lower center", ncols=len(kinds), columnspacing=1.2, handletextpad=0.3)
    told = "; ".join(f"{label}: " + ", ".join(f"{k} {interval_text(i)}" for k, i in parts.items()) for label, parts in rows)
    return to_svg(figure, name, f"{title}. {told}")


@styled
def layers_svg(layers: Sequence[Mapping[str, Any]], chosen: Sequence[int], title: str) -> str | None:
    """Draw balanced accuracy and AUROC of a probe and of the logit lens at every layer.

    The logit lens applies the model's final norm and output head to the residuals of a layer.

    Args:
        chosen: layers that the frozen probe reads; empty if unknown.
    """
    figure = new_figure(figsize=(WIDTH, 4.6), layout="constrained")
    rows = figure.subplots(2, 1, sharex=True)
    numbered = [row["layer"] for row in layers]
    for axes, kind, name in zip(rows, ("balanced", "auroc"), ("balanced accuracy", "AUROC"), strict=True):
        for layer in chosen:
            label = f"the probe's layer{'s' * (len(chosen) > 1)} ({', '.join(map(str, chosen))})"
            axes.axvline(layer, color="0.75", linewidth=5, zorder=0, label=label if layer == chosen[0] else None)
        _band(axes, numbered, [r["reading"][kind] for r in layers], color=READING, marker="o", linestyle="-", label="reading")
        if any(r.get("lens") for r in layers):
            lens = [(r.get("lens") or {}).get(kind) for r in layers]
            _band(axes, numbered, lens, color=ACTION, marker="D", linestyle="--", label="logit lens")
        axes.set(ylabel=name, ylim=(min(0.4, axes.get_ylim()[0]), 1.02))
        axes.grid(axis="y", color=PALE)
        whole_numbers(axes.xaxis)
    rows[0].set_title(title, loc="left")
    rows[1].set_xlabel("decoder layer (0 is the embedding)")
    figure.legend(*rows[0].get_legend_handles_labels(), loc="outside lower center", ncols=3 if len(chosen) < 2 else 2)
    told = "; ".join(
        f"layer {r['layer']}: reading {interval_text(r['reading']['balanced'])}"
        + (f", logit lens {interval_text(r['lens']['balanced'])}" if r.get("lens") else "")
        for r in layers
    )
    return to_svg(figure, "layers", f"Balanced accuracy by layer. {title}. {told}")


def interval_text(interval: Interval | None) -> str:
    """Return an interval for the label of a figure."""
    if interval is None or interval["value"] is None:
        return "not measured"
    return f"{interval['value']:.2f}" + (f" [{interval['lower']:.2f}, {interval['upper']:.2f}]" if interval["lower"] is not None else "")
