"""The comparison of objectives through its real command: every run is a real one, an interrupted comparison goes on, failures are named."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from gapclose.report.compared import pairs
from gapclose.report.results import against, figures, mean_over_seeds, on_degraded, trained
from gapclose.report.summary import record_of

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "compare.py"


def start(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RECIPE), "--config", str(config), *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def comparison(tiny_config, tmp_path_factory) -> Path:
    """Two objectives and what can be had without training, one seed, two variants of which --quick has one."""
    directory = tmp_path_factory.mktemp("comparison")
    tree = {
        "out": str(directory / "runs"), "run": str(tiny_config), "seeds": [0], "budgets": [48], "objectives": ["consistency", "gold"],
        "standard_budget": 0.03, "settings": {"train.epochs": 1, "export.verify": False},
        "variants": {"plain": {}, "half of the labels wrong": {"labelling.noise": 0.5}}, "quick": {"variants": ["plain"]},
    }  # fmt: skip
    path = directory / "compare.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_comparison_runs_goes_on_and_is_collected(comparison):
    """Three runs, their tables and figures; the same command again runs nothing; a seed's figures are those of its records."""
    done = start(comparison, "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    runs = comparison.parent / "runs"
    text = (runs / "results.md").read_text()
    assert "3 of 3 runs, seeds 0" in text and "| 48 | consistency | 1 | " in text and "| 48 | pgla_wide | 1 | " in text
    assert "| consistency - gold | " in text and "consistency+gold" not in text and "nobody can read" not in text
    for kind in ("labels", "points"):
        assert (runs / f"results-plain-{kind}.svg").stat().st_size > 5000
    directory = runs / "plain" / "48-labels" / "gold-seed0"
    found, record = trained(directory), record_of(directory, "adapted/test")
    assert record is not None
    balanced = figures(found["adapted"], 0)["balanced"]
    assert balanced[0] == pytest.approx(record["action"]["balanced"]["value"]) and f"{balanced[0]:.3f} [" in text
    assert np.isnan(on_degraded(found["adapted"])["ece"])
    before = (directory / "output.txt").read_text()
    again = start(comparison, "--quick")
    assert "3 runs, 3 of them finished before" in again.stdout and (directory / "output.txt").read_text() == before
    assert (runs / "results.md").read_text() == text


def test_what_is_missing_is_said(comparison, tmp_path):
    """No run at all, keys that do not exist, a run that fails."""
    tree = yaml.safe_load(comparison.read_text()) | {"out": str(tmp_path / "none")}
    path = tmp_path / "none.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert "no run below" in start(path, "--collect").stderr
    path.write_text(yaml.safe_dump(tree | {"speed": 3}))
    assert "unknown keys ['speed'], missing keys []" in start(path).stderr
    path.write_text(yaml.safe_dump(tree | {"settings": {"train.epochs": 0}, "objectives": ["gold"], "budgets": [48]}))
    failed = start(path, "--quick")
    assert failed.returncode == 2 and "gold-seed0; its output is in" in failed.stderr
    output = tmp_path / "none" / "plain" / "48-labels" / "gold-seed0" / "output.txt"
    assert "train.epochs is 0" in output.read_text()


def test_means_over_seeds_are_paired():
    """The mean of independent replicates is narrower than either; what both share cancels in the difference."""
    rng = np.random.default_rng(0)
    ours = {s: {"balanced": np.concatenate([[0.8], rng.normal(0.8, 0.02, 4000)])} for s in (0, 1)}
    theirs = {s: {"balanced": ours[s]["balanced"] - 0.1} for s in (1, 2 - 2)}
    mean = mean_over_seeds([f["balanced"] for f in ours.values()])
    assert mean.seeds == 2 and mean.spread == 0 and mean.interval.value == pytest.approx(0.8)
    assert mean.interval.upper - mean.interval.lower == pytest.approx(2 * 1.96 * 0.02 / np.sqrt(2), rel=0.05)
    difference = against(ours, theirs, "balanced")
    assert difference is not None and difference.interval.lower == pytest.approx(0.1) == pytest.approx(difference.interval.upper)
    assert against(ours, {5: ours[0]}, "balanced") is None


def test_what_is_set_against_what():
    """Consistency against everything but the base model; both terms against labels alone."""
    assert pairs(["base", "consistency", "gold", "consistency+gold", "shift"]) == [
        ("consistency", "gold"), ("consistency", "consistency+gold"), ("consistency", "shift"), ("consistency+gold", "gold"),
    ]  # fmt: skip
    assert pairs(["base", "gold"]) == []
