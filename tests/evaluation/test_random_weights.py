"""The control with random weights: what it reads, and that the model is the checkpoint's again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from run_schemas import misfits
from safetensors import safe_open
from safetensors.numpy import load_file

from gapclose.evaluation.controls import random_weights
from gapclose.evaluation.measurement import SplitMeasurement
from gapclose.pipeline.cli import main
from gapclose.pipeline.config import parse_config
from gapclose.pipeline.context import RunContext

ON = ["--controls.random_weights", "true", "--controls.random_draws", "2"]
JUDGEABLE = SplitMeasurement.judgeable
PLAIN = [
    "--controls.layers=false", "--controls.blank=false", "--controls.nested=false", "--controls.codelength=false", "--controls.labels=false",
    "--controls.interchange=false", "--controls.baselines=false", "--controls.residualise=false", "--controls.protocol=null",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def answering() -> Iterator[None]:
    """The random model counts as one that answers; of others nothing is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SplitMeasurement, "judgeable", property(lambda measured: True))
        yield


@pytest.fixture
def silent(monkeypatch) -> None:
    """It does not, as its answers have it."""
    monkeypatch.setattr(SplitMeasurement, "judgeable", JUDGEABLE)


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


def test_all_draws_are_announced_once(measured, tiny_config, tmp_path, monkeypatch, caplog):
    """Both kinds in one line before the first; what is stored is not counted."""

    def announced(*more: str) -> list[str]:
        copy = tmp_path / f"run-{len(more)}"
        shutil.copytree(measured, copy, ignore=shutil.ignore_patterns(".lock"))
        if not more:
            (copy / "probes" / "random_everything.safetensors").unlink()
        caplog.clear()
        with caplog.at_level("INFO", logger="gapclose"):
            assert main(["measure", "--config", str(tiny_config), "--run_dir", str(copy), *PLAIN, *ON, *more]) == 2
        return [r.message for r in caplog.records if "networks to draw" in r.message]

    monkeypatch.setattr(random_weights, "draw_anew", lambda *a, **k: (_ for _ in ()).throw(ValueError("drawn anew")))
    (line,) = announced()
    assert line.startswith("control with random weights: 2 networks to draw (2 random_everything), each observed on ")
    (line,) = announced("--controls.random_draws", "5")
    assert line.startswith("control with random weights: 6 networks to draw (3 random_decoder, 3 random_everything), each observed on ")


@pytest.mark.usefixtures("silent")
def test_none_is_drawn_where_no_modality_is_judgeable(measured, tiny_config, tmp_path, monkeypatch, capsys):
    """One line says so; the same command works again; what is stored is used."""
    monkeypatch.setattr(random_weights, "draw_anew", lambda *a, **k: (_ for _ in ()).throw(ValueError("drawn anew")))
    run = tmp_path / "run"
    arguments = ["measure", "--config", str(tiny_config), "--run_dir", str(run), *PLAIN]
    for _ in range(2):
        assert main([*arguments, *ON]) == 0
        assert capsys.readouterr().out.count("no networks are drawn, because no control can change the verdict *not judgeable*") == 1
        found = json.loads((run / "measurement.json").read_text())
        assert {of["word"] for of in found["verdicts"].values()} == {"not judgeable"} and misfits(run) == {}
        assert all(of["random_weights"] is None for of in found["verdicts"].values())
        assert not [c for c in found["controls"] if c["name"].startswith("random_")]
    for kind in random_weights.KINDS:
        shutil.copy(measured / "probes" / f"{kind}.safetensors", run / "probes")
    assert main([*arguments, *ON]) == 0 and "no networks are drawn" not in capsys.readouterr().out
    found = json.loads((run / "measurement.json").read_text())
    assert [c["name"] for c in found["controls"] if c["name"].startswith("random_")] == list(random_weights.KINDS)


@pytest.mark.usefixtures("silent")
def test_closing_draws_none_either_where_no_modality_is_judgeable(tiny_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(random_weights, "draw_anew", lambda *a, **k: pytest.fail("drawn"))
    assert main(["close", "--config", str(tiny_config), "--run_dir", str(tmp_path / "run"), *ON, "--force", "false"]) == 2
    told = capsys.readouterr()
    assert told.out.count("no networks are drawn") == 1 and "not judgeable" in told.err
    verdicts = json.loads((tmp_path / "run" / "gate.json").read_text())["verdicts"]
    assert all(of["word"] == "not judgeable" and of["random_weights"] is None for of in verdicts.values())


def test_one_judgeable_modality_is_enough():
    faulty, fine = (SimpleNamespace(faults=faults) for faults in (("a fault",), ()))
    for audio, vision in ((faulty, fine), (fine, faulty), (fine, fine), (faulty, faulty)):
        acting = {"all": faulty, "audio": audio, "vision": vision}
        assert JUDGEABLE.fget(SimpleNamespace(modality={"audio": {}, "vision": {}}, acting=acting)) == (fine in (audio, vision))


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
    assert main(["measure", "--config", str(tiny_config), "--run_dir", str(measured), *ON, "--controls.random_draws", "3", *PLAIN]) == 2
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
