"""Every key of the configuration is checked: what is illegal is refused by name when the configuration is read, all of it at once."""

import dataclasses
import typing

import pytest
import torch
import transformers

from gapclose.core.config_checks import Faults, hints_of, in_words
from gapclose.pipeline.config import Config, known_keys, parse_config
from gapclose.pipeline.config_parsing import all_hints
from gapclose.training.config import POLYNOMIAL_END, SCHEDULERS, TrainConfig

EITHER = "both truth values are legal"
CREATED = "any path is legal where it can be written, which a start looks at (test_places_are_looked_at_before_a_start)"
READ = "any path is legal; what reads it says what is wrong with it, together with the items' faults"
WORDED = "any text is legal that is not blank"

ILLEGAL: dict[str, list[str] | str] = {
    # key -> words that are refused, or why every value of its type is legal
    "run_dir": CREATED,
    "seed": ["-1", "4294967296"],
    "force": EITHER,
    "tracking": ["aim", "[none, wandb]", "[wandb, aim]", "[wandb, wandb]"],
    "log_level": ["verbose", "INFO"],
    "objective": ["sft"],
    "data.path": READ,
    "data.format": READ,
    "data.clips": ["[1, 2]", "[1, 2, 3, -4]"],
    "data.columns": READ,
    "data.shares": ["[]", "[0.5, 0.5]", "[.nan, 0, 0, 1]", "[1.5, -0.5, 0, 0]", "[.inf, 0, 0, 0]"],
    "data.split_seed": ["-1"],
    "data.shuffle_options": EITHER,
    "data.about": ["smell"],
    "data.frames": ["0"],
    "data.side": ["15"],
    "data.workers": ["-1"],
    "data.cache": CREATED,
    "data.cache_gb": ["0", "-1", ".inf"],
    "data.interleave": EITHER,
    "data.on_error": ["ignore"],
    "data.degraded": ["-0.1", "1.1"],
    "data.sound": EITHER,
    "prompts.asked": ["papers", "a:b:c"],
    "prompts.measured": ["[papers]", "[free, free]", "['']"],
    "prompts.refit": EITHER,
    "prompts.binary_question": WORDED,
    "prompts.binary_answers": ["[]", "['yes']", "['a', 'a']", "['yes', '']"],
    "prompts.match": ["function"],
    "prompts.max_new_tokens": ["0"],
    "labelling.budget": ["0", "-5"],
    "labelling.noise": ["-0.1", "1"],
    "labelling.without": ["tag", "=value", "tag="],
    "model.path": READ,
    "model.revision": WORDED,
    "model.dtype": ["fp16"],
    "model.attention": ["flash", "paged|sdpa"],
    "model.template": ["{a b: 1}", "{a: [1]}", "{a: .nan}"],
    "model.trust_remote_code": EITHER,
    "model.quantisation": ["2bit"],
    "model.sharded": EITHER,
    "model.architecture": READ,
    "observe.batch_size": ["0"],
    "observe.shard_batches": ["0"],
    "observe.max_new_tokens": ["0"],
    "observe.shared": CREATED,
    "observe.share_prefix": ["perhaps", "always"],
    "observe.versions": ["other"],
    "probe.families": ["[]", "[svm]", "[lda, lda]"],
    "probe.c": ["[0]", "[]", "[.nan]", "[.inf]"],
    "probe.shrinkage": ["[-0.1]", "[]", "[1.1]", "[.nan]"],
    "probe.device": ["cuda", "gpu"],
    "probe.strengths": ["[.nan]", "[.inf]"],
    "probe.folds": ["1"],
    "probe.layers": ["[]", "[0]"],
    "probe.layers_above": ["0"],
    "probe.stack": ["0"],
    "gap.replicates": ["99"],
    "gap.standard_budget": ["-0.1", "1.1"],
    "gap.choose": ["best"],
    "gap.reading_tolerance": ["-0.1", "1.1"],
    "gap.closed_at": ["-0.1", "1.1"],
    "gap.parse_floor": ["-0.1", "1.1"],
    "gap.detectable": ["0", "1.1"],
    "gap.least_option_mass": ["-0.1", "1.1"],
    "gap.least_parse_rate": ["-0.1", "1.1"],
    "gap.least_standard_skill": ["-0.1", "1.1"],
    "controls.labels": EITHER,
    "controls.residualise": EITHER,
    "controls.codelength": EITHER,
    "controls.blank": EITHER,
    "controls.layers": EITHER,
    "controls.interchange": EITHER,
    "controls.nested": EITHER,
    "controls.protocol": ["paper"],
    "controls.baselines": EITHER,
    "controls.extra": ["[coin]"],
    "controls.draws": ["0"],
    "controls.random_weights": EITHER,
    "controls.random_draws": ["1", "0"],
    "controls.seed": ["-1"],
    "controls.text_encoder": ["/nowhere"],
    "targets.false_alarm_budget": ["-0.1", "1"],
    "targets.sharpen": ["0", "-.inf"],
    "targets.gate": ["0", "1.1"],
    "targets.rounds": ["0"],
    "targets.patience": ["0"],
    "targets.first": ["gold"],
    "recipe": ["rounds"],
    "targets.twins": EITHER,
    "targets.control": ["shuffle"],
    "lora.layers": ["before", "[]", "[0]"],
    "lora.r": ["0"],
    "lora.alpha": ["0"],
    "lora.dropout": ["-0.1", "1"],
    "lora.use_rslora": EITHER,
    "lora.use_dora": EITHER,
    "lora.experts": EITHER,
    "train.epochs": ["0"],
    "train.patience": ["0"],
    "train.global_batch_size": ["0"],
    "train.micro_batch_size": ["0"],
    "train.learning_rate": ["-1", ".inf"],
    "train.lr_scheduler_type": ["cosin", "reduce_lr_on_plateau", "warmup_stable_decay"],
    "train.warmup": ["-0.1", "1", "100"],
    "train.weight_decay": ["-1"],
    "train.max_grad_norm": ["-1"],
    "train.consistency": ["-1"],
    "train.gold": ["-1"],
    "train.retain": ["-1"],
    "train.retain_share": ["-0.1", "1.1"],
    "train.gold_share": ["-0.1", "2"],
    "train.twins": EITHER,
    "train.retain_tokens": ["0"],
    "train.gradient_checkpointing": EITHER,
    "train.cache_trunk": ["perhaps", "always"],
    "train.save_steps": ["-5"],
    "train.logging_steps": ["0"],
    "guards.off": ["[speed]", "[fresh, fresh]"],
    "guards.patience": ["0"],
    "guards.retention_budget": ["-0.1", "5"],
    "dpo.beta": ["0", ".inf"],
    "dpo.anchors": EITHER,
    "grpo.num_generations": ["1"],
    "grpo.beta": ["0"],
    "grpo.temperature": ["0"],
    "export.merged": EITHER,
    "export.omni": EITHER,
    "export.push": ["name", "a/b/c", "a/b--c", "a/.b", "a/" + "b" * 100],
    "export.private": EITHER,
    "export.unimproved": EITHER,
    "export.verify": EITHER,
    "export.tolerance": ["0", "-1"],
    "export.monitor_false_alarms": ["-0.1", "1"],
    "wandb.project": ["a/b", "a:b", "p" * 129],
    "wandb.name": ["n" * 129],
    "wandb.group": ["g" * 129],
    "wandb.upload": ["[weights]", "[items, items]", "[media]"],
}
HINTS = all_hints(Config)
LEAVES = [key for key in known_keys() if not dataclasses.is_dataclass(HINTS[key])]


def complaint(*arguments: str) -> str:
    with pytest.raises(ValueError) as caught:
        parse_config(arguments)
    return str(caught.value)


def wrong_words(key: str) -> list[str]:
    """Words that no value of the key's type can be: of another type, not finite, blank, null."""
    hint = HINTS[key]
    kinds = (hint,) if typing.get_origin(hint) in (list, dict) else typing.get_args(hint) or (hint,)
    found = {bool: ["perhaps", "1"], int: ["three", "1.5", "true"], float: ["abc", "true", ".nan", "nan"], str: ["", "  "]}
    words = [
        word
        for kind in kinds
        if kind is not type(None)
        for word in found.get(kind, ["3", "{a: 1}" if typing.get_origin(kind) is list else "[1]"])
    ]
    if str in kinds:
        words = found[str]
    return words + ([] if type(None) in kinds or str in kinds else ["null"])


def test_no_key_is_left_out():
    """A new key belongs into the table, with what is refused or the reason why nothing is."""
    assert sorted(ILLEGAL) == sorted(LEAVES)
    truths = {key for key in LEAVES if HINTS[key] is bool}
    assert {key for key, illegal in ILLEGAL.items() if illegal == EITHER} == truths
    texts = {key for key, illegal in ILLEGAL.items() if illegal in (CREATED, READ, WORDED)}
    assert all(str in (HINTS[key], *typing.get_args(HINTS[key])) for key in texts)


@pytest.mark.parametrize("key", LEAVES)
def test_what_is_illegal_is_refused_by_name(key, tmp_path):
    """One line with key and value, from the command line and from a file; never the parser's own words."""
    illegal = ILLEGAL[key] if isinstance(ILLEGAL[key], list) else []
    for word in [*illegal, *wrong_words(key)]:
        message = complaint(f"--{key}={word}")
        assert message.startswith("1 problem with the configuration:\n  - command line: ") and message.count("\n") == 1, (word, message)
        assert key in message and "Expected" not in message and "Parser" not in message, (word, message)
    for word in illegal:
        name = key.rpartition(".")[2]
        path = tmp_path / "run.yaml"
        path.write_text(
            (f"{key.partition('.')[0]}:\n  " if "." in key else "") + f"{name}: {word if word[:1] in '[{-.0123456789' else repr(word)}\n"
        )
        assert f"{path}: " in (message := complaint("--config", str(path))) and key in message


def test_everything_illegal_is_told_at_once():
    """One fault of every key, in all groups together; each has its line."""
    faults = {key: (illegal if isinstance(illegal, list) else wrong_words(key))[0] for key, illegal in ILLEGAL.items()}
    message = complaint(*(f"--{key}={word}" for key, word in faults.items()), "--train.epoch=3")
    told = [line.removeprefix("  - command line: ") for line in message.splitlines()[1:]]
    assert message.startswith(f"{len(faults) + 1} problems with the configuration")
    assert all(any(line.startswith(key) for line in told) for key in faults)
    assert sum("unknown key 'train.epoch'" in line for line in told) == 1


TOGETHER = {  # settings that are legal one by one
    ("--train.global_batch_size", "20"): ["train.global_batch_size 20 cannot be cut", "train.micro_batch_size may be [1, 2, 4, 5, 10, 20]"],
    ("--train.retain_share", "1"): ["train.retain_share 1 and train.gold_share 0.25 leaves no room for ['consistency']"],
    ("--train.retain_share", "0"): ["leaves no room for ['retain']"],
    ("--objective", "consistency+gold", "--train.retain_share", "0.6", "--train.gold_share", "0.6"): ["no room for ['consistency']"],
    ("--objective", "gold", "--train.gold", "0"): ["the weight train.gold is 0"],
    ("--objective", "grpo", "--grpo.num_generations", "7"): ["no multiple of grpo.num_generations 7"],
    ("--objective", "gold", "--targets.rounds", "2"): ["targets.rounds 2 needs objective consistency"],
    ("--objective", "consistency+gold", "--targets.first", "labels"): [
        "targets.rounds 1: it needs objective consistency+gold and at least 2"
    ],
    ("--targets.first", "labels", "--targets.rounds", "2"): ["targets.first labels with objective consistency and"],
    ("--recipe", "auto", "--targets.rounds", "2"): ["recipe auto sets targets.rounds"],
    ("--recipe", "auto", "--train.gold", "0.5"): ["recipe auto sets train.gold"],
    ("--recipe", "auto", "--targets.control", "blank_media"): ["recipe auto, for a faint reading: targets.rounds is 4, and a control with"],
    ("--recipe", "auto", "--objective", "gold"): ["recipe auto sets objective"],
    ("--recipe", "auto", "--train.retain_share", "0.7", "--train.gold_share", "0.3"): ["leaves no room for ['consistency']"],
    ("--targets.control", "blank_media", "--targets.rounds", "2"): ["targets.rounds is 2, and a control with blanks"],
    ("--train.lr_scheduler_type", "polynomial", "--train.learning_rate", "0"): ["polynomial ends at 1e-07, and train.learning_rate is 0"],
    ("--data.path", "elsewhere", "--data.sound", "false"): ["data.sound is False, which is for the embedded world alone"],
    ("--data.path", "elsewhere", "--data.degraded", "0.3"): ["data.degraded is 0.3, which is for the embedded world alone"],
    ("--probe.layers", "[2, 3]", "--probe.stack", "3"): ["probe.stack is 3, and there are 2 candidate layers: [2, 3]"],
    ("--export.push", "me/it", "--export.verify", "false"): ["export.verify is false"],
    ("--export.push", "me/" + "b" * 92, "--export.omni", "true"): ["export.push is", "which the hub refuses"],
    ("--export.merged", "true", "--model.quantisation", "4bit"): ["export.merged with model.quantisation 4bit"],
    ("--prompts.asked", "a:f", "--prompts.measured", "[b:f]"): ["has two prompts of one name"],
}


@pytest.mark.parametrize("arguments", TOGETHER, ids=" ".join)
def test_what_does_not_go_together_is_refused(arguments):
    message = complaint(*arguments)
    assert message.startswith("1 problem ") and all(part in message for part in TOGETHER[arguments]), message


def test_a_fault_of_one_key_is_not_told_again_of_what_is_made_of_it():
    """Shares, batches and prompts are compared only where each is right by itself."""
    assert complaint("--train.global_batch_size=0", "--objective", "grpo", "--grpo.num_generations", "7").startswith("1 problem ")
    assert complaint("--train.retain_share", "abc", "--train.global_batch_size=72").startswith("1 problem ")
    two = complaint("--train.global_batch_size", "20", "--train.micro_batch_size", "3", "--objective", "grpo", "--seed=-1")
    assert two.startswith("3 problems ") and "cannot be cut" in two and "counts answers" in two and "seed is -1" in two


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: {epochs: 1, epochs: 2}", ["not YAML", "the key 'epochs' stands twice"]),
        ("seed: 1\nseed: 2", ["the key 'seed' stands twice"]),
        ("wandb: {name: 2024-01-01}", ["wandb.name is datetime.date(2024, 1, 1); it must be a text or null"]),
        ("train: {learning_rate: {a: 1}}", ["train.learning_rate is {'a': 1}; it must be a number"]),
        (
            "probe: {c: 1}\ntrain: {epochs: null}",
            ["2 problems", "probe.c is 1; it must be a list of numbers", "train.epochs is None; it must"],
        ),
        ("1: 2", ["unknown key '1'"]),
    ],
)
def test_files_that_do_not_fit(tmp_path, text, says):
    """Whatever YAML makes of it, the message names file, key and value."""
    path = tmp_path / "run.yaml"
    path.write_text(text)
    message = complaint("--config", str(path))
    assert all(part in message for part in [f"{path}: ", *says]), message


def test_keys_are_taken_as_they_are_written(tmp_path):
    """YAML reads the key ``off`` as false, and merges mappings, in which a later key replaces an earlier one."""
    path = tmp_path / "run.yaml"
    path.write_text("lora: &a {r: 4, alpha: 8}\nguards: {off: [fresh]}\n")
    assert parse_config(["--config", str(path)]).guards.off == ["fresh"]
    path.write_text("model:\n  template: {<<: &a {x: 1, y: 2}, y: 3}\n")
    assert parse_config(["--config", str(path)]).model.template == {"x": 1, "y": 3}


def test_numbers_as_texts_are_numbers(tmp_path):
    """YAML takes 1e-4 for a text; a later value replaces an earlier one, and variables of a template join."""
    path = tmp_path / "run.yaml"
    path.write_text("train: {learning_rate: 1e-4}\nprobe: {c: [1e-3, 1]}\nmodel: {template: {a: true}}\n")
    config = parse_config(["--config", str(path), "--model.template.b", "false", "--seed", "1", "--seed=2", "--force"])
    assert config.train.learning_rate == 1e-4 and config.probe.c == [1e-3, 1.0]
    assert config.model.template == {"a": True, "b": False} and config.seed == 2 and config.force is True


def test_values_of_python_are_checked_as_well():
    """Where no parser has looked at them: types, truth values for numbers, and all faults of a group together."""
    with pytest.raises(Faults) as caught:
        TrainConfig(epochs=True, learning_rate="fast", retain_share=2.0, lr_scheduler_type="polynomial")  # type: ignore[arg-type]
    assert str(caught.value).splitlines() == [
        "train.epochs is True; it must be a whole number",
        "train.learning_rate is 'fast'; it must be a number",
        "train.retain_share is 2.0; it must lie in 0..1",
    ]
    with pytest.raises(ValueError, match="train is 5; it must be a TrainConfig"):
        Config(train=5)  # type: ignore[arg-type]


def test_types_in_words():
    """As a user writes them."""
    found = {key: in_words(hint) for key, hint in all_hints(Config).items()}
    assert found["lora.layers"] == "a text or a list of whole numbers such as [1, 2]"
    assert found["targets.false_alarm_budget"] == "a number or null" and found["model.template"] == "names with values or null"
    assert hints_of(TrainConfig)["epochs"] is int


def test_schedulers_are_those_that_transformers_makes_without_more_settings():
    """Each of its names either makes one, or is refused here; a polynomial one ends where it does."""

    def made(name: str, rate: float = 1.0) -> bool:
        optimiser = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=rate)
        try:
            transformers.TrainingArguments(output_dir="x", lr_scheduler_type=name, use_cpu=True, report_to=[])
            schedule = transformers.get_scheduler(name, optimiser, num_warmup_steps=1, num_training_steps=10)
            optimiser.step()
            schedule.step()
        except (ValueError, TypeError):
            return False
        return True

    names = [kind.value for kind in transformers.trainer_utils.SchedulerType]
    assert [n for n in names if made(n)] == list(SCHEDULERS)
    assert not made("polynomial", POLYNOMIAL_END) and made("polynomial", 2 * POLYNOMIAL_END)


def test_places_are_looked_at_before_a_start(tmp_path):
    """Directories that cannot be written, files that are not there; nothing is left behind, and a stored configuration is not asked."""
    (tmp_path / "file").write_text("")
    wrong = {
        "run_dir": "file/run",
        "observe.shared": "file",
        "data.cache": "file/deep/er",
        "data.columns": "none.yaml",
        "model.architecture": "none",
    }
    arguments = [f"--{key}={tmp_path / path}" for key, path in wrong.items()]
    parse_config(arguments)
    with pytest.raises(ValueError) as caught:
        parse_config(arguments, starting=True)
    message = str(caught.value)
    assert message.startswith("5 problems") and all(f"- {key} is " in message for key in wrong)
    assert f"{tmp_path / 'file'} is a file" in message and [p.name for p in tmp_path.iterdir()] == ["file"]
    parse_config([f"--run_dir={tmp_path / 'new' / 'run'}"], starting=True)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
