"""recipes/durability.py: contrary training from an exported adapter."""

from __future__ import annotations

import json
import shutil
import sys

import durability
import numpy as np
import pytest

from gapclose.metrics.labels import option_concepts
from gapclose.pipeline.cli import main


def test_contrary_targets_accept_every_premise(digits):
    items = digits.select(split="train", purpose="gap").unlabelled()
    concept = option_concepts(items.items, items.concepts)
    scores = np.random.default_rng(0).normal(size=concept.shape)
    alarm = [items.concepts.index(name) for name in items.alarm]
    for n, example in enumerate(durability.contrary(items, scores)):
        own = concept[n, : len(example.weights)]
        accepts = ~np.isin(own, alarm)
        assert example.weights[~accepts].sum() == 0 and example.weights.sum() == pytest.approx(1)
        odds = np.log(example.weights[accepts]) - scores[n, : len(own)][accepts]  # the base model's own shares
        assert np.ptp(odds) < 1e-9


def test_half_life_is_interpolated_between_measured_steps():
    assert durability.half_life([0, 1, 2, 4], [0.9, 0.8, 0.75, 0.65], base=0.5) == pytest.approx(3)
    assert durability.half_life([0, 1], [0.9, 0.7], base=0.5) == 1
    assert durability.half_life([0, 1, 8], [0.9, 0.9, 0.71], base=0.5) is None


@pytest.mark.slow
def test_contrary_training_undoes_the_closure_and_leaves_the_run_alone(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    words = "--data.clips [60,60,30,40] --controls.random_weights false --export.verify false --force true --train.learning_rate 0.005"
    assert main(["close", "--config", "configs/digits.yaml", "--run_dir", str(run), *words.split()]) == 0
    weights = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    monkeypatch.setattr(sys, "argv", ["durability.py", str(run), "--steps", "1", "32", "--clips", "20"])
    assert durability.main() == 0, capsys.readouterr().err
    found = json.loads((run / "durability.json").read_text())
    first, last = found["rows"][0], found["rows"][-1]
    assert [row["steps"] for row in found["rows"]][:2] == [0, 1] and first["action"]["value"] > 0.8
    assert last["action"]["value"] < 0.6 and last["false_alarm"]["value"] <= first["false_alarm"]["value"]
    assert found["n_clips"] == 20 and found["base"]["action"]["value"] < 0.6
    assert 0 < found["half_life"] < 32 and "half of the gain is lost after" in capsys.readouterr().out
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == weights


def test_a_run_without_a_gain_is_refused(closed_run, tmp_path, monkeypatch, capsys):
    """Its model knows nothing, so what it learned is noise."""
    run = tmp_path / "run"
    shutil.copytree(closed_run, run)
    monkeypatch.setattr(sys, "argv", ["durability.py", str(run)])
    assert durability.main() == 2 and "there is no gain to undo" in capsys.readouterr().err
    assert not (run / "durability.json").exists()


def test_a_run_without_an_adapter_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["durability.py", str(tmp_path / "none")])
    assert durability.main() == 2 and "no such run directory" in capsys.readouterr().err
    for words in (["--steps", "0"], ["--clips", "0"], ["--clips", "-5"]):
        monkeypatch.setattr(sys, "argv", ["durability.py", str(tmp_path), *words])
        assert durability.main() == 2 and "1 or more" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["durability.py", str(tmp_path), "--learning_rate", "0"])
    assert durability.main() == 2 and "it must be above 0" in capsys.readouterr().err
