"""The comparison of objectives through its real command: every run is a real one, an interrupted comparison goes on, failures are named."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from gapclose.gap import GapConfig
from gapclose.report.compared import BY_VAL, pairs
from gapclose.report.compared_figures import mean_front
from gapclose.report.results import against, chosen_on_val, figures, mean_over_seeds, on_degraded, trained
from gapclose.report.summary import record_of

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "compare.py"


def start(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RECIPE), "--config", str(config), *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def recipe():
    """The recipe as a module: what it refuses needs no process of its own."""
    spec = importlib.util.spec_from_file_location("compare_recipe", RECIPE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["compare_recipe"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def refused(recipe, monkeypatch, capsys):
    """What it says of a file that it does not run."""

    def call(path: Path, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["compare.py", "--config", str(path), *arguments])
        assert recipe.main() == 2
        return capsys.readouterr().err

    return call


@pytest.fixture(scope="module")
def comparison(tiny_config, tmp_path_factory) -> Path:
    """Two objectives and what can be had without training, one seed, two variants of which --quick has one."""
    directory = tmp_path_factory.mktemp("comparison")
    tree = {
        "out": str(directory / "runs"), "run": str(tiny_config), "seeds": [0], "budgets": [48], "objectives": ["consistency", "gold"],
        "standard_budget": 0.03, "also_on": "phrasing=someone", "settings": {"train.epochs": 1, "export.verify": False},
        "variants": {"plain": {}, "half of the labels wrong": {"labelling.noise": 0.5}}, "quick": {"variants": ["plain"]},
    }  # fmt: skip
    path = directory / "compare.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_comparison_runs_goes_on_and_is_collected(comparison, refused):
    """Three runs, their tables and figures; the same command again runs nothing; a seed's figures are those of its records."""
    done = start(comparison, "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    runs = comparison.parent / "runs"
    text = (runs / "results.md").read_text()
    assert "3 of 3 runs, seeds 0" in text and "| 48 | consistency | 1 | " in text and "| 48 | pgla_wide | 1 | " in text
    assert "| consistency - gold | " in text and "consistency+gold" not in text and "are noise" not in text
    for kind in ("labels", "fronts"):
        assert (runs / f"results-plain-{kind}.svg").stat().st_size > 5000
    directory = runs / "plain" / "48-labels" / "gold-seed0"
    found, record = trained(directory), record_of(directory, "adapted/test")
    assert record is not None
    balanced = figures(found["adapted"], 0)["balanced"]
    assert balanced[0] == pytest.approx(record["action"]["balanced"]["value"]) and f"{balanced[0]:.3f} [" in text
    assert (
        "| on phrasing=someone | " in text
        and "Operating points:" in text
        and json.loads((directory / "cost.json").read_text())["cpu_seconds"] > 1
    )
    assert np.isnan(on_degraded(found["adapted"])["ece"])
    before = (directory / "output.txt").read_text()
    assert "--variants names ['none']" in refused(comparison, "--variants", "none")
    again = start(comparison, "--seeds", "0", "--variants", "plain")
    assert "3 runs, 3 of them finished before" in again.stdout and (directory / "output.txt").read_text() == before
    assert (runs / "results.md").read_text() == text


def test_what_is_missing_is_said(comparison, refused, tmp_path):
    """No run at all, keys that do not exist, a run that fails."""
    tree = yaml.safe_load(comparison.read_text()) | {"out": str(tmp_path / "none")}
    path = tmp_path / "none.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert "no run below" in refused(path, "--collect")
    path.write_text(yaml.safe_dump(tree | {"speed": 3}))
    assert "unknown keys ['speed'], missing keys []" in refused(path)
    for change, message in (
        ({"settings": {"train.epochs": 0}}, "train.epochs is 0"),
        ({"objectives": ["silver"]}, "objective is 'silver'"),
        ({"standard_budget": 0.05}, "standard_budget is 0.05; methods without training know [0.03, 0.01, 0.0]"),
        ({"variants": {"a+b": {}, "a b": {}}, "quick": {}}, "several runs would share"),
        ({"variants": {"a": {"budgets": [7]}}, "quick": {}}, "variant 'a' has budgets [7]"),
        ({"also_on": "phrasing"}, "also_on is 'phrasing'"),
        ({"variants": {"a": {"ways": ["gilt"]}}, "quick": {}}, "variant 'a' has ways ['gilt']"),
        ({"run": "nowhere.yaml"}, "'nowhere.yaml' is no configuration file"),
    ):  # before anything runs
        path.write_text(yaml.safe_dump(tree | change))
        assert message in refused(path, "--quick") and not (tmp_path / "none").exists()
    path.write_text(yaml.safe_dump(tree | {"settings": {"model.path": "/nowhere"}, "objectives": ["gold"], "budgets": [48]}))
    failed = start(path, "--quick")
    assert failed.returncode == 2 and "gold-seed0; its output is in" in failed.stderr
    output = tmp_path / "none" / "plain" / "48-labels" / "gold-seed0" / "output.txt"
    assert "model.path '/nowhere'" in output.read_text()


def test_runs_of_other_settings_are_not_taken_for_those_that_are_asked_for(comparison, refused):
    """Their directories are named, with the setting that differs; nothing is collected."""
    tree = yaml.safe_load(comparison.read_text())
    other = comparison.parent / "other.yaml"
    other.write_text(yaml.safe_dump(tree | {"standard_budget": 0.01}))
    assert "gap.standard_budget: 0.03 there, 0.01 now" in refused(other, "--quick", "--collect")


def test_intervals_over_seeds_hold_the_training_as_well():
    """Trainings scatter by more than clips: intervals of five seeds hold the truth as often as they say; what is shared cancels."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        trainings = rng.normal(0.8, 0.03, 5)
        runs = [np.concatenate([[x], rng.normal(x, 0.002, 200)]) for x in trainings]
        interval = mean_over_seeds(runs).interval
        held += interval.lower <= 0.8 <= interval.upper
    assert 0.92 < held / 400 < 0.98
    lone = mean_over_seeds([np.concatenate([[0.8], rng.normal(0.8, 0.02, 4000)])])
    assert lone.seeds == 1 and lone.interval.upper - lone.interval.lower == pytest.approx(2 * 1.96 * 0.02, rel=0.05)
    ours = {s: {"balanced": rng.normal(0.8, 0.02, 4000)} for s in (0, 1)}
    theirs = {s: {"balanced": ours[s]["balanced"] - 0.1} for s in ours}
    difference = against(ours, theirs, "balanced")
    assert difference is not None and difference.interval.lower == pytest.approx(0.1) == pytest.approx(difference.interval.upper)
    assert against(ours, {5: ours[0]}, "balanced") is None


def test_a_way_may_have_alternatives_of_which_val_chooses(recipe, tmp_path):
    """Those within the budget on val first, then the best there; a variant may have ways and budgets of its own."""
    of = recipe.read_comparison(ROOT / "configs" / "compare_digits.yaml", quick=False)
    every = recipe.jobs(of)
    chosen = [j for j in every if j.variant == "comply, choices on val" and j.seed == 0 and j.way.startswith("consistency")]
    assert [(j.budget, j.way, j.alternative) for j in chosen] == [(500, "consistency, chosen", n) for n in range(3)]
    words = [" ".join(recipe.command(of, j)) for j in chosen]
    assert (
        all("--objective=consistency" in w for w in words)
        and "--targets.gate=0.5 --targets.sharpen=.inf" in words[1]
        and "rounds=2" in words[2]
    )
    recipe.check(of, every)  # every run's configuration is one that the command takes
    assert {j.way for j in every if j.variant == "comply"} == {"consistency", "gold", "consistency+gold", "untrained"}

    def run(place: str, drop: float, balanced: float) -> Path:
        (tmp_path / place).mkdir()
        val = {
            "stage": "epoch-2/val",
            "state": "open",
            "objections": {},
            "shifted": {"option_balanced": 1 - balanced},
            "change": {"standard_drop": {"value": drop}},
            "action": {"balanced": {"value": balanced}},
        }
        lines = [json.dumps(r) for r in (val, {"stage": "adapted/test", "epoch": 2, "action": {"balanced": {"value": 1 - balanced}}})]
        (tmp_path / place / "gap.jsonl").write_text("\n".join(lines))
        return tmp_path / place

    runs = [run("a", 0.02, 0.7), run("b", 0.03, 0.8), run("c", 0.04, 0.9)]
    own = GapConfig(standard_budget=0.03)
    assert chosen_on_val(runs, own) == 1 and chosen_on_val(runs[2:], own) == 0 and chosen_on_val(runs, GapConfig(choose="shifted")) == 0


def test_what_is_set_against_what():
    """Consistency against everything but the base model; both terms against labels alone."""
    assert pairs(["base", "consistency", "gold", "consistency+gold", "shift"]) == [
        ("consistency", "gold"), ("consistency", "consistency+gold"), ("consistency", "shift"), ("consistency+gold", "gold"),
    ]  # fmt: skip
    assert pairs(["base", "gold"]) == []
    assert pairs(["gold", "consistency+gold", BY_VAL]) == [("consistency+gold", "gold"), (BY_VAL, "gold")]


def test_where_all_objectives_are_finished_val_chooses_among_them(recipe, tmp_path):
    """Not where one of them is missing, and never in a variant that has ways of its own."""
    of = recipe.read_comparison(ROOT / "configs" / "compare_digits.yaml", quick=False)
    of.out = str(tmp_path)
    recipe.narrow(of, [0], [500], ["comply", "comply, controls of training"])
    every = recipe.jobs(of)
    for job in every[1:]:
        job.directory.mkdir(parents=True)
        (job.directory / "gap.jsonl").write_text(json.dumps({"stage": "adapted/test"}))
    assert BY_VAL not in {row.way for row in recipe.gather_rows(of, every)}
    every[0].directory.mkdir(parents=True)
    (every[0].directory / "gap.jsonl").write_text(json.dumps({"stage": "adapted/test"}))
    (row,) = (row for row in recipe.gather_rows(of, every) if row.way == BY_VAL)
    assert row.variant == "comply" and [d.name for d in row.directories] == ["consistency-seed0", "gold-seed0", "consistency+gold-seed0"]


def test_fronts_of_seeds_are_averaged_at_levels_of_val():
    """At a level of val, each seed gives the setting that it would have chosen there; test values of several seeds are averaged."""
    first, second = [(1.0, 0.9, 0.1), (0.8, 0.7, 0.5)], [(0.9, 0.8, 0.3), (0.5, 0.4, 0.9)]
    np.testing.assert_allclose(mean_front([first]), [[0.9, 0.1], [0.7, 0.5]])
    np.testing.assert_allclose(mean_front([first, second]), [[0.85, 0.2], [0.75, 0.4], [0.55, 0.7]])
    assert mean_front([first, []]).shape == (0, 2) == mean_front([[(None, 0.1, 0.1)]]).shape
