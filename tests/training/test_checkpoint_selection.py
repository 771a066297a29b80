"""How far val is from the targets, what ends a round, and the state of a training that ended too early."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gapclose.evaluation.run_records import read_records
from gapclose.metrics.bootstrap import Interval
from gapclose.pipeline.cli import main
from gapclose.pipeline.config import Config
from gapclose.training.checkpoint_selection import EpochRecords, state_at_end
from gapclose.training.config import TargetsConfig, TrainConfig
from gapclose.training.early_stopping import check_guards
from gapclose.training.targets import constant_loss, excess_loss, target_of


def test_the_excess_is_the_loss_minus_the_entropy_of_the_target():
    target = np.array([[0.7, 0.3, 0.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    scores = np.log([[0.2, 0.1, 0.6], [0.25, 0.5, 0.1], [0.5, 0.5, 1e-9]])
    loss = -(target * scores).sum(1)
    entropy = np.array([-(0.7 * np.log(0.7) + 0.3 * np.log(0.3)), 0.0, np.log(2)])
    assert excess_loss(target, scores) == pytest.approx(loss - entropy)
    assert excess_loss(target, scores)[2] == pytest.approx(0)
    impossible = np.array([[-1.0, -2.0, -np.inf]])
    assert np.isfinite(excess_loss(target[:1], impossible)).all()  # no weight, no loss
    assert excess_loss(np.array([[0.0, 0.0, 1.0]]), impossible) == pytest.approx([1000])  # what JSON and means can hold


def test_the_target_of_val_is_jeffreys_at_the_operating_point_of_the_round():
    reading, scores = np.array([[0.8, 0.2]]), np.log([[0.6, 0.3, 0.1]])
    concepts, alarm = np.array([[0, 0, 1]]), np.array([False, True])
    found, shifted = target_of(TargetsConfig(), reading, scores, concepts, alarm, 2.0)
    belief = 0.4 / 1.2
    assert shifted == pytest.approx(np.array([[1 - belief, belief]]))
    assert found == pytest.approx(np.array([[(1 - belief) * 2 / 3, (1 - belief) / 3, belief]]))


def records(directory, losses, *, base=2.0, **train) -> EpochRecords:
    """A run directory with an epoch of each loss on val, as training writes them one after the other."""
    config = Config(run_dir=str(directory), train=TrainConfig(**train, lr_scheduler_type="constant"))
    found, lines = EpochRecords(directory, config), []
    for epoch, value in enumerate(losses, start=1):
        loss = found.consistency(1, epoch, Interval(value, value - 0.1, value + 0.1), base, 0.5)
        action = {"balanced": {"value": 0.5}, "option_balanced": {"value": 0.5}}
        lines.append(
            {"stage": f"epoch-{epoch}/val", "epoch": epoch, "state": "open", "objections": {}, "action": action, "consistency": loss}
        )
        (directory / "gap.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return found


@pytest.mark.parametrize(
    ("losses", "patience", "ended"),
    [
        ([1.0, 0.5, 0.3], 1, False),
        ([1.0, 0.5, 0.6], 1, True),
        ([1.0, 0.5, 0.6], 2, False),
        ([1.0, 0.5, 0.6, 0.7], 2, True),
        ([1.0, 0.5, 0.6, 0.4], 2, False),
        ([1.0, 1.0, 1.0, 1.0, 1.0], None, False),
        ([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], None, True),  # six of six
    ],
)
def test_patience_counts_epochs_since_the_lowest_loss(tmp_path, losses, patience, ended):
    assert records(tmp_path, losses, epochs=6, patience=patience).finished(1) == ended


def test_a_control_of_training_trains_all_epochs(tmp_path):
    found = records(tmp_path, [1.0, 2.0, 3.0], epochs=6, patience=1)
    found.config.targets = TargetsConfig(control="shuffled")
    assert not found.finished(1)


def test_a_first_round_on_labels_may_reject_too_often(tmp_path, monkeypatch):
    """Its labels know no operating point; every other objection counts, and this one in later rounds."""
    monkeypatch.setattr("gapclose.training.checkpoint_selection.check_guards", lambda *of: {"over-rejection": "fell", "retention": "fell"})
    found = records(tmp_path, [1.0], epochs=2)
    (tmp_path / "gap.jsonl").write_text(json.dumps({"stage": "base/val", "epoch": 0, "state": "open"}) + "\n")
    for first, number, left in (
        ("labels", 1, {"retention"}),
        ("labels", 2, {"over-rejection", "retention"}),
        ("readings", 1, {"over-rejection", "retention"}),
    ):
        found.config.targets = TargetsConfig(first=first, rounds=2)
        assert set(found.guarded({"stage": "epoch-1/val", "round": number})["objections"]) == left


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([1.5, 1.0], "after epoch 2 the consistency loss on val is 1.000 nats above its floor (base model: 2.000)"),
        ([1.0, 0.95], None),  # hardly falls any more
        ([0.4, 0.15], None),  # most of the way
        ([1.0, 1.2], None),
    ],
)
def test_a_training_that_ends_on_the_way_is_unfinished(tmp_path, losses, said):
    found = records(tmp_path, losses, epochs=2).unfinished([1])
    assert (found is None) == (said is None) and (said or "") in (found or "")
    for state in ("open", "blocked"):
        assert state_at_end({"state": state}, found) == ("unfinished" if said else state)
    for state in ("closed", "over-rejecting", "collapsed", "lost", "learned", "moved"):
        assert state_at_end({"state": state}, found) == state


def test_a_training_that_something_else_ended_is_not_unfinished(tmp_path):
    """By patience or a guard: more epochs would not have been trained."""
    assert records(tmp_path, [1.5, 1.0], epochs=3).unfinished([1]) is None


def test_the_first_epoch_of_a_later_round_is_not_falling(tmp_path):
    """It starts from an adapted model, and its targets are new."""
    found = records(tmp_path, [1.0, 0.3], epochs=2)
    assert not found.consistency(2, 3, Interval(0.2, 0.1, 0.3), 2.0, 0.7)["falling"]
    assert found.consistency(1, 1, Interval(0.2, 0.1, 0.3), 2.0, 0.7)["falling"]


def test_a_guard_is_named_where_patience_ends_the_round_as_well(tmp_path):
    found = records(tmp_path, [1.0, 1.1, 1.2], epochs=6, patience=1)
    lines = [json.loads(line) | {"objections": {"parsing": "fell"}} for line in (tmp_path / "gap.jsonl").read_text().splitlines()]
    (tmp_path / "gap.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert found.stopped() == {"parsing": "fell"}


def test_a_model_that_cannot_tell_items_apart_has_the_loss_of_the_mean_target():
    """By hand: two modalities, two options of a true premise and one that objects; what is left within a concept costs nothing."""
    concept = np.array([[0, 0, 1]] * 4)
    target = np.array([[0.6, 0.3, 0.1], [0.05, 0.05, 0.9], [0.2, 0.3, 0.5], [0.5, 0.0, 0.5]])
    modality = np.array(["vision", "vision", "audio", "audio"])
    wanted = [0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)] * 2 + [0.0, 0.0]
    assert constant_loss(target, concept, modality) == pytest.approx(wanted)
    alike = np.log(np.array([[0.6 / 0.9, 0.3 / 0.9, 1.0], [0.5, 0.5, 1.0]]) * 0.5)  # such a model: 0.5 for each concept
    assert excess_loss(target[:2], alike) == pytest.approx(wanted[:2])


def test_patience_needs_a_schedule_that_does_not_know_the_end():
    with pytest.raises(ValueError, match="which decays over train.epochs; choose one of"):
        TrainConfig(patience=2)


def test_rejecting_too_much_is_no_objection_while_the_loss_still_falls(tmp_path):
    from test_early_stopping import GAP, epoch

    record, base = epoch(honest=1.0, content=0.6)
    config = Config().guards
    assert "over-rejection" in check_guards(record, base, GAP, config)
    for falling, excess, objects in ((True, 0.3, False), (False, 0.3, True), (False, 0.6, False)):  # the last cannot tell items apart yet
        loss = {"consistency": {"excess": {"value": excess}, "base": 2.0, "constant": 0.5, "falling": falling}}
        assert ("over-rejection" in check_guards(record | loss, base, GAP, config)) is objects


@pytest.mark.slow
def test_a_round_ends_by_patience_and_does_not_go_on(quick_config, tmp_path, capsys):
    """A learning rate of zero lowers nothing: two epochs of four are trained, and the same command trains no other."""
    command = ["close", "--config", str(quick_config), "--run_dir", str(tmp_path), "--train.epochs", "4", "--train.patience", "1"]
    command += [
        "--train.lr_scheduler_type",
        "constant",
        "--train.learning_rate",
        "0",
        "--train.warmup",
        "0",
        "--guards.off",
        "[adapter, sentinel]",
    ]
    assert main(command) == 0
    assert "consistency loss on val: " in capsys.readouterr().out
    found = {r["stage"]: r for r in read_records(tmp_path)}
    assert [*found] == ["base/val", "base/test", "epoch-1/val", "epoch-2/val", "adapted/test"]
    loss = found["epoch-2/val"]["consistency"]
    assert loss["excess"]["value"] == pytest.approx(loss["base"], abs=1e-4) and not loss["falling"] and 0 < loss["constant"] < loss["base"]
    assert found["adapted/test"]["unfinished"] is None
    before = (tmp_path / "gap.jsonl").read_text()
    assert main(command) == 0
    assert (tmp_path / "gap.jsonl").read_text() == before
