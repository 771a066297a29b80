"""``--help`` shows first what a user needs first; mistakes on the command line are told in one line each, without a traceback."""

import dataclasses
import re
import resource
import subprocess
import sys

import pytest
import yaml

from gapclose import load_run
from gapclose.pipeline.cli import _configured, main
from gapclose.pipeline.config import Config, known_keys, parse_config

COMMANDS = ("validate", "measure", "close", "export", "report", "monitor", "serve", "ask", "wandb-report")


def help_text(capsys, command: str = "close") -> str:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    return capsys.readouterr().out


def test_common_groups_stand_before_rare_ones(capsys):
    """Every group is a section with its name and a line on what it is for; keys stand in the order of the fields."""
    text = help_text(capsys)
    sections = re.findall(r"^(\w+): (\S.*)$", text, re.M)[1:]
    groups = [f.name for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.default_factory)]
    assert [name for name, _ in sections] == ["run", *groups]
    assert groups[:4] == ["data", "model", "train", "wandb"] and groups[-4:] == ["prompts", "labelling", "dpo", "grpo"]
    assert all(about and "``" not in about and not about.endswith(".") for _, about in sections)
    keys = re.findall(r"^  --([\w.]+)  \(", text, re.M)
    assert keys == sorted((k for k in known_keys() if k not in groups), key=lambda key: "." in key)
    assert keys[:5] == ["run_dir", "seed", "objective", "recipe", "tracking"]
    assert [k for k in keys if k.startswith("train.")][:2] == ["train.epochs", "train.learning_rate"]


def test_every_key_says_its_type_its_default_and_what_it_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    text = help_text(capsys, "measure")
    assert text.startswith("usage: gapclose measure [--config FILE]")
    assert "  --train.epochs  (a whole number; default: 3)\n      number of epochs. For" in text
    assert "  --data.shares  (a list of numbers such as [1, 2]; default: [0.3, 0.3, 0.1, 0.3])\n" in text
    assert "  --targets.false_alarm_budget  (a number or null; default: 0.03)\n" in text
    described = re.findall(r"^  --[\w.]+  \(.*\)\n      \S", text, re.M)
    assert len(described) == len(re.findall(r"^  --[\w.]+  \(", text, re.M))
    assert all(len(line) <= 70 for line in text.splitlines() if line.startswith("      "))


def test_the_configuration_is_printed(capsys):
    with pytest.raises(SystemExit) as left:
        parse_config(["--seed", "3", "--print_config"])
    assert left.value.code == 0 and yaml.safe_load(capsys.readouterr().out) == dataclasses.asdict(Config(seed=3))
    assert main(["close", "--seed", "three", "--print_config"]) == 2


MISTAKES = {  # arguments -> the line that names the key, the value and what is expected
    ("--train.epochs", "three"): "train.epochs is 'three'; it must be a whole number",
    ("--train.learning_rate", "fast"): "train.learning_rate is 'fast'; it must be a number",
    ("--train.twins", "maybe"): "train.twins is 'maybe'; it must be true or false",
    ("--probe.c", "0.1"): "probe.c is '0.1'; it must be a list of numbers such as [1, 2]",
    ("--model.dtype", "half"): "model.dtype is 'half'; choose one of ['auto', 'float32', 'bfloat16', 'float16']",
    ("--model.template", "[a]"): "model.template is '[a]'; it must be names with values or null",
    ("--train.epoch", "3"): "unknown key 'train.epoch'; did you mean 'train.epochs'?",
    ("--learning_rate=1",): "unknown key 'learning_rate'; did you mean 'train.learning_rate'?",
    ("--log_levle", "debug"): "unknown key 'log_levle'; did you mean 'log_level'?",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_mistake_is_told_in_one_line(arguments, capsys):
    assert main(["close", *arguments]) == 2
    message = capsys.readouterr().err
    assert message == f"error: 1 problem with the configuration:\n  - command line: {MISTAKES[arguments]}\n"


def test_a_path_that_is_not_there_names_the_nearest_beside_it(tmp_path, tiny_config, capsys):
    """A configuration file, and run directories of report, load_run and export."""
    (tmp_path / "run-seed1").mkdir()
    (tmp_path / "tiny.yaml").write_text("seed: 1\n")

    def told(*arguments: str) -> str:
        assert main(arguments) == 2
        return capsys.readouterr().err

    near, wrong = str(tmp_path / "run-seed1"), str(tmp_path / "run-seed2")
    assert f"tiny.yml: no such configuration file; did you mean '{tmp_path / 'tiny.yaml'}'?" in told(
        "close", "--config", f"{tmp_path}/tiny.yml"
    )
    assert told("report", wrong) == f"error: no such run directory: {wrong}; name what `run_dir` was; did you mean '{near}'?\n"
    assert "did you mean" not in told("report", f"{tmp_path}/nowhere/x") + told("report", f"{tmp_path}/zzz")
    assert f"first; did you mean '{near}'?" in told("export", "--config", str(tiny_config), "--run_dir", wrong)
    with pytest.raises(ValueError, match=f"no such run directory; did you mean '{near}'?"):
        load_run(wrong)
    assert f"data.columns is '{tmp_path}/c.yaml'; no such file" in told("validate", "--data.columns", f"{tmp_path}/c.yaml")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_its_own_usage(command, capsys):
    assert help_text(capsys, command).startswith(f"usage: gapclose {command} [")


@pytest.mark.parametrize("command", ["report", "monitor", "serve", "ask", "wandb-report"])
def test_a_mistaken_option_is_told_with_the_usage_of_its_command(command, tmp_path, capsys):
    assert main([command, str(tmp_path), "--colour"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and f"usage: gapclose {command} [" in message and "Traceback" not in message


@pytest.mark.parametrize("command", ["monitor", "serve"])
def test_a_directory_of_a_callback_has_no_monitor(command, tmp_path, capsys):
    (tmp_path / "gapclose").mkdir()
    (tmp_path / "gapclose" / "callback.json").write_text("{}")
    for place in (tmp_path, tmp_path / "gapclose"):
        assert main([command, str(place), *(["--items", "x"] if command == "monitor" else [])]) == 2
        said = capsys.readouterr().err
        assert "GapCallback measured a training there" in said and "GapCallback.monitor() makes its monitor" in said


@pytest.mark.parametrize(
    "words", [("serve", "--por", "1", "RUN"), ("monitor", "RUN", "--item", "x"), ("serve", ""), ("monitor", "RUN", "--items=")]
)
def test_options_are_written_out_and_files_have_names(words, tmp_path, capsys, monkeypatch):
    """A prefix of an option would change its meaning with the next option; an empty name is the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").touch()
    assert main([*words]) == 2
    said = capsys.readouterr().err
    assert "usage: gapclose" in said and ("unrecognized" in said or "required" in said or "'' names no file or directory" in said)


def test_without_a_configuration_the_demo_is_named(tmp_path, capsys, monkeypatch):
    """Whatever the command; and not where items or model are the user's own."""
    monkeypatch.chdir(tmp_path)
    for command in ("validate", "measure", "close", "export"):
        _configured(command, [])
        assert capsys.readouterr().out.startswith("no --config: the digits demo that gapclose ships")
    _configured("close", ["--data.path", "people"])
    assert capsys.readouterr().out == "no --config: data.path people, model.path digits, in runs/digits\n"


@pytest.mark.parametrize(
    ("code", "limit"),
    [
        ("import gapclose", 0.5),
        ("from gapclose.pipeline.cli import main; main(['--help'])", 0.5),
        *((f"from gapclose.pipeline.cli import main; main(['{command}', '--help'])", 1.0) for command in COMMANDS),
    ],
)
def test_help_is_quick(code, limit):
    """In seconds of CPU time, the interpreter's start included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < limit
