"""Inference-time baselines on the page and in the terminal: one table, and none where there is nothing."""

from __future__ import annotations

import shutil
from io import StringIO

import pytest
from rich.console import Console

from gapclose.core.files import write_json
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


def test_the_page_has_a_row_for_every_method_and_budget(run):
    """Labels are escaped; where no setting helps, the row says that nothing was changed."""
    page = build_page(run)
    section = page[page.index('<section id="baselines"') :].partition("</section>")[0]
    assert (
        section.count('<th scope="row">') == 5
        and "trained, this run" in section
        and "PGLA &lt;b&gt;" in section
        and "440 items of val" in section
    )
    assert ">any</th>" in section and ">3</th>" in section and ">0 (unchanged)</th>" in section
    assert "0.81" in section and "\u22120.07" in section and '<a href="#baselines">' in page


def test_the_terminal_has_the_same_table(run):
    """On a narrow terminal nothing is cut off."""
    wide, narrow = StringIO(), StringIO()
    print_report(run, Console(file=wide, width=160))
    print_report(run, Console(file=narrow, width=80))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in wide.getvalue().splitlines() if line.startswith("│")]
    mine = [row for row in rows if len(row) == 7 and row[1] in ("any", "3", "0 (unchanged)")]
    assert [row[0] for row in mine] == ["PGLA <b>", "", ""] and mine[0][2] == "0.81 [0.79, 0.83]" and mine[0][4] == "-0.07 [-0.09, -0.05]"
    assert "440 items of val" in wide.getvalue() and "…" not in narrow.getvalue()


def test_without_baselines_there_is_no_table(run):
    """Switched off, or measured before there were any."""
    for measured in ({"version": 1, "baselines": None}, {"version": 1}):
        write_json(run / "measurement.json", measured)
        out = StringIO()
        print_report(run, Console(file=out, width=160))
        assert "without training" not in out.getvalue() and 'id="baselines"' not in build_page(run)
