"""Packages of the extras: what needs one says so in one line and names the extra; everything else works without."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import datasets
import pytest

from gapclose.core.errors import ErrorCollector
from gapclose.core.imports import MissingPackage, require
from gapclose.data.formats.tables import read_tables
from gapclose.metrics.measure_gap import GapMeasurement
from gapclose.pipeline.cli import main
from gapclose.report import figures, style
from gapclose.report.html import build_page

ROOT = Path(__file__).parents[2]
EXTRAS = ("trl", "wandb", "datasets", "figures", "serve")
BLOCKED = ("trl", "wandb", "datasets", "matplotlib", "fastapi", "uvicorn", "pyarrow", "pandas")
"""the packages of those extras, and two that datasets brings along"""


@pytest.fixture
def without(monkeypatch):
    """``(module, ...)``: from now on their import fails, as where they are not installed."""

    def block(*modules: str) -> None:
        style.why_no_figures.cache_clear()
        for module in modules:
            monkeypatch.setitem(sys.modules, module, None)

    yield block
    style.why_no_figures.cache_clear()


def test_one_function_says_what_is_missing(without, tmp_path, monkeypatch):
    assert require("json", "trl", "anything").dumps([]) == "[]"
    without("trl")
    with pytest.raises(MissingPackage) as caught:
        require("trl", "trl", "objective dpo")
    assert str(caught.value) == 'objective dpo needs trl, which is not installed: pip install "gapclose[trl]"'
    (tmp_path / "half_there.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackage, match=r"needs half_there, which cannot be imported without not_there_at_all: pip"):
        require("half_there", "trl", "objective dpo")


@pytest.mark.parametrize(
    ("blocked", "settings", "says"),
    [
        ("trl", ["--objective", "dpo"], 'objective dpo needs trl, which is not installed: pip install "gapclose[trl]"'),
        ("datasets", ["--objective", "grpo"], 'objective grpo needs datasets, which is not installed: pip install "gapclose[trl]"'),
        ("wandb", ["--tracking", "wandb"], 'tracking wandb needs wandb, which is not installed: pip install "gapclose[wandb]"'),
        (
            "trackio",
            ["--tracking", "[wandb, trackio]"],
            'tracking trackio needs trackio, which is not installed: pip install "gapclose[trackio]"',
        ),
    ],
)
@pytest.mark.parametrize("command", ["validate", "close"])
def test_a_start_without_its_package_is_refused(command, blocked, settings, says, without, quick_config, tmp_path, no_outline, capsys):
    """Before a model loads, and in one line."""
    without(blocked)
    assert main([command, "--config", str(quick_config), "--run_dir", str(tmp_path / "run"), *settings]) == 2
    assert sum(line.removeprefix("error: ").strip(" -") == says for line in capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_tables_that_arrow_reads_are_refused_without_it(without, tmp_path):
    rows = datasets.Dataset.from_list([{"a": 1}])
    rows.to_parquet(tmp_path / "parquet" / "rows.parquet")
    rows.save_to_disk(tmp_path / "saved")
    without("pyarrow", "datasets")
    for folder, says in (
        (
            "parquet",
            'rows.parquet: cannot be read (a Parquet table needs pyarrow, which is not installed: pip install "gapclose[datasets]")',
        ),
        ("saved", 'cannot be read (what `save_to_disk` wrote needs datasets, which is not installed: pip install "gapclose[datasets]")'),
    ):
        problems = ErrorCollector("tables")
        assert read_tables(tmp_path / folder, problems) == []
        (message,) = problems.messages
        assert message.endswith(says), message


def test_without_matplotlib_figures_are_left_out_and_said_once(without, tiny_run, capsys):
    """The page is whole but for them, and says how to get them."""
    drawn = build_page(tiny_run)
    without("matplotlib", "matplotlib.figure")
    page, log = (
        build_page(tiny_run),
        'figures are left out: drawing needs matplotlib, which is not installed: pip install "gapclose[figures]"',
    )
    assert figures.draw_epochs(tiny_run) is None
    assert capsys.readouterr().out == f"warning: {log}\n"
    assert "<figure" not in page and "<svg" not in page and 'id="epochs"' in page and 'href="#roc"' not in page
    assert "no figures" in page and "no figures" not in drawn and drawn.count("<figure") > 3
    assert page.count("<table") == drawn.count("<table")
    with pytest.raises(MissingPackage, match=r"GapMeasurement\.plot needs matplotlib"):
        GapMeasurement.plot(None)  # type: ignore[arg-type]


BLOCK = f"""
import sys
from importlib.machinery import PathFinder

class WithoutExtras(PathFinder):
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in {BLOCKED} else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutExtras
from gapclose.pipeline.cli import main
code = main(["measure", *sys.argv[1:]]) or main(["close", *sys.argv[1:]])
assert not [m for m in {BLOCKED} if m in sys.modules]
sys.exit(code)
"""
OFF = ("layers", "blank", "nested", "codelength", "labels", "interchange", "baselines", "residualise")


@pytest.mark.slow
def test_measure_and_close_work_without_the_extras(quick_config, tmp_path):
    settings = ["--train.epochs", "1", "--probe.families", "[logistic]", *(word for o in OFF for word in (f"--controls.{o}", "false"))]
    words = [sys.executable, "-c", BLOCK, "--config", str(quick_config), "--run_dir", str(tmp_path), *settings]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("warning: figures are left out: drawing needs matplotlib") == 1
    assert "adapted/test: action" in done.stdout and not (tmp_path / "figures").exists()
    assert "no figures" in (tmp_path / "report.html").read_text() and (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_the_extras_are_declared():
    """Each by its name, all of them together, and none among the required packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(EXTRAS) < set(extras) and extras["all"] == [f"gapclose[{','.join(EXTRAS)}]"] and "gapclose[all]" in extras["dev"]
    assert not [line for line in project["dependencies"] if line.startswith(BLOCKED)]
