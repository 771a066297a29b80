"""The sets for pretrained models through the real command, on tiny models that know nothing: the way is tested, not the result."""

from __future__ import annotations

import json

import pytest

from gapclose.pipeline.cli import main

QUICK = {
    "data.clips": "[8,8,8,8]", "observe.batch_size": 32, "observe.max_new_tokens": 4, "probe.families": "[lda]", "probe.folds": 2,
    "gap.replicates": 100, "controls.draws": 2, "controls.random_weights": "false", "train.epochs": 1, "train.global_batch_size": 16,
    "train.micro_batch_size": 16, "train.cache_trunk": "false", "export.unimproved": "true", "export.verify": "false", "force": "true",
    "model.dtype": "float32",
}  # fmt: skip


@pytest.mark.parametrize("name", ["people", "places"])
def test_a_set_is_made_measured_and_trained_on(name, language_model, grafted, tmp_path):
    model = language_model if name == "people" else grafted
    words = [f"--{key}={value}" for key, value in QUICK.items()]
    assert main(["close", "--config", f"configs/{name}.yaml", "--model.path", str(model), "--run_dir", str(tmp_path), *words]) == 0
    records = [json.loads(line) for line in (tmp_path / "gap.jsonl").read_text().splitlines()]
    assert [r["stage"] for r in records] == ["base/val", "base/test", "epoch-1/val", "adapted/test"]
    base = records[1]
    assert set(base["modality"]) == ({"colour", "object"} if name == "people" else {"vision", "audio"})
    assert base["n_clips"] == 8 and base["n_items"] == 32
    assert base["transfer"] and base["retention"]
    assert (tmp_path / "data-seed0-clips8-8-8-8" / "set.json").is_file()
