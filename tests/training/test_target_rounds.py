"""Rounds of targets: a probe is fitted again on the adapted model, chosen on val, and training goes on where it is shown to read better."""

import json
import shutil
from html import unescape
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from run_schemas import misfits
from safetensors.torch import load_file

from gapclose.evaluation.run_records import read_records
from gapclose.evaluation.summary_text import round_words
from gapclose.metrics.labels import Labels
from gapclose.observe.store import read_observations
from gapclose.pipeline import align_stage as align
from gapclose.pipeline.cli import main
from gapclose.pipeline.config import parse_config
from gapclose.probes.config import ProbeConfig
from gapclose.probes.linear import FrozenProbe
from gapclose.probes.posterior import shift_prior
from gapclose.probes.search import choose_probe
from gapclose.training import target_rounds as teacher
from gapclose.training.target_rounds import choose_on_holdout
from gapclose.training.targets import shuffle_evenly
from gapclose.training.trainer import make_trainer


def command(quick_config, directory, *more: str) -> list[str]:
    settings = ["--train.epochs", "2", "--train.save_steps", "1", "--export.verify", "false", "--targets.rounds", "2"]
    settings += ["--guards.off", "[over-rejection, retention, sentinel]"]  # which would stop a random model after its first round
    return ["close", "--config", str(quick_config), "--run_dir", str(directory), *settings, *more]


def helping(*of):
    """A later teacher of a random model, taken for better."""
    return teacher.compare_rounds(*of) | {"helps": True}


@pytest.fixture(scope="module")
def two_rounds(quick_config, tmp_path_factory):
    """A run of two rounds of two epochs; not to be changed."""
    directory = tmp_path_factory.mktemp("rounds") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(align, "compare_rounds", helping)
        assert main(command(quick_config, directory)) == 0
    return directory


def test_a_second_round_aims_for_what_is_read_of_the_adapted_model(two_rounds, digits):
    """Its targets are those of its own probe on what the best epoch's adapter made of the train items; every place tells of it."""
    assert misfits(two_rounds) == {}
    rounds = json.loads((two_rounds / "rounds.json").read_text())
    epochs = [(r["epoch"], r["round"]) for r in read_records(two_rounds) if r["stage"].startswith("epoch")]
    assert epochs == [(1, 1), (2, 1), (3, 2), (4, 2)] and [r["round"] for r in rounds] == [2]
    requests = {
        s: json.loads((two_rounds / "observations" / s / "request.json").read_text())
        for s in ("round-1-fit", "round-2-fit", "round-2-train")
    }
    assert not requests["round-1-fit"].get("adapter") and requests["round-2-fit"]["adapter"] == requests["round-2-train"]["adapter"]
    assert requests["round-2-fit"]["layers"] == [1, 2, 3, 4, 5]
    probe, ids = FrozenProbe.load(two_rounds / "probes" / "round-2"), [i.id for i in digits.select(split="train", purpose="gap")]
    assert list(probe.layers) == rounds[0]["layers"] == requests["round-2-train"]["layers"]
    read = probe.predict_proba(
        probe.features(read_observations(two_rounds / "observations" / "round-2-train", ids, layers=probe.layers).residuals)
    )
    stored = load_file(two_rounds / "targets-round-2.safetensors")
    alarm = np.isin(digits.concepts, digits.alarm)
    np.testing.assert_allclose(stored["reading"].numpy(), shift_prior(read, alarm, float(stored["factor"])), atol=1e-12)
    words = round_words(rounds)[0]
    card, exported = (two_rounds / "adapter" / "README.md").read_text(), read_records(two_rounds)[-1]["epoch"]
    assert "the action on val after it" in words and ("in round 2 with the reading of a probe fitted again" in card) is (exported > 2)
    assert words in unescape((two_rounds / "report.html").read_text()) and json.loads(
        (two_rounds / "adapter" / "evidence.json").read_text()
    )


@pytest.mark.parametrize("where", ["in the middle of the second round", pytest.param("before the second round", marks=pytest.mark.slow)])
def test_an_interrupted_second_round_ends_as_an_uninterrupted_one(two_rounds, quick_config, tmp_path, monkeypatch, where):
    """From its last whole checkpoint, or from the best adapter of the first."""
    again, middle = tmp_path / "run", where.startswith("in")
    shutil.copytree(two_rounds, again)
    newest = sorted((again / "checkpoints" / "round-2").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    assert len(newest) == 2
    shutil.rmtree(newest[-1] if middle else again / "checkpoints" / "round-2")
    shutil.rmtree(again / "adapter")
    gone = {"epoch-4/val", "adapted/test"} | ({"epoch-3/val"} if not middle else set())
    (again / "gap.jsonl").write_text("".join(json.dumps(r) + "\n" for r in read_records(again) if r["stage"] not in gone))
    monkeypatch.setattr(align, "compare_rounds", helping)
    assert main(command(quick_config, again)) == 0
    before, after = (load_file(d / "checkpoints" / "epoch-4" / "adapter_model.safetensors") for d in (two_rounds, again))
    assert (
        all(torch.equal(before[k], after[k]) for k in before)
        and (again / "gap.jsonl").read_text() == (two_rounds / "gap.jsonl").read_text()
    )


@pytest.mark.slow
@pytest.mark.parametrize("patience", [1, 2])
def test_teachers_that_read_no_better_end_the_training(two_rounds, quick_config, tmp_path, monkeypatch, capsys, patience):
    """After as many in a row as patience says, the last of which is not trained with; the first round's epochs are what they were."""
    directory = tmp_path / "run"
    monkeypatch.setattr(align, "compare_rounds", lambda *of: teacher.compare_rounds(*of) | {"helps": False})
    assert main(command(quick_config, directory, "--targets.rounds", str(patience + 1), "--targets.patience", str(patience))) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("; no better reading, so training ended") == 2  # when it ends, and in the report
    stages = [f"epoch-{n}/val" for n in range(1, 2 * patience + 1)]
    assert [r["stage"] for r in read_records(directory)] == ["base/val", "base/test", *stages, "adapted/test"]
    rounds = json.loads((directory / "rounds.json").read_text())
    assert [r["ended"] for r in rounds] == [False] * (patience - 1) + [True] and {"value", "lower", "upper"} == set(rounds[0]["gain"])
    assert not (directory / f"targets-round-{patience + 1}.safetensors").exists()
    mine, theirs = (load_file(d / "checkpoints" / "epoch-2" / "adapter_model.safetensors") for d in (directory, two_rounds))
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.mark.slow
def test_shuffled_readings_are_shuffled_in_every_round(quick_config, tmp_path, monkeypatch, digits):
    """Those of the round's own probe; and the control trains all rounds, though no later probe reads better."""
    given, directory = list[np.ndarray](), tmp_path / "run"

    def spied(*of) -> np.ndarray:
        given.append(shuffle_evenly(*of))
        return given[-1]

    monkeypatch.setattr("gapclose.training.targets.shuffle_evenly", spied)
    monkeypatch.setattr(align, "compare_rounds", lambda *of: teacher.compare_rounds(*of) | {"helps": False})
    assert main(command(quick_config, directory, "--targets.control", "shuffled", "--train.epochs", "1")) == 0
    train, alarm = digits.select(split="train", purpose="gap"), np.isin(digits.concepts, digits.alarm)
    probe = FrozenProbe.load(directory / "probes" / "round-2")
    seen = read_observations(directory / "observations" / "round-2-train", [i.id for i in train], layers=probe.layers).residuals
    read, stored = probe.predict_proba(probe.features(seen)), load_file(directory / "targets-round-2.safetensors")
    own, other = (shift_prior(of, alarm, float(stored["factor"])) for of in (read, read[given[1]]))
    np.testing.assert_allclose(stored["reading"].numpy(), other, atol=1e-12)
    assert len(given) == 2 and np.abs(own - other).max() > 1e-6
    assert json.loads((directory / "rounds.json").read_text())[0]["ended"] is False
    assert [r["round"] for r in read_records(directory) if r["stage"].startswith("epoch")] == [1, 2]


def test_a_gain_counts_items_whose_label_is_possible_alone():
    """A wrong label of a concept that nobody asks about there has no likelihood, and makes no gain that is no number."""
    y, modality = np.array([0, 1] * 20 + [0, 2] * 20), np.repeat(["seen", "heard"], 40)
    y[1] = 2
    options = np.tile([0, 1, 2], (80, 1))
    labels = Labels(clip=np.arange(80), modality=modality, concept=y, gold=y, option_concept=options, concepts=("a", "b", "c"), alarm=())
    before, now = (np.where(np.eye(3)[y] > 0, believed, (1 - believed) / 2) for believed in (0.4, 0.8))
    gain, counts = teacher.likelihood_gain(now, before, labels)
    assert np.isfinite(gain).all() and not counts[1] and counts.sum() == 79 and (gain[counts] > 0).all() and gain[1] == 0
    assert teacher.likelihood_gain(now, now, labels)[0].tolist() == [0] * 80


def test_a_better_estimate_helps_though_it_is_not_shown(digits):
    """Few clips can show little in one round. The estimate counts; whether its interval is above zero is a field of its own."""
    labels = Labels.of(digits.select(split="val", purpose="gap"))
    run = SimpleNamespace(items=digits, config=SimpleNamespace(gap=SimpleNamespace(replicates=200), seed=0))
    probe = SimpleNamespace(layers=(1,), family="lda", strength=0.1)
    even, right = np.full((len(labels.clip), 3), 1 / 3), np.eye(3)[labels.concept]
    lucky = np.isin(labels.clip, np.unique(labels.clip)[::2])[:, None]

    def compared(of_half: float, of_rest: float) -> dict:
        believed = np.where(lucky, of_half, of_rest)
        now = teacher.ProbeReadings(probe=probe, train=even, val=believed * right + (1 - believed) * (1 - right) / 2)
        return teacher.compare_rounds(run, 2, now, teacher.ProbeReadings(probe=probe, train=even, val=even), even, even)

    unsure, sure, worse = compared(0.96, 0.2), compared(0.9, 0.8), compared(0.05, 0.3)
    assert unsure["gain"]["lower"] < 0 < unsure["gain"]["value"] and (unsure["helps"], unsure["shown"]) == (True, False)
    assert (sure["helps"], sure["shown"]) == (True, True) and (worse["helps"], worse["shown"]) == (False, False)


@pytest.mark.slow
@pytest.mark.parametrize("cause", ["a guard", "the loss"])
def test_what_goes_wrong_in_or_before_a_later_round_leaves_the_first_ones_best(
    two_rounds, quick_config, tmp_path, monkeypatch, capsys, cause
):
    """A guard that objects to the end of the first round: no second. A loss that is not finite in the second: the run still finishes, twice."""
    directory = tmp_path / "run"
    shutil.copytree(two_rounds, directory)
    shutil.rmtree(directory / "checkpoints" / "round-2")
    shutil.rmtree(directory / "adapter")
    kept = [r for r in read_records(directory) if r["stage"] not in ("epoch-3/val", "epoch-4/val", "adapted/test")]
    if cause == "a guard":
        kept = [r | {"objections": {"parsing": "planted"}} if r["stage"].startswith("epoch") else r for r in kept]
    else:
        monkeypatch.setattr("gapclose.training.trainer.term_sums", lambda *of: torch.full((3,), torch.nan, requires_grad=True))
    (directory / "gap.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    monkeypatch.setattr(align, "compare_rounds", helping)
    for _ in range(2):
        assert main(command(quick_config, directory)) == 0
        told, last = capsys.readouterr().out, read_records(directory)[-1]
        assert last["stage"] == "adapted/test" and last["epoch"] in (1, 2)
        assert (
            ("no round 2: parsing objected" in told)
            if cause == "a guard"
            else ("loss" in last["stopped"] and "stopped by the guard loss" in told)
        )


def test_labels_that_came_back_through_a_student_do_not_count_as_better_reading():
    """A student that learnt to say what the teacher says carries the labels of the teacher's own items, but none of val."""
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(2, 64)) * 0.12

    def draw(n):
        y = rng.integers(2, size=n)
        return torch.as_tensor(rng.normal(size=(n, 64)) + direction[y]), y

    (fit, known), (val, right), (new, truth) = draw(120), draw(400), draw(4000)
    config = ProbeConfig(families=["logistic"], c=[0.1], folds=4)
    first = choose_probe({1: fit}, known, np.arange(120), ("a", "b"), config, layers=[1], seed=0)
    student = {
        name: torch.cat([x, 3 * torch.as_tensor(first.probe.predict_proba(x))], 1) for name, x in (("fit", fit), ("val", val), ("new", new))
    }
    again = choose_probe({1: student["fit"]}, known, np.arange(120), ("a", "b"), config, layers=[1], seed=0)

    def accuracy(reading, y):
        return (reading.argmax(1) == y).mean()

    flattered = accuracy(again.reading, known) - accuracy(again.probe.predict_proba(student["new"]), truth)
    second, table = choose_on_holdout(
        {1: student["fit"]}, known, {1: student["val"]}, right, ("a", "b"), config, "", modality=np.zeros(len(right))
    )
    honest = accuracy(second.predict_proba(student["val"]), right) - accuracy(second.predict_proba(student["new"]), truth)
    assert flattered > 0.1 and abs(honest) < 0.05 and len(table) == 1


def test_rounds_need_a_reading_and_no_blanks(quick_config, tmp_path):
    """Labels alone have no targets; a control with blanks has one round."""
    for more, says in ((["--objective", "gold"], "needs objective consistency"), (["--targets.control", "blank_media"], "has one round")):
        with pytest.raises(ValueError, match=says):
            parse_config(command(quick_config, tmp_path, *more)[1:])
    assert parse_config(command(quick_config, tmp_path, "--objective", "consistency+gold")[1:]).targets.rounds == 2


@pytest.mark.slow
def test_a_round_goes_on_from_the_best_epoch_of_the_round_before(two_rounds, quick_config, tmp_path, monkeypatch):
    """Also where an earlier round has the best epoch of all, from which the same probe would be fitted once more."""
    directory, loaded = tmp_path / "run", list[int]()
    shutil.copytree(two_rounds, directory)
    shutil.rmtree(directory / "adapter")
    (directory / "config.yaml").write_text((directory / "config.yaml").read_text().replace("rounds: 2", "rounds: 3"))
    kept = [r for r in read_records(directory) if r["stage"] != "adapted/test"]
    for record in kept:  # epoch 1 is the best of all
        if record["stage"].startswith("epoch"):
            record["action"]["balanced"] |= {"value": 1 - record["epoch"] / 10}
    (directory / "gap.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    load = align.AlignStage.load_epoch
    monkeypatch.setattr(align.AlignStage, "load_epoch", lambda self, epoch: (loaded.append(epoch), load(self, epoch))[1])
    monkeypatch.setattr(align, "compare_rounds", helping)
    assert main(command(quick_config, directory, "--targets.rounds", "3")) == 0
    assert loaded[:2] == [1, 3]


def test_a_first_round_on_labels_alone_teaches_the_second(quick_config, tmp_path, monkeypatch):
    """The first round sees no reading, so none needs to be real; the second is taught by what is read of the model so trained."""
    terms = list[set[str]]()

    def spied(loaded, examples, media, settings, *rest, **named):
        terms.append({e.term for e in examples} & {t for t in ("consistency", "gold") if getattr(settings, t)})
        return make_trainer(loaded, examples, media, settings, *rest, **named)

    monkeypatch.setattr(align, "make_trainer", spied)
    monkeypatch.setattr(align, "compare_rounds", helping)
    directory = tmp_path / "run"
    settings = ("--objective", "consistency+gold", "--targets.first", "labels", "--train.epochs", "1")
    assert main(command(quick_config, directory, *settings)) == 0
    assert terms == [{"gold"}, {"consistency", "gold"}]
    assert not (directory / "targets.safetensors").exists() and (directory / "targets-round-2.safetensors").exists()
    said = read_records(directory)
    assert ["consistency" in r for r in said if r["stage"].startswith("epoch")] == [False, True]
    assert [of["round"] for of in said[-1]["targets"]] == [2] and misfits(directory) == {}
