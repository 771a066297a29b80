"""The stages of a run, as far as no other module's tests see them: what each control of training blanks, what is not trained on."""

import json
import shutil

import numpy as np
import pytest

from gapclose.metrics.labels import Labels
from gapclose.metrics.verdict import not_established
from gapclose.observe.store import read_observations
from gapclose.pipeline.cli import main
from gapclose.probes.linear import FrozenProbe
from gapclose.probes.posterior import Point
from gapclose.training.trainer import GapTrainer


class Reached(Exception):
    """The trainer would be made now."""


@pytest.mark.parametrize(
    ("control", "targets", "training"),
    [("none", [], []), ("blank_targets", ["audio", "image"], []), ("blank_media", ["audio", "image"], ["audio", "image"])],
)
def test_what_a_control_blanks(quick_config, tmp_path, monkeypatch, control, targets, training):
    """Targets come from blanked media in both, training sees them in one; what must not change is observed as training sees it."""
    seen = {}

    def make_trainer(loaded, examples, media, *rest, **settings):
        seen["training"] = sorted(set(media.blank) - {"video"})  # of which this set has none
        raise Reached

    monkeypatch.setattr("gapclose.pipeline.align_stage.make_trainer", make_trainer)
    with pytest.raises(Reached):
        main(["close", "--config", str(quick_config), "--run_dir", str(tmp_path), "--targets.control", control])
    stored = {s: json.loads((tmp_path / "observations" / s / "request.json").read_text())["blank"] for s in ("base-train", "base-retain")}
    assert stored == {"base-train": targets, "base-retain": training} and seen["training"] == training


def test_the_operating_point_is_chosen_on_what_is_read_of_val(quick_config, tmp_path, monkeypatch, digits):
    """By the frozen probe, with val's labels; no label of fit enters."""
    given = {}

    def build_targets(config, **of):
        given.update(of)
        raise Reached

    monkeypatch.setattr("gapclose.training.round_data.build_targets", build_targets)
    with pytest.raises(Reached):
        main(["close", "--config", str(quick_config), "--run_dir", str(tmp_path)])
    val, probe = digits.select(split="val", purpose="gap"), FrozenProbe.load(tmp_path / "probes" / "frozen")
    seen = read_observations(tmp_path / "observations" / "base-val", [i.id for i in val], layers=probe.layers)
    np.testing.assert_array_equal(given["val_reading"], probe.predict_proba(probe.features(seen.residuals)))
    known = Labels.of(val)
    for name, of in (("val_concept", known.concept), ("val_clip", known.clip), ("val_option_concept", known.option_concept)):
        np.testing.assert_array_equal(given[name], of)


def test_what_a_choice_leaves_out_is_told_and_kept(quick_config, tmp_path, monkeypatch, capsys):
    """Labels that the choice of the probe takes for mistakes, in the log and in the probe's file; an operating point beyond its budget."""
    monkeypatch.setattr("gapclose.pipeline.align_stage.make_trainer", lambda *a, **k: (_ for _ in ()).throw(Reached))
    monkeypatch.setattr("gapclose.probes.search.not_asked", lambda *_: {"vision": {"false_audio": 2}})
    point = Point(standing="exceeded", budget=0.03, false_alarms=1.0, at_least=0.9, standard_items=40, standard_clips=40)
    monkeypatch.setattr("gapclose.training.targets.operating_point", lambda *_: point)
    with pytest.raises(Reached):
        main(["close", "--config", str(quick_config), "--run_dir", str(tmp_path)])
    told = capsys.readouterr().out
    assert "warning: choosing the probe leaves out labels" in told and "vision: false_audio (2 items)" in told
    assert f"warning: {point.words()}" in told and "no factor keeps to the budget" in point.words()
    assert json.loads((tmp_path / "probes" / "frozen.json").read_text())["not_asked"] == {"vision": {"false_audio": 2}}


@pytest.mark.parametrize(("key", "value"), [("dropout", "0.1"), ("use_dora", "true")])
def test_experts_that_cannot_be_adapted_so_are_refused_before_anything_costly(quick_config, tmp_path, monkeypatch, capsys, key, value):
    """Right after the model has loaded, of every layer that may get adapters; nothing is observed, and no directory is bound."""
    asked = []

    def experts(model, layers):
        asked.append(layers)
        return ["model.layers.3.mlp.experts.gate_up_proj"]

    monkeypatch.setattr("gapclose.training.lora.expert_names", experts)
    monkeypatch.setattr("gapclose.pipeline.measure_context.observe", lambda *args, **kwargs: pytest.fail("observed"))
    assert main(["close", "--config", str(quick_config), "--run_dir", str(tmp_path / "run"), f"--lora.{key}", value]) == 2
    assert f"lora.{key} is" in (message := capsys.readouterr().err) and "lora.experts to false" in message
    assert asked == [[2, 3, 4, 5]] and not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(("least", "times"), [(1.0, 4), (0.0, 0)])
def test_options_that_the_model_would_not_say_are_warned_of(quick_config, tmp_path, monkeypatch, capsys, least, times):
    """After the base is measured, once for each split and modality, with what may be done; five answers follow."""
    monkeypatch.setattr("gapclose.training.round_data.build_targets", lambda *a, **k: (_ for _ in ()).throw(Reached))
    with pytest.raises(Reached):
        main(["close", "--config", str(quick_config), "--run_dir", str(tmp_path), "--gap.least_option_mass", str(least)])
    lines = capsys.readouterr().out.splitlines()
    heads = [f"  warning: {split}, {of}: " for split in ("val", "test") for of in ("audio", "vision")]
    warned = [line for line in lines if line.startswith(tuple(heads)) and "gap.least_option_mass" in line]
    assert len(warned) == times and all("set the chat template (`model.template`)" in line for line in warned)
    assert sum(line.startswith("    warning: it wrote ") for line in lines) == 20  # too few match an option as well


def test_no_training_on_a_reading_that_is_not_shown_to_be_real(quick_config, tmp_path, monkeypatch, capsys):
    """Every modality of the train items is named with its reason; --force goes on in the same directory, and leaves a trace."""
    monkeypatch.setattr("gapclose.pipeline.align_stage.make_trainer", lambda *a, **k: (_ for _ in ()).throw(Reached))
    command = ["close", "--config", str(quick_config), "--run_dir", str(tmp_path)]
    assert main([*command, "--force", "false"]) == 2
    told = capsys.readouterr().err
    assert (
        "- audio: not judgeable. audio: the model does not answer" in told and "- vision: not judgeable." in told and "give --force" in told
    )
    assert not (tmp_path / "observations" / "base-train").exists()
    with pytest.raises(Reached):
        main([*command, "--force"])
    assert "forced: training on the reading of audio" in capsys.readouterr().out
    with pytest.raises(Reached):  # labels alone need no reading
        main([*command, "--force", "false", "--objective", "gold", "--run_dir", str(tmp_path / "gold")])


def test_a_modality_without_a_verdict_is_unproven():
    """Nothing was measured there, so nothing is shown."""
    verdicts = {"vision": {"word": "real", "sentence": "it is."}, "audio": {"word": "not readable", "sentence": "it is not."}}
    assert not_established(["vision"], verdicts) == {} and not_established(["audio"], verdicts) == {"audio": "not readable. it is not."}
    assert not_established(["touch"], verdicts)["touch"].startswith("not measured. no labelled val item")


@pytest.mark.parametrize("objective", ["gold", "consistency", "consistency+gold"])
def test_every_objective_takes_as_many_steps(quick_config, tmp_path, monkeypatch, objective):
    """Those of a pass over the 96 train items, however many labels there are: objectives are compared at equal steps."""
    seen = {}

    class Stopped(GapTrainer):
        def train(self, **_):
            seen["steps"] = (self.sampler.steps, len(list(self.sampler)) // self.sampler.steps)
            raise Reached

    monkeypatch.setattr("gapclose.training.trainer.GapTrainer", Stopped)
    command = ["close", "--config", str(quick_config), "--run_dir", str(tmp_path), "--objective", objective, "--labelling.budget", "48"]
    with pytest.raises(Reached):
        main([*command, "--train.global_batch_size", "16", "--train.micro_batch_size", "8", "--train.retain_share", "0.25"])
    assert seen["steps"] == (96 // 12, 16)


def test_whoever_may_read_the_users_files_may_read_a_runs(tiny_run, tmp_path):
    """safetensors makes files for the user alone."""
    (tmp_path / "other").write_text("")
    rights = (tmp_path / "other").stat().st_mode
    shut = [p for p in tiny_run.rglob("*") if p.is_file() and not p.name.startswith(".") and p.stat().st_mode != rights]
    assert not shut and any(tiny_run.rglob("adapter/*.safetensors"))


@pytest.mark.slow
def test_what_an_earlier_start_ran_on_is_not_forgotten(tiny_run, tiny_config, tmp_path):
    """Where it was something else; the page shows it."""
    run, path = tmp_path / "run", tmp_path / "run" / "environment.json"
    shutil.copytree(tiny_run, run)
    now = json.loads(path.read_text())
    assert now["engine"] == "ddp" and "earlier" not in now
    path.write_text(json.dumps(now | {"processes": 8, "engine": "fsdp2"}))
    for _ in range(2):
        assert main(["close", "--config", str(tiny_config), "--run_dir", str(run), "--export.verify", "false"]) == 0
        assert json.loads(path.read_text()) == now | {"earlier": [now | {"processes": 8, "engine": "fsdp2"}]}
    assert "engine fsdp2, processes 8" in (run / "report.html").read_text()
