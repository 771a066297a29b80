"""The command itself: usage, exit statuses, and errors that a user can fix without a traceback."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gapclose import __version__
from gapclose.pipeline.cli import main
from gapclose.pipeline.error_messages import guarded

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_usage(arguments, capsys):
    """Help is a success; saying nothing is not."""
    assert main(arguments) == (0 if arguments else 2)
    text = capsys.readouterr().out
    for command in ("validate", "measure", "close", "export", "RUN [--json]", "launch/ddp.yaml"):
        assert command in text


def test_the_package_is_the_command():
    """``python -m gapclose``, with its output and its exit status."""
    asked = [sys.executable, "-m", "gapclose"]
    found = subprocess.run([*asked, "--version"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == f"gapclose {__version__}\n"
    assert subprocess.run(asked, cwd=ROOT, capture_output=True, check=False).returncode == 2


def test_an_unknown_command(capsys):
    """It is named, with the usage."""
    assert main(["clsoe"]) == 2
    message = capsys.readouterr().err
    assert "unknown command 'clsoe'" in message and "usage: gapclose COMMAND" in message


@pytest.mark.parametrize("command", ["validate", "measure", "close", "export"])
def test_a_configuration_that_does_not_fit(command, capsys, tmp_path, monkeypatch):
    """Every job refuses unknown keys and wrong values before anything is written."""
    monkeypatch.chdir(tmp_path)
    assert main([command, "--train.epoch", "3", "--sed", "1"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: 2 problems with the configuration") and "did you mean 'train.epochs'?" in message
    assert main([command, "--train.epochs", "few"]) == 2
    assert "few" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_batch_that_does_not_fit_is_refused_before_the_items_are_read(capsys, tmp_path):
    """The sizes that do are in the message."""
    arguments = ["--data.path", str(tmp_path / "nowhere"), "--run_dir", str(tmp_path / "run"), "--train.micro_batch_size", "7"]
    assert main(["close", *arguments]) == 2
    message = capsys.readouterr().err
    assert "train.micro_batch_size may be [1, 2, 3, 4, 6, 8" in message and "nowhere" not in message
    assert not (tmp_path / "run").exists()


def test_reporting_what_is_not_there(tmp_path, capsys):
    """Every directory that is not there is named, whether one run was asked for or several."""
    assert main(["report", str(tmp_path / "a")]) == 2
    assert f"no such run directory: {tmp_path / 'a'};" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "a"), str(tmp_path), str(tmp_path / "b")]) == 2
    assert f"no such run directory: {tmp_path / 'a'}, {tmp_path / 'b'};" in capsys.readouterr().err


def test_the_configuration_of_a_comparison_names_its_recipe(capsys):
    path = "configs/compare_digits.yaml"
    assert main(["validate", "--config", path]) == 2
    assert f"{path}: compares many runs; `python recipes/compare.py --config {path}` reads it" in capsys.readouterr().err


def test_exporting_what_is_not_finished(tiny_run, tiny_config, capsys, tmp_path):
    """No run, one without measurements, and one that only measured have nothing to export, and each says what to do."""

    def refusal() -> str:
        assert main(["export", "--config", str(tiny_config), "--run_dir", str(tmp_path)]) == 2
        return capsys.readouterr().err

    assert f"{tmp_path}: no run there (no config.yaml); run `gapclose close` first" in refusal()
    shutil.copy(tiny_run / "config.yaml", tmp_path)
    assert "run `gapclose measure` or `gapclose close` first" in refusal()
    shutil.copytree(tiny_run / "probes", tmp_path / "probes")
    lines = (tiny_run / "gap.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "gap.jsonl").write_text("".join(lines[:2]))
    assert f"{tmp_path}: the run is not finished (no adapted/test in gap.jsonl); run `gapclose close`" in refusal()


def test_a_run_with_other_settings_is_refused(tiny_run, tiny_config, capsys):
    """The settings are named; the run is left as it is."""
    before = (tiny_run / "config.yaml").read_text(), (tiny_run / "gap.jsonl").read_text()
    assert main(["close", "--config", str(tiny_config), "--run_dir", str(tiny_run), "--seed", "3"]) == 2
    message = capsys.readouterr().err
    assert "holds a run with other settings" in message and "- seed: 0 there, 3 now" in message
    assert before == ((tiny_run / "config.yaml").read_text(), (tiny_run / "gap.jsonl").read_text())


def test_errors_to_mend_and_errors_of_ours(monkeypatch, capsys):
    """What a user can fix is printed plainly, unless GAPCLOSE_DEBUG is set; anything else keeps its traceback."""

    def fail(kind):
        raise kind("told")

    for kind in (ValueError, FloatingPointError):
        assert guarded(lambda kind=kind: fail(kind)) == 2 and capsys.readouterr().err == "error: told\n"
    assert guarded(lambda: None) == 0
    with pytest.raises(AssertionError):
        guarded(lambda: fail(AssertionError))
    monkeypatch.setenv("GAPCLOSE_DEBUG", "1")
    with pytest.raises(ValueError, match="told"):
        guarded(lambda: fail(ValueError))


def test_the_installed_command_reports(tiny_run):
    """The entry point in a process of its own: tables on a pipe keep their headings, the exit status is the command's."""
    command = [sys.executable, "-m", "gapclose.pipeline.cli", "report"]
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | {"PYTHONPATH": str(ROOT)}
    good = subprocess.run([*command, str(tiny_run)], env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert good.returncode == 0 and "generated" in good.stdout and "…" not in good.stdout, good.stderr


def test_a_reader_that_leaves_early_ends_the_command_without_a_traceback():
    """As ``gapclose ... | head`` does."""
    words = [sys.executable, "-m", "gapclose.pipeline.cli", "close", "--help"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        told = process.stderr.read()
    assert process.returncode == 1 and told == "stopped: nothing reads standard output any more\n"
