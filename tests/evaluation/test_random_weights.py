"""The control with random weights: what it reads, and that the model is the checkpoint's again."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from gapclose.evaluation.controls import random_weights
from gapclose.pipeline.cli import main
from gapclose.pipeline.config import parse_config
from gapclose.pipeline.context import RunContext

ON = ["--controls.random_weights", "true", "--controls.random_draws", "2"]
PLAIN = [
    "--controls.layers=false", "--controls.blank=false", "--controls.nested=false", "--controls.codelength=false", "--controls.labels=false",
    "--controls.interchange=false", "--controls.baselines=false", "--controls.residualise=false", "--controls.protocol=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def measured(tiny_config, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("random") / "run"
    assert main(["measure", "--config", str(tiny_config), "--run_dir", str(directory), *ON, *PLAIN]) == 0
    return directory


def test_both_kinds_stand_beside_the_reading(measured):
    """With intervals in every scope, the number of draws, and the kind that the verdict was compared with."""
    found = json.loads((measured / "measurement.json").read_text())
    by_name = {c["name"]: c for c in found["controls"]}
    for kind in ("random_decoder", "random_everything"):
        assert set(by_name[kind]["balanced"]) == {"all", "audio", "vision"} and "(2 draws)" in by_name[kind]["label"]
    for modality, verdict in found["verdicts"].items():
        of = verdict["random_weights"]
        values = {kind: by_name[kind]["balanced"][modality]["value"] for kind in ("random_decoder", "random_everything")}
        assert of["draws"] == 2 and of["chance"] == 0.5 and 0 < of["p"] <= 1
        assert values[of["kind"]] == max(values.values()) == pytest.approx(of["balanced"]["value"])


def test_draws_differ_and_are_kept(measured, tiny_config, monkeypatch, capsys):
    """Each has readings of its own; their observations are gone, and the same command draws nothing again."""
    for kind in ("random_decoder", "random_everything"):
        with safe_open(measured / "probes" / f"{kind}.safetensors", framework="np") as file:
            readings = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert set(readings) == {"test/0", "test/1", "val/0", "val/1"}
        assert all(np.allclose(r.sum(1), 1) for r in readings.values()) and not np.array_equal(readings["test/0"], readings["test/1"])
    assert not list((measured / "observations").glob("random-*"))
    before = (measured / "measurement.json").read_bytes()
    monkeypatch.setattr(random_weights, "draw_anew", lambda *a, **k: pytest.fail("drawn again"))
    assert main(["measure", "--config", str(tiny_config), "--run_dir", str(measured), *ON, *PLAIN]) == 0
    assert (measured / "measurement.json").read_bytes() == before
    monkeypatch.setattr(random_weights, "draw_anew", lambda *a, **k: (_ for _ in ()).throw(ValueError("drawn anew")))
    assert main(["measure", "--config", str(tiny_config), "--run_dir", str(measured), *ON[:3], "3", *PLAIN]) == 2
    assert "drawn anew" in capsys.readouterr().err  # the third is not there


def test_an_interrupted_control_goes_on_with_the_next_network(measured, tiny_config, tmp_path, monkeypatch, capsys):
    """Its readings are those of a control that was not interrupted; one network fewer than are stored takes the first."""
    copy, seeds, draw = tmp_path / "run", list[int](), random_weights.draw_anew
    shutil.copytree(measured, copy, ignore=shutil.ignore_patterns(".lock"))
    for kind in random_weights.KINDS:
        (copy / "probes" / f"{kind}.safetensors").unlink()

    def drawn(model, part, seed, *, until):
        if len(seeds) == until:
            raise ValueError("interrupted")
        seeds.append(seed)
        draw(model, part, seed)

    arguments = ["measure", "--config", str(tiny_config), "--run_dir", str(copy), *PLAIN, *ON]
    for until in (1, 3):  # inside the first kind, and inside the second
        monkeypatch.setattr(random_weights, "draw_anew", partial(drawn, until=until))
        assert main(arguments) == 2 and "interrupted" in capsys.readouterr().err
    monkeypatch.setattr(random_weights, "draw_anew", partial(drawn, until=9))
    assert main(arguments) == 0 and len(seeds) == len(set(seeds)) == 4
    for kind in random_weights.KINDS:
        again, once = (load_file(of / "probes" / f"{kind}.safetensors") for of in (copy, measured))
        assert again.keys() == once.keys() and all(np.array_equal(again[name], once[name]) for name in once)
    assert main([*arguments, "--controls.random_draws", "3"]) == 0
    assert main(arguments) == 0 and len(seeds) == 6


def test_afterwards_the_model_is_the_checkpoint_s(tiny_config, tmp_path):
    """To the bit; and what is observed of a random network is not taken for the model's own."""
    run = RunContext(parse_config(["--config", str(tiny_config), "--run_dir", str(tmp_path), *ON]), closing=False)
    trained = {name: p.clone() for name, p in run.loaded.model.named_parameters()}
    for part in ("decoder", "everything"):
        name = random_weights.draw_network(run, part, 0)
        drawn = dict(run.loaded.model.named_parameters())
        assert name == f"random-{part}-0" and run.adapter.startswith(name)
        assert any(not torch.equal(p, trained[n]) for n, p in drawn.items())
    run.reload()
    assert run.adapter == "" and all(torch.equal(p, trained[n]) for n, p in run.loaded.model.named_parameters())


def test_damaged_readings_are_named(measured, tiny_config, tmp_path, capsys):
    """The gate rests on them: changed bytes are no reading."""
    copy = tmp_path / "run"
    shutil.copytree(measured, copy, ignore=shutil.ignore_patterns(".lock"))
    path = copy / "probes" / "random_decoder.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 0xFF
    path.write_bytes(content)
    assert main(["measure", "--config", str(tiny_config), "--run_dir", str(copy), *ON, *PLAIN]) == 2
    told = capsys.readouterr().err
    assert str(path) in told and "delete it: its networks are drawn again" in told
