"""Write what a comparison of objectives found: tables in Markdown and CSV, with the figures of :mod:`comparison.figures`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from comparison.collect import (
    Mean,
    adapted_points,
    against,
    chosen_on_val,
    cpu_minutes,
    figures,
    mean_over_seeds,
    more,
    on_degraded,
    read_by,
    skipped,
    trained,
    untrained,
    untrained_front,
)
from comparison.csv_tables import Table, write_csv
from comparison.figures import BASE, BY_VAL, Found, budgets_of, draw_fronts, draw_labels, ways_of

from gapclose.core.files import read_json, write_text
from gapclose.evaluation.baselines.compare import BUDGETS
from gapclose.metrics.config import GapConfig

HEADS = {
    "differences": "Differences in balanced accuracy, seed by seed (of one seed, item by item):",
    "points": "Operating points: balanced accuracy, and standard accuracy, on test where standard accuracy on val may fall by so much. Trained "
    "models are moved by a shift of their rejections, the others by their settings; both are chosen on val:",
    "noise": "Clips whose picture and sound are noise: calibration error of the answers over concepts, and confident (0.9) wrong rejections, of "
    "models as trained, without shifts (of methods without training, only answers are stored):",
}
"""kind of table -> the sentence above it"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The runs of one way at one number of labels with one seed: several are alternatives, of which val chooses one."""

    variant: str
    labels: int
    seed: int
    way: str
    """an objective, a way of the comparison, or ``untrained``"""
    directories: Sequence[Path]


def gather(
    rows: Sequence[Row], budget: float, objectives: Sequence[str], also_on: Mapping[str, str | None]
) -> dict[tuple[str, int, str], dict[int, dict[str, Any]]]:
    """(variant, label budget, way) -> seed -> figures, with what the record says besides under ``more`` and ``degraded``.

    Args:
        objectives: those that val chooses among for :data:`BY_VAL`, where all of them are there. also_on: variant -> ``tag=value``.
    """
    found: dict[tuple[str, int, str], dict[int, dict[str, Any]]] = {}
    rule = GapConfig(standard_budget=budget, choose="shifted")
    for row in rows:
        variant, labels, seed, way = row.variant, row.labels, row.seed, row.way
        several = len(row.directories) > 1
        number = chosen_on_val(row.directories, rule) if several else 0
        directory = row.directories[number]
        if way == "untrained":
            by_budget, fronts = {b: untrained(directory, b) for b in BUDGETS}, untrained_front(directory)
            answers = by_budget[budget]
            points = {name: {b: at[name] for b, at in by_budget.items()} for name in answers}
        else:
            answers = {way if side == "adapted" else BASE: a for side, a in trained(directory).items()}
            at, edge = adapted_points(directory)
            points, fronts = {way: at}, {way: edge}
        for name, own in answers.items():
            of = points[name][budget] if name in points else own
            entry = found.setdefault((variant, labels, name), {})
            entry[seed] = {**figures(of, seed), "degraded": on_degraded(own), "more": more(directory) if name == way else {}}
            if "cpu_minutes" in entry[seed]["more"]:
                entry[seed]["more"]["cpu_minutes"] = cpu_minutes(row.directories)
            entry[seed]["own"], entry[seed]["skipped"] = figures(own, seed), skipped(directory)
            entry[seed]["at"] = {b: figures(a, seed) for b, a in points.get(name, {}).items()}
            tag = also_on[variant]
            entry[seed]["also"] = figures(of, seed, of.tagged(*tag.split("=", 1)))["balanced"] if tag else None
            entry[seed]["alternative"] = number if several and name == way else None
            entry[seed]["base_instead"], entry[seed]["probe"] = of.base_instead, read_by(directory)
            entry[seed]["front"] = fronts.get(name, [])
    of_objective = {(r.variant, r.labels, r.seed, r.way): r.directories[0] for r in rows if r.way in objectives}
    for variant, labels, seed in dict.fromkeys(key[:3] for key in of_objective):
        there = [of_objective.get((variant, labels, seed, way)) for way in objectives]
        directories = [d for d in there if d is not None]
        if len(directories) > 1 and len(directories) == len(there):
            way = objectives[chosen_on_val(directories, rule)]
            entry = found[variant, labels, way][seed]
            costs = {"cpu_minutes": cpu_minutes(directories)}
            found.setdefault((variant, labels, BY_VAL), {})[seed] = {**entry, "alternative": way, "more": entry["more"] | costs}
    return found


def write_results(
    rows: Sequence[Row], path: Path, budget: float, total: int, *, objectives: Sequence[str], also_on: Mapping[str, str | None]
) -> None:
    """Write ``path`` (Markdown), its tables as CSV (:func:`write_csv`) and its figures beside it.

    Args:
        budget: standard accuracy that every way may lose. total: runs that the comparison has, finished or not. objectives: those that val
            chooses among once more. also_on: variant -> ``tag=value`` of test items that get a column of their own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    found = gather(rows, budget, objectives, also_on)
    variants = list(dict.fromkeys(key[0] for key in found))
    seeds, runs = sorted({row.seed for row in rows}), len({d for row in rows for d in row.directories})
    lines = ["# Objectives at equal label budgets", ""]
    lines += [
        f"{runs} of {total} runs ({made_by(rows)}), seeds {', '.join(map(str, seeds))}; figures are means over the seeds that are there, on test "
        "clips. Intervals (95 %, not corrected for their number) are Student's t over three seeds or more; round brackets hold the values of two "
        "seeds; where there is one, its clips are resampled, which says nothing of another training. Seeds draw clips, labels and trainings anew "
        "from one pool and with one base model: their test clips overlap, and nothing is said of other data or another base. "
        f"Every way may lose {100 * budget:g} points of standard accuracy on `val`, whose labels are clean and not counted, and is chosen there: "
        "methods without training by their setting, trained ways by their epoch and a shift of their rejections' scores. The columns say what test "
        "clips saw; *as it is*, *held-out question type*, *closure*, *AUROC gained*, *retention fell* and *over budget* (seeds in which standard "
        "accuracy fell on test by more than the budget, or answers collapsed) are of the trained model without the shift. *Base counted*: seeds in "
        "which no setting or shift within the budget did better on val than the base model, so that its answers count; a mean with some of them is "
        "a mean of two kinds. *Best on val* takes, seed by seed, the objective that val chooses, by the rule that chose the epochs (of equals the "
        "first) and at this budget; it costs all of them, and is set against none, being one of them. *Reading*: AUROC of the frozen probe on test, "
        "and its layer by seed.",
        "",
    ]
    tables = list[Table]()
    for variant in variants:
        lines += [f"## {variant}", ""]
        for table in (
            _table(found, variant, also_on[variant]),
            _differences(found, variant),
            _points(found, variant),
            _noise(found, variant),
        ):
            if table.rows:
                lines += [*([HEADS[table.kind], ""] if table.kind in HEADS else []), *table.markdown(), ""]
                tables.append(table)
        name = "-".join("".join(c if c.isalnum() else " " for c in variant).split())
        drawn = {
            f"{path.stem}-{name}-{kind}.svg": draw(found, variant) for kind, draw in (("labels", draw_labels), ("fronts", draw_fronts))
        }
        for file, figure in drawn.items():
            if figure is None:  # no matplotlib
                continue
            figure.savefig(path.parent / file, metadata={"Date": None})
            lines += [f"![{_alt(file)}]({file})", ""]
    write_text(path, "\n".join(lines).rstrip() + "\n")
    write_csv(tables, path.with_suffix(""))


def made_by(rows: Sequence[Row]) -> str:
    """Which code made the runs, by the commits that they remember."""
    paths = [d / "environment.json" for d in dict.fromkeys(d for row in rows for d in row.directories)]
    counts = Counter(str(read_json(p).get("commit"))[:10] for p in paths if p.is_file())
    return "by commit " + ", ".join(f"{commit}: {n}" for commit, n in counts.most_common()) if len(counts) > 1 else "all by one commit"


def _alt(file: str) -> str:
    return "balanced accuracy against number of labels" if file.endswith("labels.svg") else "rejection against standard accuracy"


def _show(mean: Mean, digits: int = 3) -> str:
    i, (left, right) = mean.interval, "()" if mean.seeds == 2 else "[]"
    return f"{i.value:.{digits}f}" + (f" {left}{i.lower:.{digits}f}, {i.upper:.{digits}f}{right}" if np.isfinite(i.lower) else "")


def _plain(values: Sequence[float | None]) -> str:
    there = [v for v in values if v is not None and np.isfinite(v)]
    some = f" ({len(there)} of {len(values)})" if len(there) < len(values) else ""
    return f"{np.mean(there):.3f}{some}" if there else "-"


def _count(values: Sequence[float | None]) -> str:
    there = [v for v in values if v is not None]
    return f"{sum(there):.0f}" if there else "-"


def _table(found: Mapping[tuple[str, int, str], Mapping[int, Any]], variant: str, also_on: str | None) -> Table:
    also = [f"on {also_on}"] if also_on else []
    names = ["labels", "way", "seeds", "balanced", "standard accuracy", "rejection", "base counted", *also, "as it is: balanced, standard"]
    out = any(s["skipped"] for seeds in found.values() for s in seeds.values())
    halted = any(s["more"].get("stopped") for seeds in found.values() for s in seeds.values())
    names += [
        "held-out question type",
        "closure",
        "AUROC gained",
        "retention fell",
        "CPU minutes",
        "reading",
        "reading not real",
        *(["stopped"] if halted else []),
        "over budget",
        *(["items left out"] if out else []),
    ]
    rows = list[list[str]]()
    for labels in budgets_of(found, variant):
        for way in ways_of(found, variant):
            seeds = found.get((variant, labels, way))
            if not seeds:
                continue
            which = [str(s["alternative"]) for s in seeds.values() if s["alternative"] is not None]
            cells = [_labels(labels, seeds), way + (f" (val chose {', '.join(which)})" if which else ""), str(len(seeds))]
            cells += [_show(mean_over_seeds([s[name] for s in seeds.values()])) for name in ("balanced", "standard", "rejection")]
            cells.append(str(sum(s["base_instead"] for s in seeds.values()) or "-"))
            cells += [_plain([float(s["also"][0]) for s in seeds.values()])] if also_on else []
            if all(s["more"] for s in seeds.values()):
                mean = [np.mean([s["own"][name][0] for s in seeds.values()]) for name in ("balanced", "standard")]
                cells.append(f"{mean[0]:.3f}, {mean[1]:.3f}")
            else:
                cells.append("-")
            for name in ("transfer", "closure", "auroc_gain", "retention_drop", "cpu_minutes"):
                cells.append(_plain([s["more"].get(name) for s in seeds.values()]))
            cells.append(
                f"{_plain([s['probe']['auroc'] for s in seeds.values()])}, {' '.join(str(s['probe']['layer']) for s in seeds.values())}"
            )
            flags = ("not_real", *(["stopped"] if halted else []), "over_budget")
            cells += [_count([s["more"].get(name) for s in seeds.values()]) for name in flags]
            cells += [" + ".join(str(s["skipped"]) for s in seeds.values())] if out else []
            rows.append(cells)
    return Table(kind="ways", variant=variant, names=names, rows=rows)


def _labels(labels: int, seeds: Mapping[int, Any]) -> str:
    """A budget, with the labelled items that it came to where those are others: a budget takes whole clips."""
    taken = sorted({s["probe"]["labels"] for s in seeds.values()})
    return str(labels) + (f" ({' to '.join(map(str, dict.fromkeys((taken[0], taken[-1]))))})" if taken != [labels] else "")


def pairs(ways: Sequence[str]) -> list[tuple[str, str]]:
    """What is set against what: consistency, or what stands in its place, against everything, and both together against labels alone."""
    ways = [w for w in ways if w not in (BASE, BY_VAL)]
    first = next((w for w in ("consistency", "consistency+gold", *ways) if w in ways), "")
    together = [("consistency+gold", "gold")] if {"consistency+gold", "gold"} <= set(ways) else []
    return list(dict.fromkeys([*((first, w) for w in ways if w != first), *together]))


def _differences(found: Mapping[tuple[str, int, str], Found], variant: str) -> Table:
    budgets, rows = budgets_of(found, variant), list[list[str]]()
    for ours, theirs in pairs(ways_of(found, variant)):
        cells, plain = [], []
        for labels in budgets:
            two = [found.get((variant, labels, way), {}) for way in (ours, theirs)]
            mean = against(two[0], two[1], "balanced")
            cells.append(_show(mean) if mean else "-")
            trained_both = all(s["more"] for seeds in two for s in seeds.values())
            mine, rival = ({n: s["own"] for n, s in seeds.items()} for seeds in two)
            mean = against(mine, rival, "balanced") if trained_both else None
            plain.append(_show(mean) if mean else "-")
        rows.append([f"{ours} - {theirs}", *cells])
        rows += [[f"{ours} - {theirs}, as trained, without shifts", *plain]] if set(plain) != {"-"} else []
    return Table(kind="differences", variant=variant, names=["difference", *(f"{n} labels" for n in budgets)], rows=rows)


def _points(found: Mapping[tuple[str, int, str], Mapping[int, Any]], variant: str) -> Table:
    rows = list[list[str]]()
    for labels in budgets_of(found, variant):
        for way in (w for w in ways_of(found, variant) if w != BASE):
            seeds, cells = found.get((variant, labels, way), {}), []
            for budget in BUDGETS if seeds else ():
                means = [mean_over_seeds([s["at"][budget][name] for s in seeds.values()]) for name in ("balanced", "standard")]
                cells.append(f"{_show(means[0])}, {means[1].interval.value:.3f}")
            rows += [[str(labels), way, *cells]] if cells else []
    named = ["any loss" if b is None else f"{100 * b:g} point{'s' * (b != 0.01)}" for b in BUDGETS]
    return Table(kind="points", variant=variant, names=["labels", "way", *named], rows=rows)


def _noise(found: Mapping[tuple[str, int, str], Mapping[int, Any]], variant: str) -> Table:
    rows = list[list[str]]()
    for labels in budgets_of(found, variant):
        for way in ways_of(found, variant):
            seeds = found.get((variant, labels, way), {})
            seen = [s["degraded"] for s in seeds.values() if np.isfinite(s["degraded"]["ece"][0])]
            if seen:
                shown = [_show(mean_over_seeds([s[k] for s in seen])) for k in ("ece", "sure_and_wrong")]
                rows.append([str(labels), way, *shown])
    return Table(kind="noise", variant=variant, names=["labels", "way", "calibration error", "confident wrong rejections"], rows=rows)
