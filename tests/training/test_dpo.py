"""DPO: which pairs are made, that a run of it learns them and records what TRL logs, and that it goes on where it was interrupted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from run_schemas import misfits
from safetensors.torch import load_file

from gapclose.core.files import read_json
from gapclose.data.items import Option
from gapclose.data.jsonl import read_items
from gapclose.evaluation.run_records import read_records, summarise
from gapclose.models.config import ModelConfig
from gapclose.observe.batching import plan_batches
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import forward_batches
from gapclose.observe.request import ObservationRequest
from gapclose.observe.store import read_observations
from gapclose.training.config import DpoConfig
from gapclose.training.lora import load_adapter
from gapclose.training.targets import Targets
from gapclose.training.trl.dpo import count_by_concept, preference_pairs

OPTIONS = [Option(text="odd", concept="standard"), Option(text="even", concept="standard"), Option(text="unseen", concept="false_vision")]
TRAIN = {"global_batch_size": 8, "micro_batch_size": 4, "learning_rate": 0.02, "warmup": 0}
SETTINGS = ("--objective", "dpo", "--targets.gate", "1.0", *(f"--train.{k}={v}" for k, v in TRAIN.items()))


@pytest.fixture
def items(digits):
    return [replace(i, options=OPTIONS, gold=None) for i in digits.items[:4]]


def test_pairs_are_what_the_reading_prefers_over_what_the_model_says(items):
    """Only where the two differ, and only what the gate keeps."""
    target = np.array([[0.1, 0.1, 0.8], [0.7, 0.2, 0.1], [0.0, 0.4, 0.6], [0.1, 0.0, 0.9]])
    scores = np.array([[-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0], [-2.0, -1.0, -9.0], [-1.0, -2.0, -3.0]])
    pairs = preference_pairs(items, target, scores, np.array([True, True, True, False]))
    assert [(p.item.id, p.chosen, p.rejected) for p in pairs] == [(items[0].id, 2, 0), (items[2].id, 2, 1)]
    assert count_by_concept(pairs) == {"false_vision": 2}


def test_anchors_are_pairs_where_both_agree(items):
    """That option over the likeliest one of another concept; an option of the same concept is never the rejected one."""
    target, scores = np.array([[0.9, 0.1, 0.0], [0.1, 0.1, 0.8]]), np.array([[-1.0, -2.0, -3.0], [-2.0, -1.0, -3.0]])
    pairs = preference_pairs(items[:2], target, scores, np.ones(2, dtype=bool), anchors=True)
    assert [(p.chosen, p.rejected) for p in pairs] == [(0, 2), (2, 1)]
    assert count_by_concept(pairs) == {"standard": 1, "false_vision": 1}


def test_no_difference_is_no_training(items):
    """The remedy is named; anchors alone are nothing to learn."""
    agreeing = np.array([[0.9, 0.1, 0.0]] * 4)
    with pytest.raises(ValueError, match="on all 4 train items the reading prefers what the model says anyway.*choose objective"):
        preference_pairs(items, agreeing, np.log(agreeing + 1e-9), np.ones(4, dtype=bool), anchors=True)


def test_beta_must_be_positive():
    with pytest.raises(ValueError, match=r"dpo\.beta is 0"):
        DpoConfig(beta=0.0)


@pytest.fixture(scope="module")
def finished(close_images, tmp_path_factory):
    """A whole run."""
    directory = tmp_path_factory.mktemp("dpo")
    assert close_images(directory, *SETTINGS) == 0
    return directory


def test_a_run_learns_its_pairs(finished, images_directory, tiny_checkpoint):
    """The chosen option gains on the rejected one on most train items, by the scores that every other objective is measured by."""
    train = read_items(images_directory).select(split="train", purpose="gap").unlabelled()
    ids = [i.id for i in train]
    targets, base = Targets.load(finished / "targets.safetensors", ids), read_observations(finished / "observations" / "base-train", ids)
    pairs = preference_pairs(train.items, targets.target, base.scores.numpy(), targets.keep)
    loaded = load_adapter(ModelConfig(path=str(tiny_checkpoint), dtype="float32"), finished / "checkpoints" / "epoch-2")
    seen = forward_batches(
        loaded, plan_batches([p.item for p in pairs], 16), loaded.media(train), ObserveConfig(share_prefix=False), ObservationRequest()
    )
    now = dict(zip(seen.ids, seen.scores, strict=True))
    before = dict(zip(base.ids, base.scores, strict=True))
    gain = [float(s[p.item.id][p.chosen] - s[p.item.id][p.rejected]) for p in pairs for s in (now, before)]
    gained = np.array(gain[::2]) - np.array(gain[1::2])
    assert len(pairs) >= 10 and gained.mean() > 0.5 and (gained > 0).mean() > 0.9


def test_what_trl_logs_is_recorded_per_epoch(finished):
    """Beside the gap, in the record of truth; the reference is the base model, so the first margin is near 0 and grows."""
    assert misfits(finished) == {}
    epochs = [r for r in read_records(finished) if r["stage"].startswith("epoch-")]
    assert [r["epoch"] for r in epochs] == [1, 2] and all("training" not in r for r in read_records(finished) if r not in epochs)
    for record in epochs:
        names = {"loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen"}
        assert names <= set(record["training"])
        assert record["gap"]["balanced"] and record["sentinel_probe"]["balanced"] and record["state"]
    first, second = (r["training"]["rewards/margins"] for r in epochs)
    assert second > first and second > 0
    history = read_json(max(finished.glob("checkpoints/checkpoint-*"), key=lambda p: int(p.name[11:])) / "trainer_state.json")[
        "log_history"
    ]
    assert history[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)  # log 2: the adapter starts as the base model


def test_the_adapter_alone_is_saved(finished):
    """No copy that TRL keeps as its reference; residuals at the probe's layer are the base model's own."""
    weights = load_file(finished / "adapter" / "adapter_model.safetensors")
    assert weights and not any("ref" in k.split(".") for k in weights) and not list(finished.rglob("ref"))
    assert {r["frozen_probe_shift"] for r in read_records(finished) if "frozen_probe_shift" in r} == {0.0}


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_adapter(finished, close_images, tmp_path, monkeypatch):
    """Killed in its second epoch, it starts from the checkpoint of the first."""
    from trl import DPOTrainer

    whole, seen = DPOTrainer.training_step, []

    def step(self, *args, **kwargs):
        seen.append(self.state.epoch)
        if self.state.epoch > 1:
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(DPOTrainer, "training_step", step)
        assert close_images(tmp_path, *SETTINGS) == 130
    assert [r["stage"] for r in read_records(tmp_path)][-1] == "epoch-1/val"
    assert close_images(tmp_path, *SETTINGS) == 0
    one, two = (load_file(d / "checkpoints" / "epoch-2" / "adapter_model.safetensors") for d in (finished, tmp_path))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert read_records(tmp_path) == read_records(finished)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_seen_at_the_next_loss_line(close_images, tmp_path, monkeypatch):
    """TRL's trainer logs means, here one an epoch: the guard stops at that line, and the epoch before is kept, tested and exported."""
    from trl import DPOTrainer

    whole, steps = DPOTrainer.training_step, []

    def step(self, *args, **kwargs):
        loss = whole(self, *args, **kwargs)
        steps.append((self.state.epoch, self.state.global_step))
        return loss * torch.nan if self.state.epoch == 1 else loss  # the first step of the second epoch alone, in every micro-batch

    monkeypatch.setattr(DPOTrainer, "training_step", step)
    assert close_images(tmp_path, *SETTINGS, "--train.logging_steps=100") == 0
    found, last = summarise(tmp_path), steps[-1][1] + 1
    assert any(epoch == 1 for epoch, _ in steps) and steps[-1][0] > 1  # steps went on after it
    assert found["epoch"] == 1 and set(found["stopped"]) == {"loss"} and f"the loss is nan at step {last};" in found["stopped"]["loss"]
    assert [r["stage"] for r in read_records(tmp_path) if r["stage"].startswith("epoch-")] == ["epoch-1/val"]
    assert read_json(tmp_path / "adapter" / "evidence.json")["stopped"] == found["stopped"]
