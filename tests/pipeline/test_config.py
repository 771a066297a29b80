"""The configuration: YAML, overrides, what is refused, and what binds a run directory."""

import dataclasses
import math
from pathlib import Path

import pytest

from gapclose.pipeline.config import Config, known_keys, parse_config, save_config
from gapclose.training.objectives import LOSS_TERMS

ROOT = Path(__file__).parents[2]


def complaint(*arguments: str) -> str:
    with pytest.raises(ValueError) as caught:
        parse_config(arguments)
    return str(caught.value)


def yaml(tmp_path, text: str) -> str:
    (tmp_path / "run.yaml").write_text(text)
    return str(tmp_path / "run.yaml")


def test_yaml_then_overrides(tmp_path):
    """Defaults, then the file, then the command line, in both spellings; lists, null and infinity arrive as themselves."""
    path = yaml(
        tmp_path,
        "seed: 3\nobjective: gold\ntargets: {sharpen: .inf, false_alarm_budget: null}\ntrain: {epochs: 2, gold: 2}\nprobe: {c: [0.1, 1]}\n",
    )
    config = parse_config(["--config", path, "--train.epochs", "5", "--train.retain=0", "--lora.layers", "[4, 5]"])
    assert (config.seed, config.train.epochs, config.train.gold, config.train.retain) == (3, 5, 2.0, 0.0)
    assert math.isinf(config.targets.sharpen) and config.targets.false_alarm_budget is None
    assert config.probe.c == [0.1, 1.0] and config.lora.layers == [4, 5]
    assert config.observe == Config().observe


@pytest.mark.parametrize(
    "path", sorted(p for p in (ROOT / "configs").glob("*.yaml") if not p.stem.startswith(("compare", "sweep"))), ids=lambda p: p.stem
)
def test_every_shipped_yaml_parses(path):
    """Every file in configs/ is valid, and its batches can be cut for one process."""
    config = parse_config(["--config", str(path)])
    config.train.accumulation(1)
    if config.objective in LOSS_TERMS:
        config.train.counts()


def test_unknown_keys_are_all_named_with_the_nearest_valid_one(tmp_path):
    """Keys of the file and of the command line in one message, each with where it stands and a hint; their values do not matter."""
    path = yaml(tmp_path, "sede: 3\ntrain: {epoch: 2, epochs: 1}\nprobes: {folds: 3}\nzzz: 1\n")
    message = complaint("--config", path, "--lora.rank", "8", "--learning_rate=1", "--xyz.r", "3")
    assert message.startswith("7 problems with the configuration")
    for part in (
        f"{path}: unknown key 'sede'; did you mean 'seed'?",
        f"{path}: unknown key 'train.epoch'; did you mean 'train.epochs'?",
        f"{path}: unknown key 'probes'; did you mean 'probe'?",
        f"{path}: unknown key 'zzz'; `gapclose close --help` lists all keys",
        "command line: unknown key 'lora.rank'; did you mean 'lora.r'?",
        "command line: unknown key 'xyz.r'; did you mean 'lora.r'?",
        "command line: unknown key 'learning_rate'; did you mean 'train.learning_rate'?",
    ):
        assert part in message, message
    assert "'probes.folds'" not in message


WRONG = {  # arguments -> what the message says
    ("--train.epochs", "many"): ["command line: train.epochs is 'many'; it must be a whole number"],
    ("--train.epochs", "1.5"): ["train.epochs is '1.5'; it must be a whole number"],
    ("--probe.families", "logistic"): ["probe.families is 'logistic'; it must be a list of texts such as [a, b]"],
    ("--export.verify", "perhaps"): ["export.verify is 'perhaps'; it must be true or false"],
    ("--train.epochs", "0"): ["train.epochs is 0; it must be at least 1"],
    ("--seed=-1",): ["seed is -1; it must lie in 0..4294967295"],
    ("--tracking", "aim"): ["tracking is 'aim'; choose one of ['none', 'wandb', 'tensorboard', 'trackio', 'mlflow']"],
    ("--targets.gate", "0"): ["targets.gate is 0.0; it must lie in (0, 1]"],
    ("--targets.control", "shuffle"): ["targets.control is 'shuffle'; choose one of"],
    ("--lora.layers", "before"): ["lora.layers is 'before'; choose after_probe, all, or a list"],
    ("--lora.r", "0"): ["lora.r is 0; it must be at least 1"],
    ("--lora.alpha", "0"): ["lora.alpha is 0; it must be above 0"],
    ("--lora.alpha=-16",): ["lora.alpha is -16; it must be above 0"],
    ("--lora.dropout", "1"): ["lora.dropout is 1.0; it must lie in [0, 1)"],
    ("--lora.dropout=-0.1",): ["lora.dropout is -0.1; it must lie in [0, 1)"],
    ("--model.dtype", "fp16"): ["model.dtype is 'fp16'; choose one of ['auto',"],
    ("--probe.families", "[svm]"): ["probe.families is ['svm']; choose some of"],
    ("--gap.replicates", "10"): ["gap.replicates is 10", "at least 100"],
    ("--data.shares", "[0.5, 0.5]"): ["data.shares is [0.5, 0.5]", "four shares that add up to 1: of fit, train, val and test"],
    ("--data.shares", "[0.5, 0.5, 0.5, 0]"): ["data.shares is [0.5, 0.5, 0.5, 0.0]", "add up to 1"],
    ("--data.shares", "[1.5, -0.5, 0, 0]"): ["data.shares is [1.5, -0.5, 0.0, 0.0]"],
    ("--data.split_seed=-1",): ["data.split_seed is -1; it must not be negative"],
    ("--data.frames", "0"): ["data.frames is 0; it must be at least 1"],
    ("--data.side", "8"): ["data.side is 8; it must be at least 16"],
    ("--data.on_error", "ignore"): ["data.on_error is 'ignore'; choose one of ['raise', 'skip']"],
    ("--data.degraded", "2"): ["data.degraded is 2.0; it must lie in 0..1"],
    ("--train.epochs",): ["--train.epochs has no value; it must be a whole number"],
    ("--config",): ["--config needs a file"],
    ("--config", "--seed", "1"): ["--config needs a file"],
    ("--config", "/nowhere.yaml"): ["/nowhere.yaml: no such configuration file"],
    ("stray",): ["stray"],
}


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_a_value_that_does_not_fit_is_named(arguments):
    """The message names key and value, and what would fit."""
    message = complaint(*arguments)
    assert all(part in message for part in WRONG[arguments]), message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: {epochs: many}", ["run.yaml: train.epochs is 'many'; it must be a whole number"]),
        ("train: 3\nlora:", ["2 problems", "run.yaml: train is 3; it is a group", "run.yaml: lora is None"]),
        ("- a\n- b", ["run.yaml: holds list"]),
        ("a: [", ["run.yaml: not YAML"]),
        ("[" * 10_000, ["run.yaml: not YAML", "nested deeper than"]),
        ("seed: !!bool x", ["run.yaml: not YAML", "does not fit its tag"]),
        (f"seed: {'1' * 5_000}", ["run.yaml: not YAML", "put it in quotes"]),
        (
            "k0: &k0 [x, x, x]\n" + "".join(f"k{n + 1}: &k{n + 1} [{', '.join([f'*k{n}'] * 9)}]\n" for n in range(9)),
            ["run.yaml: not YAML (line 4: the alias *k2 is not followed"],
        ),
        ("train: {learning_rate: " + "9" * 400 + "}", ["run.yaml"]),
        ("seed: null", ["run.yaml"]),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, text, says):
    """So is what is wrong in a YAML file."""
    message = complaint("--config", yaml(tmp_path, text))
    assert all(part in message for part in says), message


def test_a_file_that_is_not_utf_8_is_named(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes("run_dir: é".encode("latin-1"))
    assert "run.yaml: not YAML (not UTF-8 (byte 0xe9, line 1)" in complaint("--config", str(path))


def test_a_batch_that_cannot_be_cut_names_sizes_that_can():
    """The remedy is in the message."""
    with pytest.raises(ValueError, match=r"train.micro_batch_size may be \[1, 2, 4, 5, 10, 20\]"):
        parse_config(["--train.global_batch_size", "40"]).train.accumulation(2)


def test_a_run_directory_keeps_its_settings(tmp_path):
    """Other settings are refused by name with both values; keys that change no number may differ."""
    path = tmp_path / "run" / "config.yaml"
    save_config(Config(seed=1), path)
    assert parse_config(["--config", str(path)]) == Config(seed=1)
    before = path.read_text()
    other = Config(seed=2)
    other.train.learning_rate = 0.5
    with pytest.raises(ValueError) as caught:
        save_config(other, path)
    for part in (str(path.parent), "- seed: 1 there, 2 now", "- train.learning_rate: 0.0002 there, 0.5 now", "--run_dir"):
        assert part in str(caught.value)
    assert path.read_text() == before and str(caught.value).count(" there, ") == 2
    free = Config(seed=1, tracking="wandb", run_dir="elsewhere")
    free.wandb.name, free.export.merged, free.train.micro_batch_size = "mine", True, 4
    free.train.logging_steps = free.train.save_steps = 7
    save_config(free, path)
    assert parse_config(["--config", str(path)]) == free


def test_every_key_is_documented_in_help(capsys):
    """``--help`` lists every key with the docstring below its field."""
    with pytest.raises(SystemExit) as left:
        parse_config(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert left.value.code == 0
    groups = {f.name for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.default_factory)}
    for key in set(known_keys()) - groups:
        assert f"--{key}" in text, key
    for words in (
        "as one pass of the train items takes",
        "of data, folds, adapters",
        "inverse regularisation",
        "share of the items of every read",
    ):
        assert words in text, words
