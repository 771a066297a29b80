"""GRPO: the reward by hand, that a run of it raises the reward and records it with the KL, and that it goes on where it was interrupted."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gapclose.data.answer_matching import AnswerMatcher
from gapclose.data.digits.questions import answer_words
from gapclose.data.items import Item, Option
from gapclose.data.jsonl import read_items
from gapclose.evaluation.run_records import read_records
from gapclose.observe.store import read_observations
from gapclose.pipeline.config import parse_config
from gapclose.probes.linear import FrozenProbe
from gapclose.training.config import GrpoConfig, TrainConfig
from gapclose.training.targets import Targets
from gapclose.training.trl import factory as by_trl
from gapclose.training.trl.grpo import Reward, never_sampled

OPTIONS = [
    Option(text="odd", concept="standard"),
    Option(text="not odd", concept="standard"),
    Option(text="unseen", concept="false_vision"),
]
TRAIN = {"global_batch_size": 32, "micro_batch_size": 16, "learning_rate": 0.02, "warmup": 0}
SETTINGS = ("--objective", "grpo", "--grpo.num_generations", "4", *(f"--train.{k}={v}" for k, v in TRAIN.items()))


def test_the_reward_is_the_posterior_of_the_concept_that_an_answer_expresses(digits):
    """By hand: options of one concept earn the same, what names no option or two earns nothing, a longer option is not its own part."""
    items = [replace(digits.items[n], options=OPTIONS, gold=None) for n in range(2)]
    reward = Reward(items=items, reading=np.array([[0.7, 0.25, 0.05], [0.1, 0.6, 0.3]]), concepts=digits.concepts)
    assert digits.concepts == ("standard", "false_vision", "false_audio")
    answers = {"odd": 0.7, " odd\n": 0.7, "not odd": 0.7, "unseen": 0.25, "It is unseen.": 0.25, "odd unseen": 0.0, "": 0.0, "seven": 0.0}
    assert {a: reward.of(0, a) for a in answers} == answers
    assert (reward.of(1, "odd"), reward.of(1, "unseen")) == (0.1, 0.6)
    denied = {"It is not unseen.": 0.0, "Nothing is odd": 0.0, "No, it is odd": 0.7}
    assert {a: reward.of(0, a) for a in denied} == denied


def judge(answer: str, item: Item) -> str | None:
    """What the tests below match answers by that name no option."""
    return "unseen" if "there is no" in answer.lower() else None


def test_the_reward_matches_answers_as_the_run_does(digits, digits_directory, tmp_path, monkeypatch):
    """By the function of the user's, and under a binary prompt by what the answer says first."""
    items = [replace(digits.items[0], options=OPTIONS, gold=None)]
    reward = Reward(
        items=items, reading=np.array([[0.7, 0.25, 0.05]]), concepts=digits.concepts, match=AnswerMatcher(leading=True, judge=judge)
    )
    answers = {"There is no digit.": 0.25, "Unseen, and not odd": 0.25, "seven": 0.0}
    assert {a: reward.of(0, a) for a in answers} == answers

    made = []
    monkeypatch.setattr(by_trl, "make_grpo_trainer", lambda loaded, reward, *rest, **more: made.append(reward))
    few = replace(digits, items=digits.items[:1])
    table = np.full((1, len(digits.concepts)), 1 / len(digits.concepts))
    targets = SimpleNamespace(keep=np.array([True]), reading=table)
    wanted = ("--objective", "grpo", "--data.path", str(digits_directory), "--prompts.match", f"{__name__}:judge")
    for asked in ("own", "binary"):
        config = parse_config([*wanted, "--prompts.asked", asked])
        by_trl.make_trl_trainer(None, targets, few, table, None, config, tmp_path, after_epoch=lambda _: None, callbacks=())
    assert [reward.match for reward in made] == [AnswerMatcher(judge=judge), AnswerMatcher(leading=True, judge=judge)]


@pytest.mark.parametrize(
    ("change", "says"),
    [({"num_generations": 1}, "at least 2"), ({"beta": 0.0}, r"grpo\.beta is 0"), ({"temperature": 0.0}, r"grpo\.temperature is 0")],
)
def test_settings_that_cannot_work_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        GrpoConfig(**change)


def test_a_global_batch_holds_whole_groups():
    """It counts answers; the remedy is named."""
    assert GrpoConfig(num_generations=8).prompts(TrainConfig(global_batch_size=72)) == 9
    with pytest.raises(
        ValueError, match=r"20 counts answers and is no multiple of grpo\.num_generations 8, which may be \[2, 4, 5, 10, 20\]"
    ):
        GrpoConfig(num_generations=8).prompts(TrainConfig(global_batch_size=20))


def test_marks_of_media_are_never_sampled(loaded):
    """What ends an answer is, and nothing that an option is made of is left out."""
    left_out = never_sampled(loaded)
    words = set(loaded.tokenizer.convert_ids_to_tokens(left_out))
    assert {"<|IMAGE|>", "<|vision_bos|>", "<|audio_eos|>"} <= words and "<|im_end|>" not in words
    assert not {t for word in answer_words() for t in loaded.option_tokens(word)} & set(left_out)


@pytest.fixture(scope="module")
def finished(close_images, tmp_path_factory):
    """A whole run."""
    directory = tmp_path_factory.mktemp("grpo")
    assert close_images(directory, *SETTINGS) == 0
    return directory


def test_rewards_and_kl_are_recorded_per_epoch_and_the_reward_rises(finished):
    """Beside the gap and the sentinel; the KL starts at the base model and is kept."""
    epochs = [r for r in read_records(finished) if r["stage"].startswith("epoch-")]
    assert [r["epoch"] for r in epochs] == [1, 2]
    for record in epochs:
        assert {"loss", "reward", "reward_std", "rewards/reading/mean", "kl", "entropy"} <= set(record["training"])
        assert record["gap"]["balanced"] and record["sentinel_probe"]["balanced"] and record["state"]
        assert 0 <= record["training"]["reward"] <= 1
    first, second = (r["training"] for r in epochs)
    assert second["reward"] > first["reward"] and 0 < first["kl"] < second["kl"]


def test_the_reading_that_rewards_is_the_base_models(finished, images_directory):
    """What the frozen probe reads from the stored base residuals, up to the operating point."""
    train = read_items(images_directory).select(split="train", purpose="gap")
    ids = [i.id for i in train]
    probe = FrozenProbe.load(finished / "probes" / "frozen")
    base = read_observations(finished / "observations" / "base-train", ids)
    targets = Targets.load(finished / "targets.safetensors", ids)
    weight = np.where(np.isin(train.concepts, train.alarm), targets.factor, 1.0)
    read = probe.predict_proba(base.residuals[probe.layer]) * weight
    np.testing.assert_allclose(targets.reading, read / read.sum(1, keepdims=True), atol=1e-6)


def test_the_adapter_alone_is_saved(finished):
    """No copy that TRL keeps as its reference."""
    weights = load_file(finished / "adapter" / "adapter_model.safetensors")
    assert weights and not any("ref" in k.split(".") for k in weights) and not list(finished.rglob("ref"))


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_adapter(finished, close_images, tmp_path, monkeypatch):
    """Killed in its second epoch, it starts from the checkpoint of the first, with the prompts and the draws it would have had."""
    from trl import GRPOTrainer

    whole = GRPOTrainer.training_step

    def step(self, *args, **kwargs):
        if self.state.epoch > 1:
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(GRPOTrainer, "training_step", step)
        assert close_images(tmp_path, *SETTINGS) == 130
    assert [r["stage"] for r in read_records(tmp_path)][-1] == "epoch-1/val"
    assert close_images(tmp_path, *SETTINGS) == 0
    one, two = (load_file(d / "checkpoints" / "epoch-2" / "adapter_model.safetensors") for d in (finished, tmp_path))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_too_few_items_for_one_step_are_told(close_images, tmp_path, capsys):
    """With what to change, before anything trains."""
    wide = ("--train.global_batch_size", "400", "--train.micro_batch_size", "20")
    assert close_images(tmp_path, *SETTINGS, *wide) == 2
    assert "and split 'train' has 48 gap items; lower train.global_batch_size" in capsys.readouterr().err
