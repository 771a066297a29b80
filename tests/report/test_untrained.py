"""Inference-time baselines on the page and in the terminal: one table, and none where there is nothing."""

from __future__ import annotations

import shutil
from io import StringIO

import pytest
from rich.console import Console

from gapclose.core.files import write_json
from gapclose.pipeline.cli import main
from gapclose.report.baselines import best_point, setting_words
from gapclose.report.console import print_report
from gapclose.report.html import build_page


def figures(value: float) -> dict:
    around = {"value": value, "lower": value - 0.02, "upper": value + 0.02}
    return dict.fromkeys(("balanced", "option_balanced", "standard_accuracy", "rejection", "auroc"), around)


BASELINES = {
    "chosen_on": "val",
    "n_choice": 440,
    "base": figures(0.5),
    "methods": [
        {
            "name": "pgla",
            "label": "PGLA <b>",
            "points": [
                {"budget": None, "setting": {"gamma": 2.0}, **figures(0.81), "gain": figures(-0.07)},
                {"budget": 0.03, "setting": {"gamma": 1.0}, **figures(0.72), "gain": figures(-0.03)},
                {"budget": 0.0, "setting": None, **figures(0.5), "gain": figures(0.0)},
            ],
        }
    ],
}


@pytest.fixture
def run(tiny_run, tmp_path):
    """A finished run whose measurement holds baselines and nothing else."""
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "adapter", "observations"))
    write_json(tmp_path / "run" / "measurement.json", {"version": 1, "baselines": BASELINES})
    return tmp_path / "run"


def test_the_page_has_a_row_for_every_method(run):
    """With its best setting; below it, folded away, a row for every budget. Labels are escaped; where no setting helps, the row says so."""
    page = build_page(run)
    section = page[page.index('<section id="baselines"') :].partition("</section>")[0]
    best, whole = section.split("<details>")
    assert best.count('<th scope="row">') == 3 and "trained, this run" in best and "within 5 points" in best
    assert "PGLA &lt;b&gt;" in best and "gamma 1" in best and "0.72" in best and "0.81" not in best and "440 items of val" in section
    assert whole.count('<th scope="row">') == 3 and ">any</th>" in whole and ">3</th>" in whole and ">0 (unchanged)</th>" in whole
    assert "0.81" in whole and "\u22120.07" in whole and '<a href="#baselines">' in page


def cells_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


def test_the_terminal_has_a_line_for_every_method(run, capsys):
    """With its best setting; every budget with --all."""
    assert main(["report", str(run)]) == 0
    short = capsys.readouterr().out
    assert [row for row in cells_of(short) if row[0] == "pgla"] == [["pgla", "0.72 [0.70, 0.74]", "-0.03", "0.72", "gamma 1"]]
    assert "440 items of val" in short and "0.81" not in short
    assert main(["report", str(run), "--all"]) == 0
    mine = [row for row in cells_of(capsys.readouterr().out) if len(row) == 7 and row[1] in ("any", "3", "0 (unchanged)")]
    assert [row[0] for row in mine] == ["PGLA <b>"] * 3 and mine[0][2] == "0.81 [0.79, 0.83]" and mine[0][4] == "-0.07 [-0.09, -0.05]"


def test_the_best_setting_is_that_of_the_largest_budget_within_the_runs():
    """Whatever its figures on test are; none where every budget is larger."""
    method = BASELINES["methods"][0]
    spoilt = {"points": [point | figures(0.9 - n / 10) for n, point in enumerate(reversed(method["points"]))]}
    for of in (method, spoilt):
        assert [best_point(of, budget)["budget"] for budget in (0.0, 0.02, 0.03, 1.0)] == [0.0, 0.0, 0.03, 0.03]
    assert best_point({"points": method["points"][:2]}, 0.01) is None
    assert setting_words(method["points"][0]) == "gamma 2" and setting_words(method["points"][2]) == "unchanged"


def test_without_baselines_there_is_no_table(run):
    """Switched off, or measured before there were any."""
    for measured in ({"version": 1, "baselines": None}, {"version": 1}):
        write_json(run / "measurement.json", measured)
        out = StringIO()
        print_report(run, Console(file=out, width=160))
        assert "without training" not in out.getvalue() and 'id="baselines"' not in build_page(run)
