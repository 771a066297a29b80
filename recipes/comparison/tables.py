"""Write what a comparison of objectives found: tables in Markdown and CSV, with the figures of :mod:`comparison.figures`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from comparison.collect import (
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
from comparison.csv_tables import NONE, Cell, Table, beside, interval, made_from, number, over_seeds, plain, total, write_csv
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
SHIFTED = {"balanced": "balanced", "standard accuracy": "standard", "rejection": "rejection"}
AS_IT_IS = {"as it is: balanced": "balanced", "as it is: standard accuracy": "standard"}
MORE = {
    "held-out question type": "transfer",
    "closure": "closure",
    "AUROC gained": "auroc_gain",
    "retention fell": "retention_drop",
    "CPU minutes": "cpu_minutes",
}
"""column -> figure: of a way at its operating point, of the model without a shift, and of its record"""


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


def _table(found: Mapping[tuple[str, int, str], Mapping[int, Any]], variant: str, also_on: str | None) -> Table:
    also = [f"on {also_on}"] if also_on else []
    out = any(s["skipped"] for seeds in found.values() for s in seeds.values())
    halted = any(s["more"].get("stopped") for seeds in found.values() for s in seeds.values())
    names = ["labels", "way", "seeds", *SHIFTED, "base counted", *also, "as it is: balanced, standard", *MORE, "reading"]
    names += ["reading not real", *(["stopped"] if halted else []), "over budget", *(["items left out"] if out else [])]
    table = Table(kind="ways", variant=variant, names=names)
    for labels in budgets_of(found, variant):
        for way in ways_of(found, variant):
            found_here = found.get((variant, labels, way))
            if not found_here:
                continue
            seeds = list(found_here.values())
            means = {name: mean_over_seeds([s[key] for s in seeds]) for name, key in SHIFTED.items()}
            cells = [_labels(labels, seeds), _way(way, seeds), made_from(list(means.values()), shown=True)]
            cells += [interval(name, mean) for name, mean in means.items()]
            instead = sum(s["base_instead"] for s in seeds)
            cells.append(Cell(text=str(instead or NONE), columns={"base counted": str(instead)}))
            cells += [over_seeds(also[0], [float(s["also"][0]) for s in seeds])] if also_on else []
            own = {name: [s["own"][key][0] if all(s["more"] for s in seeds) else np.nan for s in seeds] for name, key in AS_IT_IS.items()}
            cells.append(beside([plain(name, number(float(np.mean(values)))) for name, values in own.items()]))
            cells += [over_seeds(name, [s["more"].get(key) for s in seeds]) for name, key in MORE.items()]
            layers = plain("reading: layers", " ".join(str(s["probe"]["layer"]) for s in seeds))
            cells.append(beside([over_seeds("reading: AUROC", [s["probe"]["auroc"] for s in seeds]), layers]))
            flags = {"reading not real": "not_real", **({"stopped": "stopped"} if halted else {}), "over budget": "over_budget"}
            cells += [total(name, [s["more"].get(key) for s in seeds]) for name, key in flags.items()]
            left = [str(s["skipped"]) for s in seeds]
            cells += [Cell(text=" + ".join(left), columns={"items left out": " ".join(left)})] if out else []
            table.add(cells)
    return table


def _labels(labels: int, seeds: Sequence[Mapping[str, Any]]) -> Cell:
    """A budget, with the labelled items that it came to where those are others: a budget takes whole clips."""
    taken = sorted({s["probe"]["labels"] for s in seeds})
    items = " to ".join(map(str, dict.fromkeys((taken[0], taken[-1]))))
    return Cell(text=str(labels) + (f" ({items})" if taken != [labels] else ""), columns={"labels": str(labels), "labelled items": items})


def _way(way: str, seeds: Sequence[Mapping[str, Any]]) -> Cell:
    chosen = ", ".join(str(s["alternative"]) for s in seeds if s["alternative"] is not None)
    return Cell(text=way + (f" (val chose {chosen})" if chosen else ""), columns={"way": way, "val chose": chosen})


def pairs(ways: Sequence[str]) -> list[tuple[str, str]]:
    """What is set against what: consistency, or what stands in its place, against everything, and both together against labels alone."""
    ways = [w for w in ways if w not in (BASE, BY_VAL)]
    first = next((w for w in ("consistency", "consistency+gold", *ways) if w in ways), "")
    together = [("consistency+gold", "gold")] if {"consistency+gold", "gold"} <= set(ways) else []
    return list(dict.fromkeys([*((first, w) for w in ways if w != first), *together]))


def _differences(found: Mapping[tuple[str, int, str], Found], variant: str) -> Table:
    """In Markdown a row a pair, and in the CSV file a row a pair and number of labels: two ways may share other seeds at each."""
    budgets = budgets_of(found, variant)
    table = Table(kind="differences", variant=variant, names=["difference", *(f"{n} labels" for n in budgets)])
    for ours, theirs in pairs(ways_of(found, variant)):
        two = {n: [found.get((variant, n, way), {}) for way in (ours, theirs)] for n in budgets}
        own = {n: [{k: s["own"] for k, s in seeds.items() if s["more"]} for seeds in both] for n, both in two.items()}
        for of, said, sides in (("chosen", "", two), ("as trained", ", as trained, without shifts", own)):
            means = {n: against(sides[n][0], sides[n][1], "balanced") for n in budgets}
            if of == "as trained" and not any(means.values()):
                continue
            cells = {n: interval("balanced", mean) for n, mean in means.items() if mean}
            table.rows.append([f"{ours} - {theirs}{said}", *((cells[n].text or NONE) if n in cells else NONE for n in budgets)])
            key = {"way": ours, "minus": theirs, "of": of}
            for n, cell in cells.items():
                mean = means[n]
                assert mean is not None
                table.records.append(key | {"labels": str(n), **made_from([mean]).columns, **cell.columns})
    return table


def _points(found: Mapping[tuple[str, int, str], Mapping[int, Any]], variant: str) -> Table:
    named = {b: "any loss" if b is None else f"{100 * b:g} point{'s' * (b != 0.01)}" for b in BUDGETS}
    table = Table(kind="points", variant=variant, names=["labels", "way", *named.values()])
    for labels in budgets_of(found, variant):
        for way in (w for w in ways_of(found, variant) if w != BASE):
            seeds = found.get((variant, labels, way))
            if not seeds:
                continue
            means = {
                (b, name): mean_over_seeds([s["at"][b][name] for s in seeds.values()]) for b in BUDGETS for name in ("balanced", "standard")
            }
            cells = [
                beside([interval(at, means[b, "balanced"]), plain(f"{at}: standard accuracy", number(means[b, "standard"].interval.value))])
                for b, at in named.items()
            ]
            table.add([plain("labels", labels), plain("way", way), made_from(list(means.values())), *cells])
    return table


def _noise(found: Mapping[tuple[str, int, str], Mapping[int, Any]], variant: str) -> Table:
    keys = {"calibration error": "ece", "confident wrong rejections": "sure_and_wrong"}
    table = Table(kind="noise", variant=variant, names=["labels", "way", *keys])
    for labels in budgets_of(found, variant):
        for way in ways_of(found, variant):
            seeds = found.get((variant, labels, way), {})
            seen = [s["degraded"] for s in seeds.values() if np.isfinite(s["degraded"]["ece"][0])]
            if seen:
                means = {name: mean_over_seeds([s[k] for s in seen]) for name, k in keys.items()}
                cells = [interval(name, mean) for name, mean in means.items()]
                table.add([plain("labels", labels), plain("way", way), made_from(list(means.values())), *cells])
    return table
