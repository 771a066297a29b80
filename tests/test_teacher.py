"""Rounds of targets through the real command: a probe is fitted again on the adapted model, and training goes on where it reads better."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from gapclose.cli import main
from gapclose.config import parse_config
from gapclose.report.summary import read_records, round_words


def command(tiny_config, directory, *more: str) -> list[str]:
    settings = ["--train.epochs", "1", "--export.verify", "false", "--targets.rounds", "2"]
    return ["close", "--config", str(tiny_config), "--run_dir", str(directory), *settings, *more]


@pytest.fixture(scope="module")
def two_rounds(tiny_config, tmp_path_factory):
    """A run whose second teacher is taken for better, whatever a random model makes of it; not to be changed."""
    from gapclose import align, teacher

    directory = tmp_path_factory.mktemp("rounds") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(align, "compared", lambda *of: teacher.compared(*of) | {"helps": True})
        assert main(command(tiny_config, directory)) == 0
    return directory


def test_a_second_round_reads_the_adapted_model_and_trains_on(two_rounds, tiny_config, tmp_path, monkeypatch):
    """Its own probe, targets and epoch; an interrupted second round ends in the same adapter."""
    from gapclose import align, teacher

    rounds = json.loads((two_rounds / "rounds.json").read_text())
    epochs = [(r["epoch"], r["round"]) for r in read_records(two_rounds) if r["stage"].startswith("epoch")]
    assert epochs == [(1, 1), (2, 2)] and [r["epoch"] for r in rounds] == [1, 2]
    first, second = (json.loads((two_rounds / "observations" / f"{s}" / "request.json").read_text()) for s in ("base-fit", "round-2-fit"))
    assert second["adapter"] and not first.get("adapter") and second["layers"] == [1, 2, 3, 4, 5]
    probes = [json.loads((two_rounds / "probes" / f"{name}.json").read_text()) for name in ("frozen", "round-2")]
    assert probes[1]["round"] == 2 and rounds[1]["layers"] == probes[1]["layers"]
    ids = json.loads((two_rounds / "items.json").read_text())
    assert (
        ids
        and load_file(two_rounds / "targets.safetensors")["reading"].shape
        == load_file(two_rounds / "targets-round-2.safetensors")["reading"].shape
    )
    assert "the action on val after it" in round_words(rounds)[0] and round_words(rounds)[0] in (
        two_rounds / "report.html"
    ).read_text().replace("&gt;", ">")

    again = tmp_path / "run"
    shutil.copytree(two_rounds, again)
    shutil.rmtree(again / "checkpoints" / "round-2")
    shutil.rmtree(again / "adapter")
    kept = [r for r in read_records(again) if r["stage"] not in ("epoch-2/val", "adapted/test")]
    (again / "gap.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    monkeypatch.setattr(align, "compared", lambda *of: teacher.compared(*of) | {"helps": True})
    assert main(command(tiny_config, again)) == 0
    before, after = (load_file(d / "checkpoints" / "epoch-2" / "adapter_model.safetensors") for d in (two_rounds, again))
    assert (
        all(torch.equal(before[k], after[k]) for k in before)
        and (again / "gap.jsonl").read_text() == (two_rounds / "gap.jsonl").read_text()
    )


def test_a_teacher_that_reads_no_better_ends_the_training(two_rounds, tiny_config, tmp_path, monkeypatch, capsys):
    """The run says so, and finishes with what the first round gave."""
    from gapclose import align, teacher

    directory = tmp_path / "run"
    monkeypatch.setattr(align, "compared", lambda run, number, *of: teacher.compared(run, number, *of) | {"helps": number == 1})
    assert main(command(tiny_config, directory)) == 0
    assert "it reads no better, so training ended" in capsys.readouterr().out
    assert [r["stage"] for r in read_records(directory)] == ["base/val", "base/test", "epoch-1/val", "adapted/test"]
    assert not (directory / "targets-round-2.safetensors").exists()
    mine, theirs = (load_file(d / "checkpoints" / "epoch-1" / "adapter_model.safetensors") for d in (directory, two_rounds))
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.mark.parametrize(
    ("more", "says"), [(["--objective", "consistency+gold"], "carries them"), (["--targets.control", "shuffled"], "one round")]
)
def test_rounds_where_they_would_not_be_honest_are_refused(tiny_config, tmp_path, more, says):
    """A model that was trained on the labels, and a control."""
    with pytest.raises(ValueError, match=says):
        parse_config(command(tiny_config, tmp_path, *more)[1:])
