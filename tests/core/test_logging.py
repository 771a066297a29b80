"""What is logged, by whom and where: nothing as a library, plain lines on standard output under a command."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gapclose.core import logging as core_logging
from gapclose.core.logging import LEVELS, configure_logging, get_logger, progress
from gapclose.pipeline.cli import main
from gapclose.pipeline.config import Config, save_config

ROOT = Path(__file__).parents[2]
PRINTING = {  # module -> what it exists to print
    "core/logging.py": "the handler",
    "data/digits/generate.py": "a command of its own",
    "data/digits/videos.py": "a command of its own",
    "export/model_card.py": "snippets of the card, which its readers run",
    "pipeline/ask.py": "what a model that was asked answered, and its costs",
    "pipeline/config.py": "help, and the configuration where it is asked for",
    "pipeline/cli.py": "usage, version, what validate found, where a page is",
    "pipeline/error_messages.py": "errors, on standard error",
    "pipeline/model_summary.py": "a table of validate",
    "pipeline/monitor_command.py": "flags, and where they are",
    "pipeline/serve.py": "the address",
    "pipeline/verify_export.py": "its result, for the process that started it",
    "report/console.py": "the report",
    "report/tables.py": "tables of any command",
    "pipeline/vllm_monitor.py": "a command of its own",
}


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_shows_what_is_at_least_so_grave(level, capsys):
    """Plain lines without a prefix, but for the word of a warning or an error; the indentation stays before it."""
    configure_logging(level)
    log = get_logger("gapclose.somewhere")
    for of, message in (("debug", "d"), ("info", "  i {x} %s"), ("warning", "w"), ("warning", "  v"), ("error", "e")):
        getattr(log, of)(message)
    lines = ["d", "  i {x} %s", "warning: w", "  warning: v", "error: e"]
    assert capsys.readouterr().out.splitlines() == lines[{"debug": 0, "info": 1, "warning": 2, "error": 4}[level] :]


def test_another_level_is_refused_with_the_levels(capsys):
    with pytest.raises(ValueError, match=r"log_level is 'loud'; choose one of \['debug', 'info', 'warning', 'error'\]"):
        configure_logging("loud")
    for command in ("validate", "measure", "close", "export"):
        assert main([command, "--log_level", "loud"]) == 2
        assert "log_level is 'loud'; choose one of ['debug', 'info', 'warning', 'error']" in capsys.readouterr().err


@pytest.mark.parametrize("rank", ["0", "1"])
def test_below_errors_only_rank_0_logs(rank, monkeypatch, capsys, caplog):
    """Under a handler of the application as under the command's own."""
    monkeypatch.setenv("RANK", rank)
    log = get_logger("gapclose.somewhere.else")
    for level in ("info", "warning", "error"):
        getattr(log, level)(level)
    assert list(progress([1, 2], 2, "work")) == [1, 2]
    shown = ["info", "warning", "error"] if rank == "0" else ["error"]
    assert [record.getMessage() for record in caplog.records] == shown
    assert [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()] == shown


def test_long_work_is_logged_and_short_work_is_not(monkeypatch, capsys):
    assert list(progress([1, 2], 2, "short")) == [1, 2] and capsys.readouterr().out == ""
    monkeypatch.setattr(core_logging, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(core_logging, "LINE_SECONDS", 0.0)
    assert list(progress([1, 2], 2, "long")) == [1, 2]
    assert re.fullmatch(r"long: 1/2, about \d+ s left\nlong: 2/2 in \S+ s\n", capsys.readouterr().out)


def test_bars_are_drawn_on_a_terminal_where_info_is_logged(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert core_logging.shows_bars()
    configure_logging("warning")
    assert not core_logging.shows_bars()


def test_the_level_binds_no_run_directory(tmp_path):
    """Another level goes on with the run; the last one is kept."""
    path = tmp_path / "run" / "config.yaml"
    save_config(Config(), path)
    save_config(Config(log_level="debug"), path)
    assert "log_level: debug" in path.read_text()


@pytest.mark.slow
def test_a_command_logs_at_the_level_of_its_configuration(quick_config, tmp_path, capsys):
    """The report is no log: it is printed at every level."""
    arguments = ["measure", "--config", str(quick_config), "--run_dir", str(tmp_path), "--controls.layers", "false"]
    assert main([*arguments, "--log_level", "error"]) == 0
    quiet = capsys.readouterr().out
    assert "running on 1 process" not in quiet and "warning:" not in quiet and "base/test" in quiet and "page: " in quiet
    assert main([*arguments, "--log_level", "debug"]) == 0
    every = capsys.readouterr().out
    assert "running on 1 process (ddp, cpu)\n" in every and "base-fit: 96 items, fingerprint" in every


QUIET = """
import sys, transformers
from gapclose import ModelConfig, close, load_items, load_model
transformers.logging.disable_progress_bar()
loaded, items = load_model(ModelConfig(path=sys.argv[1], dtype="float32")), load_items(sys.argv[2])
small = {
    "observe": {"batch_size": 32, "shard_batches": 1, "max_new_tokens": 1}, "probe": {"families": ["logistic"], "c": [0.01], "folds": 2},
    "gap": {"replicates": 100}, "force": True, "export": {"unimproved": True},
    "train": {"epochs": 1, "global_batch_size": 24, "micro_batch_size": 12, "logging_steps": 1},
    "controls": {"random_weights": False, "layers": False, "blank": False, "nested": False, "codelength": False, "labels": False,
                 "interchange": False, "baselines": False},
}
close(loaded.model, loaded.processor, items, run_dir=sys.argv[3], **small)
"""


@pytest.mark.slow
def test_as_a_library_nothing_is_printed(tiny_checkpoint, digits_directory, tmp_path):
    """Neither on standard output nor on standard error, and no handler but one that drops everything."""
    words = [sys.executable, "-W", "ignore", "-c", QUIET, str(tiny_checkpoint), str(digits_directory), str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if k != "WANDB_MODE"} | {
        "PYTHONPATH": str(ROOT)
    }  # of which transformers prints a line
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    printed = [
        line for line in (done.stdout + done.stderr).splitlines() if "real_accelerator.py" not in line
    ]  # DeepSpeed's own, where it is
    assert done.returncode == 0 and printed == [], done
    code = "import logging, gapclose; log = logging.getLogger('gapclose'); print(log.handlers, log.level, logging.root.handlers)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == "[<NullHandler (NOTSET)>] 0 []\n"


def test_an_application_reads_the_records_as_of_any_library(caplog):
    caplog.set_level(logging.INFO, logger="gapclose")
    get_logger("gapclose.observe.extract").warning("  something")
    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == ("gapclose.observe.extract", "WARNING", "  something")


def test_only_these_modules_print():
    """Everything else logs."""
    package = ROOT / "gapclose"
    found = {str(path.relative_to(package)) for path in package.rglob("*.py") if re.search(r"(?<!\w)print\(", path.read_text())}
    assert found == set(PRINTING)
