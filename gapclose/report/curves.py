"""Draw ROC curves, calibration, and the search of the probe, as inline SVG for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gapclose.report.figures import MARKS, PALE, READING, WIDTH, interval_text
from gapclose.report.style import new_figure, styled, to_svg, whole_numbers


@styled
def roc_svg(scope: str, curves: Mapping[str, Mapping[str, Any]], name: str, title: str) -> str | None:
    """Draw hit rate against false-alarm rate of reading and actions, with their operating points."""
    figure = new_figure(figsize=(3.4, 3.65 + 0.17 * len(curves)), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.75", linewidth=1, linestyle=":")
    described = []
    for kind, style in (("reading", "-"), ("adapted reading", "-."), ("base action", ":"), ("adapted action", "--"), ("action", "--")):
        curve, (colour, marker, filled) = curves.get(kind), MARKS[kind]
        if not curve:
            continue
        auroc, point = curve["auroc"], curve.get("point")
        axes.plot(
            curve["false_alarm"], curve["hit"], color=colour, linestyle=style, linewidth=1.6, label=f"{kind}, AUROC {interval_text(auroc)}"
        )
        described.append(f"{kind}: AUROC {interval_text(auroc)}")
        if point:
            axes.plot(
                point["false_alarm"], point["hit"], color=colour, marker=marker, markersize=8, linestyle="none", clip_on=False, zorder=5,
                markeredgecolor="white" if filled else colour, markerfacecolor=colour if filled else "white",
            )  # fmt: skip
            described[-1] += f", operating point: hits {point['hit']:.2f} at false alarms {point['false_alarm']:.2f}"
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="false alarms", ylabel="hits", aspect="equal")
    axes.set_title(title, loc="left")
    figure.legend(loc="outside lower center", ncols=1)
    return to_svg(figure, name, f"ROC, {scope}. {title}. " + "; ".join(described))


@styled
def calibration_svg(curves: Mapping[str, Sequence[Mapping[str, float]]], title: str) -> str | None:
    """Draw accuracy against confidence, a point per bin of about equal size.

    Args:
        curves: key of :data:`MARKS` -> bins.
    """
    figure = new_figure(figsize=(WIDTH, 3.4 + 0.3 * (len(curves) > 1)), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.75", linewidth=1, linestyle=":")
    described, low = [], np.array([1.0])
    for kind, bins in curves.items():
        bins, (colour, marker, filled) = [b for b in bins if b["n"]], MARKS[kind]
        x, y = (np.array([b[k] for b in bins], dtype=float) for k in ("confidence", "accuracy"))
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.6, linestyle="-" if filled else ":")
        axes.scatter(
            x, y, s=26, marker=marker, facecolor=colour if filled else "white", edgecolor="white" if filled else colour, linewidth=0.8,
            alpha=0.85, zorder=3, clip_on=False, label=kind,
        )  # fmt: skip
        low = np.concatenate([low, x, y])
        described.append(
            f"{kind}: " + "; ".join(f"confidence {b['confidence']:.2f}: accuracy {b['accuracy']:.2f} ({b['n']} items)" for b in bins)
        )
    start = min(0.5, float(np.nanmin(low)) - 0.05)
    axes.set(xlabel="confidence" if len(curves) > 1 else f"confidence of the {next(iter(curves))}", ylabel="accuracy")
    axes.set(xlim=(start, 1.02), ylim=(start, 1.02))
    axes.set_title(title, loc="left")
    if len(curves) > 1:
        figure.legend(loc="outside lower center", ncols=len(curves), columnspacing=1.2, handletextpad=0.3)
    return to_svg(figure, "calibration", f"Calibration. {title}. {'. '.join(described)}")


@styled
def search_svg(tried: Sequence[Mapping[str, Any]], chosen: Sequence[int], title: str) -> str | None:
    """Draw the accuracy of the best probe of every single layer in the search; None for fewer than two layers.

    Args:
        tried: the rows of the search, as ``probes/frozen.json`` has them. chosen: layers that the frozen probe reads.
    """
    best = dict[int, float]()
    for row in sorted((r for r in tried if len(r.get("layers", [0])) == 1 and "accuracy" in r), key=lambda r: r.get("given_modality", 0)):
        best[row["layer"]] = row["accuracy"]  # of the best by the criterion of the search, which comes last
    if len(best) < 2:
        return None
    layers = sorted(best)
    figure = new_figure(figsize=(WIDTH, 2.9), layout="constrained")
    axes = figure.subplots()
    for layer in chosen:
        axes.axvline(layer, color="0.75", linewidth=5, zorder=0)
    axes.plot(layers, [best[k] for k in layers], color=READING, marker="o", markersize=4.5)
    axes.set(xlabel="decoder layer (grey: the frozen probe's)", ylabel="accuracy", ylim=(min(0.4, *best.values()) - 0.02, 1.02))
    axes.grid(axis="y", color=PALE)
    whole_numbers(axes.xaxis)
    axes.set_title(title, loc="left")
    described = "; ".join(f"layer {k}: {best[k]:.2f}" for k in layers)
    return to_svg(figure, "search", f"Accuracy of the best probe of every layer in the search. {title}. {described}")
