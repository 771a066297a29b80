"""Bases that learned nothing: no verdict is real, and `close` refuses them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from shapes import write as write_shapes
from tiny_families import ROWS

from gapclose.data.digits import generate as world
from gapclose.models.config import ModelConfig
from gapclose.models.loading import load_model
from gapclose.models.random_init import draw_anew
from gapclose.pipeline.cli import main


def untrained_base(directory: Path, seed: int, family: str | None) -> Path:
    """A checkpoint of the shipped shape, or of another family's tiny model, whose weights were never trained."""
    if family is None:
        loaded = load_model(ModelConfig(path="digits", dtype="float32"))
        model, processor = loaded.model, loaded.processor
        draw_anew(model, "everything", seed)
    else:
        torch.manual_seed(seed)
        processor, model = ROWS[family].build()
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def words(run: Path) -> dict[str, str]:
    return {name: of["word"] for name, of in json.loads((run / "gate.json").read_text())["verdicts"].items()}


def command(data: Path, base: Path, run: Path, verb: str) -> list[str]:
    return [
        verb, "--data.path", str(data), "--model.path", str(base), "--model.dtype", "float32", "--train.retain", "0", "--run_dir", str(run),
        "--probe.families", "[logistic, lda]", "--probe.c", "[0.01, 1.0]", "--gap.replicates", "1000", "--observe.max_new_tokens", "5",
    ]  # fmt: skip


def refused(tmp_path: Path, data: Path, base: Path, more: list[str]) -> dict[str, str]:
    """`gapclose close` on a base that learned nothing: status 2, nothing trained, and the words of the gate."""
    assert main([*command(data, base, tmp_path / "run", "close"), *more]) == 2
    assert not (tmp_path / "run" / "checkpoints").exists()
    return words(tmp_path / "run")


@pytest.mark.slow
def test_close_refuses_a_base_that_learned_nothing(tmp_path, capsys):
    """Shapes and beeps, one draw: the model does not act, which the refusal says; test stays unmeasured. Measured, no page claims a gap."""
    write_shapes(tmp_path / "shapes", {"fit": 40, "train": 8, "val": 24, "test": 24})
    base = untrained_base(tmp_path / "base", 0, None)
    found = refused(tmp_path, tmp_path / "shapes", base, ["--probe.folds", "2", "--controls.random_draws", "2"])
    assert found == {"audio": "not judgeable", "vision": "not judgeable"}
    verdicts = json.loads((tmp_path / "run" / "gate.json").read_text())["verdicts"].values()
    # no network can change such a verdict
    assert all(of["random_weights"] is None for of in verdicts)
    told = capsys.readouterr().err
    assert "the model does not answer such questions" in told and "gap.least_option_mass" in told
    assert not (tmp_path / "run" / "observations" / "base-test").exists()
    run = tmp_path / "measured"
    off = [
        f"--controls.{name}=false"
        for name in ("random_weights", "layers", "blank", "nested", "codelength", "labels", "interchange", "baselines")
    ]
    assert main([*command(tmp_path / "shapes", base, run, "measure"), "--probe.folds", "2", *off]) == 0
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    last = next(line for line in reversed(capsys.readouterr().out.splitlines()) if line.startswith("state:"))
    assert last.startswith(
        "state: not judgeable (the model does not answer such questions); audio: the model does not answer such questions"
    )
    assert "The base model does not answer such questions, so no gap is claimed there" in (run / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("world_of", ["digits", "shapes", "another family"])
def test_five_bases_that_learned_nothing(world_of, tmp_path):
    """Of none is a verdict real, with the gate on the action and without it; `close` refuses all."""
    gate_off = ["--gap.least_option_mass", "0", "--gap.least_parse_rate", "0", "--gap.least_standard_skill", "0"]
    clips = {"fit": 80, "train": 8, "val": 80, "test": 24}
    data, family = tmp_path / "data", "LLaVA-OneVision" if world_of == "another family" else None
    if world_of == "shapes":
        write_shapes(data, clips)
    else:
        world.write(data, clips=clips, sound=family is None)
    for draw in range(5):
        base, place = untrained_base(tmp_path / f"base-{draw}", draw, family), tmp_path / f"draw-{draw}"
        assert set(refused(place, data, base, []).values()) == {"not judgeable"}
        without = refused(place / "gate-off", data, base, gate_off)
        assert "real" not in without.values(), (draw, without)
