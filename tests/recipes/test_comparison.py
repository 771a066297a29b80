"""The comparison of objectives through its real command: every run is a real one, an interrupted comparison goes on, failures are named."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from comparison import tables as compared
from comparison.collect import Answers, Mean, against, chosen_on_val, cpu_minutes, figures, mean_over_seeds, on_degraded, trained
from comparison.csv_tables import Table, beside, interval, made_from, over_seeds, plain, total, write_csv
from comparison.figures import mean_front
from comparison.tables import BY_VAL, Row, pairs
from sketches import drawn, sketched

from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.evaluation.run_records import record_of
from gapclose.metrics.config import GapConfig
from gapclose.metrics.labels import Labels
from gapclose.pipeline.cli import main

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


class Forked:
    """In place of ``subprocess.Popen``: a run in a forked process, which spares it the imports."""

    def __init__(self, command: list[str], *, stdout: Any, stderr: int) -> None:
        assert stderr == subprocess.STDOUT
        first = command.index("--config")
        job = "close" if command[first - 1].endswith("close.py") else command[first - 1]
        self.pid = os.fork()
        if self.pid:
            return
        try:
            sys.stdout = sys.stderr = stdout
            with sketched():
                status = main([job, *command[first:]])
            stdout.flush()
        except BaseException:
            traceback.print_exc(file=stdout)
            stdout.flush()
            status = 1
        os._exit(status)


@pytest.fixture
def compared_here(recipe, monkeypatch, capsys):
    """``(config, *arguments)`` -> what the recipe prints, which must succeed."""

    def call(path: Path, *arguments: str) -> str:
        monkeypatch.setattr(recipe, "subprocess", SimpleNamespace(Popen=Forked, STDOUT=subprocess.STDOUT))
        monkeypatch.setattr(sys, "argv", ["compare.py", "--config", str(path), *arguments])
        status, told = recipe.main(), capsys.readouterr()
        assert status == 0, told.out + told.err
        return told.out

    return call


@pytest.mark.slow
def test_a_comparison_runs_goes_on_and_is_collected(comparison, compared_here, refused):
    """Three runs, their tables and figures; the same command again runs nothing; a seed's figures are those of its records."""
    with drawn():
        compared_here(comparison, "--quick")
    runs = comparison.parent / "runs"
    text = (runs / "results-part.md").read_text()
    assert "3 of 3 runs (all by one commit), seeds 0" in text and "| 48 | consistency | 1 | " in text and "| 48 | pgla_wide | 1 | " in text
    assert "| consistency - gold | " in text and "consistency+gold" not in text and "are noise" not in text
    for kind in ("labels", "fronts"):
        assert (runs / f"results-part-plain-{kind}.svg").stat().st_size > 5000
    directory = runs / "plain" / "48-labels" / "gold-seed0"
    found, record = trained(directory), record_of(directory, "adapted/test")
    assert record is not None
    balanced = figures(found["adapted"], 0)["balanced"]
    assert balanced[0] == pytest.approx(record["action"]["balanced"]["value"]) and f"{balanced[0]:.3f} [" in text
    with (runs / "results-part-ways.csv").open(newline="") as file:
        rows = {row["way"]: row for row in csv.DictReader(file)}
    assert rows["gold"]["as it is: balanced"] == f"{balanced[0]:.3f}" and rows["gold"]["labels"] == "48"
    assert len(rows) == sum(line.startswith("| 48 | ") for line in text.partition("Differences")[0].splitlines())
    assert {p.name for p in runs.glob("*.csv")} == {f"results-part-{kind}.csv" for kind in ("ways", "differences", "points")}
    assert (
        "| on phrasing=someone | " in text
        and "Operating points:" in text
        and json.loads((directory / "cost.json").read_text())["cpu_seconds"] > 1
    )
    assert np.isnan(on_degraded(found["adapted"])["ece"])
    before = (directory / "output.txt").read_text()
    assert "--variants names ['none']" in refused(comparison, "--variants", "none")
    with drawn():
        again = compared_here(comparison, "--seeds", "0", "--variants", "plain")
        part = compared_here(comparison, "--ways", "gold", "--variants", "plain", "--out", str(comparison.parent / "gold" / "part.md"))
    assert "1 runs, 1 of them finished before" in part
    assert "--ways names ['none']" in refused(comparison, "--ways", "none")
    assert "3 runs, 3 of them finished before" in again and (directory / "output.txt").read_text() == before
    assert (runs / "results-part.md").read_text() == text


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_the_comparison_on_people_has_configurations_that_the_command_takes(recipe):
    of = recipe.read_comparison(ROOT / "configs" / "compare_people.yaml", quick=False)
    every = recipe.jobs(of)
    recipe.check(of, every)
    assert len(every) == 3 * (3 * 4 + 1)  # seeds x (budgets x ways + the control)


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
            "epoch": 2,
            "state": "open",
            "objections": {},
            "shifted": {"option_balanced": 1 - balanced},
            "change": {"standard_drop": {"value": drop, "lower": drop - 0.01, "upper": drop + 0.01}},
            "action": {"balanced": {"value": balanced}},
        }
        lines = [
            json.dumps(r)
            for r in (val, {"stage": "adapted/test", "epoch": 2, "state": "open", "action": {"balanced": {"value": 1 - balanced}}})
        ]
        (tmp_path / place / "gap.jsonl").write_text("\n".join(lines))
        return tmp_path / place

    runs = [run("a", 0.02, 0.7), run("b", 0.03, 0.8), run("c", 0.04, 0.9)]
    own = GapConfig(standard_budget=0.03)
    assert chosen_on_val(runs, own) == 1 and chosen_on_val(runs, GapConfig(choose="shifted")) == 0


def mean_of(*values: float) -> Mean:
    """Over as many seeds, with two replicates each."""
    return mean_over_seeds([np.array([v, v - 0.1, v + 0.1]) for v in values])


def test_a_mean_says_how_its_interval_is_made():
    """Two seeds have their two values, which is no interval of 95 %; where no interval is defined, it has no kind."""
    assert [mean_of(*values).kind for values in ((0.5,), (0.4, 0.6), (0.4, 0.5, 0.6))] == ["bootstrap", "range", "t"]
    assert mean_over_seeds([np.array([0.5])]).kind == "" == mean_over_seeds([np.array([np.nan])]).kind
    assert interval("b", mean_of(0.4, 0.6)).text == "0.500 (0.400, 0.600)"
    assert made_from([mean_of(0.4, 0.6)]).columns == {"seeds": "2", "interval": "range"}
    with pytest.raises(ValueError, match=r"the means of one row have \[1, 2\] seeds"):
        made_from([mean_of(0.5), mean_of(0.4, 0.6)])


@pytest.mark.parametrize(
    ("cell", "text", "columns"),
    [
        (plain("way", "gapclose (dpo)"), "gapclose (dpo)", {"way": "gapclose (dpo)"}),
        (interval("b", mean_over_seeds([np.array([0.5])])), "0.500", {"b": "0.500", "b lower": "", "b upper": ""}),
        (interval("b", mean_over_seeds([np.array([np.nan])])), "-", {"b": "", "b lower": "", "b upper": ""}),
        (over_seeds("closure", [0.4, None, np.nan, 0.34]), "0.370 (2 of 4)", {"closure": "0.370", "closure: seeds": "2"}),
        (over_seeds("closure", [None]), "-", {"closure": "", "closure: seeds": ""}),
        (beside([over_seeds("auroc", [None]), plain("layers", "6 6")]), "-, 6 6", {"auroc": "", "auroc: seeds": "", "layers": "6 6"}),
        (beside([plain("balanced", ""), plain("standard", "")]), "-", {"balanced": "", "standard": ""}),
        (total("stopped", [1.0, 0.0]), "1", {"stopped": "1"}),
        (total("stopped", [None]), "-", {"stopped": ""}),
    ],
)  # fmt: skip
def test_a_cell_has_its_text_and_its_numbers(cell, text, columns):
    assert cell.text == text and cell.columns == columns


def test_tables_of_one_kind_share_a_csv_file(tmp_path):
    one, two, noise = (
        Table(kind="ways", variant="plain", names=["way", "seeds", "balanced"]),
        Table(kind="ways", variant="noisy, twice", names=["way", "stopped"]),
        Table(kind="noise", variant="plain", names=["way"]),
    )
    one.add([plain("way", "gold"), made_from([mean_of(0.4, 0.6)], shown=True), interval("balanced", mean_of(0.4, 0.6))])
    two.add([plain("way", "gold"), total("stopped", [1.0])])
    noise.add([plain("way", "gold"), made_from([mean_of(0.4, 0.6)])])
    ways, of_noise = write_csv([one, two, noise], tmp_path / "results")
    assert ways.read_text().splitlines() == [
        "variant,way,seeds,interval,balanced,balanced lower,balanced upper,stopped",
        "plain,gold,2,range,0.500,0.400,0.600,",
        '"noisy, twice",gold,,,,,,1',
    ]
    assert of_noise.name == "results-noise.csv" and of_noise.read_text() == "variant,way,seeds,interval\nplain,gold,2,range\n"
    assert one.markdown()[1:] == ["|---|---|---|", "| gold | 2 | 0.500 (0.400, 0.600) |"] and noise.markdown()[2:] == ["| gold |"]


def planted(balanced: float, probe: float | None = 0.9) -> dict[str, Any]:
    """What is gathered of one seed of a trained way."""
    of = {name: np.array([balanced, balanced - 0.1, balanced + 0.1]) for name in ("balanced", "standard", "rejection")}
    return of | {
        "own": of, "at": dict.fromkeys(compared.BUDGETS, of), "more": {"closure": balanced, "not_real": 0.0, "over_budget": 1.0},
        "degraded": {"ece": of["balanced"][:1], "sure_and_wrong": of["balanced"][:1]}, "also": None, "alternative": None,
        "base_instead": False, "probe": {"labels": 48, "layer": 6, "auroc": probe}, "skipped": 0, "front": [],
    }  # fmt: skip


def test_every_kind_of_table_tells_its_seeds_and_its_interval(tmp_path, monkeypatch):
    """Planted: ways of one, two and three seeds, of which a pair shares fewer; a name with brackets; a reading without AUROC."""
    seeds = {"consistency": (0, 1, 2), "gapclose (dpo)": (1, 2), "gold": (2,)}
    found = {("v", 50, way): {s: planted(0.5 + 0.1 * s, None if way == "gold" else 0.9) for s in of} for way, of in seeds.items()}
    monkeypatch.setattr(compared, "gather", lambda *a: found)
    monkeypatch.setattr(compared, "draw_labels", lambda *a: None)
    monkeypatch.setattr(compared, "draw_fronts", lambda *a: None)
    rows = [Row(variant="v", labels=50, seed=0, way="gold", directories=[tmp_path])]
    compared.write_results(rows, tmp_path / "r.md", 0.03, 6, objectives=[], also_on={"v": None})
    read = {}
    for path in tmp_path.glob("*.csv"):
        with path.open(newline="") as file:
            read[path.stem] = list(csv.DictReader(file))
    kinds = {way: (str(len(of)), kind) for (way, of), kind in zip(seeds.items(), ("t", "range", "bootstrap"), strict=True)}
    assert set(read) == {f"r-{kind}" for kind in ("ways", "differences", "points", "noise")}
    for kind in ("r-ways", "r-points"):
        assert {r["way"]: (r["seeds"], r["interval"]) for r in read[kind]} == kinds
    assert {r["way"]: (r["seeds"], r["interval"]) for r in read["r-noise"]} == kinds | {"gold": ("1", "")}
    of_pairs = {(r["minus"], r["of"]): (r["labels"], r["seeds"], r["interval"], r["balanced"]) for r in read["r-differences"]}
    assert of_pairs == {
        ("gapclose (dpo)", "chosen"): ("50", "2", "range", "0.000"), ("gapclose (dpo)", "as trained"): ("50", "2", "range", "0.000"),
        ("gold", "chosen"): ("50", "1", "bootstrap", "0.000"), ("gold", "as trained"): ("50", "1", "bootstrap", "0.000"),
    }  # fmt: skip
    gold = next(r for r in read["r-ways"] if r["way"] == "gold")
    assert gold["reading: AUROC"] == "" and gold["reading: layers"] == "6" and gold["labelled items"] == "48" and gold["labels"] == "50"
    assert gold["base counted"] == "0" and gold["over budget"] == "1" and gold["AUROC gained"] == ""
    text = (tmp_path / "r.md").read_text()
    assert "| 50 (48) | gapclose (dpo) | 2 | 0.650 (0.600, 0.700) |" in text and "| -, 6 |" in text
    assert "| consistency - gapclose (dpo), as trained, without shifts | 0.000 (0.000, 0.000) |" in text


def test_what_is_set_against_what():
    """Consistency against everything but the base model; both terms against labels alone."""
    assert pairs(["base", "consistency", "gold", "consistency+gold", "shift"]) == [
        ("consistency", "gold"), ("consistency", "consistency+gold"), ("consistency", "shift"), ("consistency+gold", "gold"),
    ]  # fmt: skip
    assert pairs(["base", "gold"]) == []
    assert pairs(["gold", "consistency+gold", BY_VAL]) == [("consistency+gold", "gold")]
    assert pairs(["base", "consistency, chosen", "gold, chosen"]) == [("consistency, chosen", "gold, chosen")]


def answers(right: float, n: int = 200) -> Answers:
    """Of ``n`` items about two concepts, every other one an alarm; a share of ``right`` is answered so."""
    options = [Option(text="odd", concept="standard"), Option(text="unseen", concept="false")]
    message = [{"role": "user", "content": "Is it odd?"}]
    plain = {"split": "test", "modality": "vision", "messages": message, "options": options}
    found = tuple(Item(id=f"{i}", clip=f"{i}", gold=i % 2, **plain) for i in range(n))
    items = ItemSet(root=Path(), name="planted", concepts=("standard", "false"), alarm=("false",), items=found)
    gold = np.arange(n) % 2
    chosen = np.where(np.arange(n) < right * n, gold, 1 - gold)
    return Answers(labels=Labels.of(items), chosen=chosen, scores=None, items=items)


def test_val_chooses_among_the_objectives_and_test_tells_what_it_chose(tmp_path, monkeypatch):
    """Planted: on val the second is better, on test the first; its own figures are shown, the base model's row is left alone."""
    right, on_val, rows = {"consistency": 0.9, "gold": 0.7}, {"consistency": 0.6, "gold": 0.8}, []
    for way in right:
        directory = tmp_path / f"{way}-seed0"
        directory.mkdir()
        val = {"stage": "epoch-1/val", "epoch": 1, "state": "open", "objections": {}, "shifted": {"option_balanced": on_val[way]}}
        val |= {"change": {"standard_drop": {"value": 0.0, "lower": 0.0, "upper": 0.0}}}
        (directory / "gap.jsonl").write_text("\n".join(json.dumps(r) for r in (val, val | {"stage": "adapted/test"})))
        (directory / "cost.json").write_text(json.dumps({"cpu_seconds": 60, "cpu_seconds_of_others": 30}))
        rows.append(Row(variant="v", labels=50, seed=0, way=way, directories=[directory]))
    of = {tmp_path / f"{way}-seed0": way for way in right}
    monkeypatch.setattr(compared, "trained", lambda d: {"base": answers(0.5), "adapted": answers(right[of[d]])})
    monkeypatch.setattr(compared, "adapted_points", lambda d: (dict.fromkeys(compared.BUDGETS, answers(right[of[d]])), []))
    monkeypatch.setattr(compared, "more", lambda d: {"closure": right[of[d]], "cpu_minutes": cpu_minutes([d])})
    monkeypatch.setattr(compared, "read_by", lambda d: {})
    found = compared.gather(rows, 0.03, ["consistency", "gold"], {"v": None})
    best, base = found["v", 50, BY_VAL][0], found["v", 50, "base"][0]
    assert best["alternative"] == "gold" and base["alternative"] is None
    assert best["balanced"][0] == pytest.approx(0.7) and best["more"]["closure"] == 0.7 and base["balanced"][0] == pytest.approx(0.5)
    assert best["more"]["cpu_minutes"] == pytest.approx(2.5) and found["v", 50, "gold"][0]["more"]["cpu_minutes"] == pytest.approx(1.5)
    assert ("v", 50, BY_VAL) not in compared.gather(rows[:1], 0.03, ["consistency", "gold"], {"v": None})


def test_on_noise_a_sure_wrong_rejection_counts_and_calibration_is_that_of_concepts():
    """Four items that nobody can read: two sure and wrong rejections, one sure and right, one unsure; all others are left out."""
    found = answers(1.0, n=6)
    items = tuple(replace(i, tags={"degraded": "yes"} if int(i.id) < 4 else {}) for i in found.items)
    sure, unsure = np.log([[0.05, 0.95]]), np.log([[0.5 + 1e-9, 0.5 - 1e-9]])
    scores = np.concatenate([sure, sure, sure, unsure, unsure, unsure])  # gold: standard, false, standard, false
    noise = on_degraded(replace(found, items=replace(found.items, items=items), scores=scores))
    assert noise["sure_and_wrong"][0] == pytest.approx(0.5)
    assert noise["ece"][0] > 0.3


def test_fronts_of_seeds_are_averaged_at_levels_of_val():
    """At a level of val, each seed gives the setting that it would have chosen there; test values of several seeds are averaged."""
    first, second = [(1.0, 0.9, 0.1), (0.8, 0.7, 0.5)], [(0.9, 0.8, 0.3), (0.5, 0.4, 0.9)]
    np.testing.assert_allclose(mean_front([first]), [[0.9, 0.1], [0.7, 0.5]])
    np.testing.assert_allclose(mean_front([first, second]), [[0.85, 0.2], [0.75, 0.4], [0.55, 0.7]])
    assert mean_front([first, []]).shape == (0, 2) == mean_front([[(None, 0.1, 0.1)]]).shape
