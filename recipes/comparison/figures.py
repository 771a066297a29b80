"""The figures of a comparison of objectives: accuracy against labels, and rejection against standard accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from comparison.collect import Mean, mean_over_seeds

from gapclose.report.style import new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Found = Mapping[int, Mapping[str, Any]]
"""seed -> figures"""
BASE = "base"
BY_VAL = "best on val"
"""the way that takes, seed by seed, the trained objective that val chooses by the rule that chose the epochs; of equals the first"""
LOOKS = {
    "base": ("#000000", "x"),
    "consistency": ("#0072B2", "o"),
    "gold": ("#D55E00", "D"),
    "consistency+gold": ("#009E73", "s"),
    "dpo": ("#CC79A7", "^"),
    "grpo": ("#E69F00", "v"),
    BY_VAL: ("#000000", "8"),
    "pgla": ("#CC79A7", "P"),
    "pgla_wide": ("#E69F00", "X"),
    "shift": ("#56B4E9", "<"),
    "shift_each": ("#56B4E9", ">"),
    "pgla_text": ("#999999", "P"),
    "text": ("#999999", "d"),
    "probe": ("#333333", "*"),
    "shuffled targets": ("#999999", "H"),
    "blank media": ("#666666", "p"),
    "consistency, chosen": ("#0072B2", "8"),
    "gold, chosen": ("#D55E00", "h"),
    "gold, all layers": ("#8B3A00", "d"),
    "consistency+gold, shuffled targets": ("#999999", "s"),
}
"""way -> colour and marker, the same in every figure; methods without training are drawn hollow and dashed"""
RIVALS = ("base", "pgla", "pgla_wide", "shift", "shift_each", "pgla_text", "text", "probe")
LEVELS = np.linspace(1.0, 0.4, 121)
"""standard accuracies on val at which fronts are averaged over seeds"""


def ways_of(found: Mapping[Any, Any], variant: str) -> list[str]:
    """The ways that a variant has figures of."""
    return list(dict.fromkeys(way for v, _, way in found if v == variant))


def budgets_of(found: Mapping[Any, Any], variant: str) -> list[int]:
    """The numbers of labels that a variant has figures at."""
    return sorted({labels for v, labels, _ in found if v == variant})


def _look(way: str) -> dict[str, Any]:
    colour, marker = LOOKS.get(way, ("#000000", "h"))
    return {"color": colour, "marker": marker, "label": way, "markerfacecolor": "white" if way in RIVALS else colour}


def _error(means: Sequence[Mean]) -> tuple[np.ndarray, np.ndarray]:
    """Values, and how far their intervals reach to both sides, (2, n)."""
    value, lower, upper = (np.array([getattr(m.interval, k) for m in means]) for k in ("value", "lower", "upper"))
    return value, np.stack([value - lower, upper - value])


@styled
def draw_labels(found: Mapping[tuple[str, int, str], Found], variant: str) -> Figure | None:
    """Balanced accuracy with intervals: against the number of labels, a line a way; where there is one number of labels, a row a way."""
    budgets, ways = budgets_of(found, variant), [w for w in ways_of(found, variant) if w != BASE]
    means = {
        way: {n: mean_over_seeds([s["balanced"] for s in found[variant, n, way].values()]) for n in budgets if (variant, n, way) in found}
        for way in ways
    }
    figure = new_figure(figsize=(7, 4.2 if len(budgets) > 1 else 1.4 + 0.3 * len(ways)), layout="constrained")
    axes = figure.subplots()
    if len(budgets) == 1:
        for row, way in enumerate(ways):
            value, error = _error(list(means[way].values()))
            axes.errorbar(value, [row], xerr=error, linestyle="none", markersize=6, linewidth=1.2, capsize=2, **_look(way))
        axes.set_yticks(range(len(ways)), ways)
        axes.set_ylim(len(ways) - 0.5, -0.5)
        axes.set(xlabel="balanced accuracy, test clips")
        axes.set_title(f"{variant} ({budgets[0]} labels)", loc="left")
        return figure
    for place, way in enumerate(ways):
        value, error = _error(list(means[way].values()))
        x = np.array(list(means[way])) * (1 + 0.02 * (place - len(ways) / 2))  # side by side, not on top of each other
        axes.errorbar(
            x, value, yerr=error, linestyle="--" if way in RIVALS else "-", markersize=6, linewidth=1.2, capsize=2, **_look(way)
        )  # fmt: skip
    axes.set(xscale="log", xlabel="labelled items of fit", ylabel="balanced accuracy, test clips")
    axes.set_xticks(budgets, [str(n) for n in budgets])
    axes.set_ylim(top=min(1.02, axes.get_ylim()[1]))
    axes.minorticks_off()
    axes.set_title(variant, loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def mean_front(fronts: Sequence[Sequence[Sequence[float | None]]]) -> np.ndarray:
    """One front for several seeds: at every level of standard accuracy on val, each seed's setting that rejects most there and does not fall
    below the level (its best in standard accuracy where all do), averaged as (standard accuracy, rejection) on test. (L, 2); empty
    where a seed has none.

    Args:
        fronts: a seed's settings as (standard accuracy on val, standard accuracy on test, rejection on test), the highest on val first.
    """
    whole = [np.array([p for p in front if None not in p], dtype=float).reshape(-1, 3) for front in fronts]
    if not whole or not all(map(len, whole)):
        return np.empty((0, 2))
    taken = [front[np.maximum((front[:, :1] >= LEVELS).sum(0) - 1, 0), 1:] for front in whole]  # (L, 2) each
    mean = np.mean(taken, axis=0)
    return mean[np.sort(np.unique(mean, axis=0, return_index=True)[1])]


@styled
def draw_fronts(found: Mapping[tuple[str, int, str], Found], variant: str) -> Figure | None:
    """Rejection against standard accuracy on test along the fronts of val: a panel for the fewest and one for the most labels; a line a way,
    the mean over seeds, with the seeds pale behind it."""
    budgets = budgets_of(found, variant)
    shown = sorted({budgets[0], budgets[-1]})
    figure = new_figure(figsize=(4.2 * len(shown) + 1.6, 4.0), layout="constrained")
    for axes, labels in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for way in (w for w in ways_of(found, variant) if w != BASE):
            look, style = _look(way), "--" if way in RIVALS else "-"
            fronts = [seed["front"] for seed in found.get((variant, labels, way), {}).values()]
            for front in fronts if len(fronts) > 1 else ():
                axes.plot(*mean_front([front]).T, linestyle=style, color=look["color"], linewidth=0.6, alpha=0.2)
            points = mean_front(fronts)
            axes.plot(
                *(points if len(points) else np.full((1, 2), np.nan)).T, linestyle=style, **look | {"markersize": 3, "linewidth": 1.2}
            )
        axes.set(xlabel="standard accuracy, test", ylabel="rejection rate, test", xlim=(0.45, 1.02), ylim=(-0.02, 1.02))
        axes.set_title(f"{variant}, {labels} labels", loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
