"""Compare the settings and results of several runs, as a table, as JSON, and as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from gapclose.core.settings import AUTO, AUTO_KEYS, EXECUTION_ONLY_KEYS, decisions, read_settings
from gapclose.evaluation.run_records import summarise
from gapclose.evaluation.summary_text import show, skipped_words
from gapclose.metrics.significance import holm
from gapclose.report.asked_models import ANSWERS, ANSWERS_TITLE, answer_rows, doubts, is_asked, read_asked
from gapclose.report.console import print_sentence, wide_console
from gapclose.report.tables import print_table

ASKED_ACTION = "asked action"
COLUMNS = {
    "base action": ("base", "balanced"),
    "reading": ("reading", "balanced"),
    "adapted action": ("adapted", "balanced"),
    ASKED_ACTION: ("asked", "action", "balanced"),
    "closure": ("closure",),
    "standard drop": ("standard_drop",),
}
"""heading -> path of an interval in :func:`gapclose.evaluation.run_records.summarise`, or in the figures of a model that was only asked"""
CLAIMS = ("run", "modality", "reading - best control", "p (Holm)", "change of action", "p of the change (Holm)", "verdict")
VERDICTS = "what may be claimed: p corrected over {n} tests of a reading and {m} of a change (Holm)"


def compare(directories: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the summaries of runs, with directory (``run``) and differing settings (``differs``).

    A directory of ``gapclose ask`` is compared as :func:`gapclose.report.asked_models.read_asked` returns it.
    Settings of execution (directory, tracking, micro-batches; :data:`EXECUTION_ONLY_KEYS`) are not
    compared. The seed is not in ``differs``, because it is a key of the summary.

    Raises:
        ValueError: naming every directory that holds no measurement.
    """
    runs, missing = [], []
    for directory in directories:
        try:
            runs.append(read_asked(directory) if is_asked(directory) else {"run": str(directory), **summarise(directory)})
        except ValueError as error:
            missing.append(str(error))
    if missing:
        raise ValueError("\n".join(missing))
    ours = measured(runs)
    settings = [_settings(Path(run["run"])) for run in ours]
    keys = [k for k in dict.fromkeys(k for s in settings for k in s) if k != "seed" and not k.startswith(EXECUTION_ONLY_KEYS)]
    varied = [k for k in keys if any(s.get(k) != settings[0].get(k) for s in settings)]
    for run, own in zip(ours, settings, strict=True):
        run["differs"] = {k: own.get(k) for k in varied}
    return runs


def _settings(directory: Path) -> dict[str, Any]:
    """Settings of a run, with what it decided in the place of ``auto``."""
    given, found = read_settings(directory), decisions(directory)
    return given | {key: found[key]["value"] for key in AUTO_KEYS if given.get(key) == AUTO and key in found}


def measured(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs, without models that were only asked."""
    return [run for run in runs if "asked" not in run]


def columns(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the headings of :data:`COLUMNS`; that of asked models only where there is one."""
    return [name for name in COLUMNS if name != ASKED_ACTION or len(runs) > len(measured(runs))]


def cells(run: dict[str, Any], headings: Sequence[str]) -> list[Any]:
    """Return the intervals of one run below these headings of :data:`COLUMNS`; a model that was only asked has its action alone."""
    found = []
    for name in headings:
        value: Any = run if (name == ASKED_ACTION) == ("asked" in run) else None
        for key in COLUMNS[name]:
            value = None if value is None else value[key]
        found.append(value)
    return found


def differences(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the settings of every run that most of the runs do not share, as ``key value, key value``; of a model that was asked its name."""
    every = [{key: "null" if value is None else str(value) for key, value in run["differs"].items()} for run in measured(runs)]
    counts = {key: Counter(of[key] for of in every).most_common(1)[0] for key in (every[0] if every else ())}
    shared = {(key, value) for key, (value, count) in counts.items() if count > len(every) / 2}
    ours = iter([", ".join(f"{key} {value}" for key, value in of.items() if (key, value) not in shared) or "-" for of in every])
    return [f"model {run['asked']['model']}" if "asked" in run else next(ours) for run in runs]


def names(directories: Sequence[str]) -> list[str]:
    """Return names of runs for a table: last parts of their paths if distinct, else the paths."""
    last = [Path(d).resolve().name for d in directories]
    return last if len(set(last)) == len(last) else [str(d) for d in directories]


def tested(runs: Sequence[dict[str, Any]]) -> dict[tuple[int, str], float]:
    """Return the Holm-corrected p of every verdict by (run, modality).

    p is the larger of those against the best control and against random networks. Identical
    verdicts count as one test, because runs on one base model share its tests.
    """
    family = {(n, name): f"{name} {of}" for n, run in enumerate(runs) for name, of in run["verdicts"].items() if of["p"] is not None}
    corrected = holm({test: runs[n]["verdicts"][name]["p"] for (n, name), test in family.items()})
    return {place: corrected[test] for place, test in family.items()}


def changed(runs: Sequence[dict[str, Any]]) -> dict[tuple[int, str], tuple[float, float]]:
    """Return the change of the action by training and its Holm-corrected p, by (run, modality)."""
    places = [(n, name) for n, run in enumerate(runs) for name, part in run["modality"].items() if part["significance"]]
    parts = {f"{n} {name}": runs[n]["modality"][name] for n, name in places}
    corrected = holm({name: part["significance"]["p"] for name, part in parts.items()})
    changes = {name: part["adapted"]["value"] - part["base"]["value"] for name, part in parts.items()}
    return {place: (changes[name], corrected[name]) for place, name in zip(places, parts, strict=True)}


def claimed(runs: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return the supported claims, a row per run and modality with columns :data:`CLAIMS`."""
    called = {run["run"]: name for run, name in zip(runs, names([r["run"] for r in runs]), strict=True)}
    runs = measured(runs)
    corrected, gains, rows = tested(runs), changed(runs), []
    for n, run in enumerate(runs):
        for name, of in run["verdicts"].items():
            p = corrected.get((n, name))
            word = of["word"] if of["word"] != "real" or p is None or p <= 0.05 else "real alone, not among all compared"
            change = gains.get((n, name))
            told = ("-", "-") if change is None else (f"{round(change[0], 2) + 0:+.2f}", f"{change[1]:.2g}")
            rows.append((called[run["run"]], name, of["difference"], "-" if p is None else f"{p:.2g}", *told, word))
    return rows


def _title(runs: Sequence[dict[str, Any]]) -> str:
    runs = measured(runs)
    readings = {f"{name} {of}" for run in runs for name, of in run["verdicts"].items() if of["p"] is not None}
    return VERDICTS.format(n=len(readings), m=len(changed(runs))) + skipped(runs)


def skipped(runs: Sequence[dict[str, Any]]) -> str:
    """Describe how many items were left out because of their media; empty for none."""
    return skipped_words(sum(run["n_skipped"] for run in runs))


def compared(runs: Sequence[dict[str, Any]]) -> str:
    """Describe how many runs are compared, and how many models that were only asked."""
    asked = len(runs) - len(measured(runs))
    found = [f"{len(runs) - asked} run{'s' * (len(runs) - asked != 1)}"] if asked < len(runs) else []
    return " and ".join([*found, *([f"{asked} model{'s' * (asked != 1)} only asked"] if asked else [])])


def print_comparison(runs: Sequence[dict[str, Any]], console: Console | None = None) -> None:
    """Print a table of runs, and one of claims by run and modality, corrected over all runs."""
    title = f"{compared(runs)} on test clips: balanced accuracy, 95 % clip-bootstrap intervals{skipped(runs)}"
    more = ("left out",) if skipped(runs) else ()
    rows, shown = [], columns(runs)
    called = names([r["run"] for r in runs])
    for name, run, differs in zip(called, runs, differences(runs), strict=True):
        counts = (run["n_clips"], *((run["n_skipped"],) if more else ()), "-" if run["seed"] is None else run["seed"])
        rows.append([name, differs, *(show(i, 2) for i in cells(run, shown)), run["state"], *map(str, counts)])
    console = console or wide_console()
    headings, words = ("run", "differs in", *shown, "state", "clips", *more, "seed"), ("run", "differs in", "state")
    print_table(console, title, headings, rows, words=words, aside=("differs in", "clips", *more, "seed"))
    if len(runs) > len(measured(runs)):
        print_table(console, ANSWERS_TITLE, ANSWERS, answer_rows(called, runs), words=("model",), aside=("clips",))
        for line in doubts(called, runs):
            print_sentence(console, f"warning: {line}")
    if claims := claimed(runs):
        told = [[show(cell, 2) if isinstance(cell, dict) else str(cell) for cell in row] for row in claims]
        print_table(console, _title(runs), CLAIMS, told, words=("run", "modality", "verdict"), aside=CLAIMS[4:6], keys=2)


def write_comparison(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the comparison as one self-contained HTML file."""
    from markupsafe import Markup

    from gapclose.core.files import write_text
    from gapclose.report import figures
    from gapclose.report.templating import render

    called = names([r["run"] for r in runs])
    title = _counts(runs)
    accuracies, shown = ("base action", "reading", "adapted action", ASKED_ACTION), columns(runs)
    sides = [(n, dict(zip(accuracies, cells(r, accuracies), strict=True))) for n, r in zip(called, runs, strict=True)]
    closures = [(n, {"closure": r.get("closure")}) for n, r in zip(called, runs, strict=True)]
    drawn = (
        figures.points_svg("accuracies", sides, title, "balanced accuracy"),
        figures.points_svg("closures", closures, title, "closure"),
    )
    rows = [(n, r, cells(r, shown), d) for n, r, d in zip(called, runs, differences(runs), strict=True)]
    rest = {"claims": claimed(runs), "claims_title": _title(runs), "claims_columns": CLAIMS, "skipped": bool(skipped(runs))}
    answers = answer_rows(called, runs) if len(runs) > len(measured(runs)) else []
    rest |= {"answers": answers, "answers_title": ANSWERS_TITLE, "answers_columns": ANSWERS, "doubts": doubts(called, runs)}
    write_text(
        path,
        render("compare.html.j2", rows=rows, columns=shown, compared=compared(runs), **rest, figures=[Markup(d) for d in drawn if d]),
    )


def _counts(runs: Sequence[dict[str, Any]]) -> str:
    clips, seeds = sorted({r["n_clips"] for r in runs}), sorted({r["seed"] for r in measured(runs)})
    amount = f"{clips[0]}" if len(clips) == 1 else f"{clips[0]} to {clips[-1]}"
    words = f", {len(seeds)} seed{'s' * (len(seeds) > 1)} ({', '.join(map(str, seeds))})" if seeds else ""
    return f"{amount} test clips{words}{skipped(runs)}, 95 % intervals"
