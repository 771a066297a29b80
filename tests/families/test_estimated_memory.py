"""The estimate of memory against the allocator, on wider toys of two more families: media through a tower, and experts under adapters."""

import json
import shutil

import pytest
import tiny_families
import torch
from measured_step import configured, measured, without_weights

from gapclose.data.jsonl import read_items
from gapclose.models.structure import decoder_layers
from gapclose.pipeline.memory_estimate import training_step


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kinds"), [("LLaVA-OneVision", ("image",)), ("Qwen3-Omni", ("image", "audio"))])
def test_the_estimate_of_a_family_is_within_a_fifth_of_the_measured_peak(name, kinds, digits_directory, tmp_path, monkeypatch):
    """Width 192 instead of 64, so that activations and not the vocabulary decide."""
    monkeypatch.setattr(tiny_families, "WIDTH", 192)
    processor, model = tiny_families.ROWS[name].build()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    data = only(digits_directory, kinds, tmp_path / "data")
    config, file = configured(tmp_path / "model", data, tmp_path)
    loaded, parts = without_weights(config, 2, read_items(data))
    assert loaded.width == 192 and all(p.device == torch.device("meta") for p in decoder_layers(loaded.model).parameters())
    found, peak = training_step(loaded, parts, config), measured(file, 2)
    assert not found.by_formula and abs(found.peak / peak - 1) < 0.2, (found.peak, peak)
    assert found.activations > 0.3 * found.peak


def only(source, kinds, target):
    """A copy of an item set without the other kinds of media."""
    shutil.copytree(source, target)
    rows = [json.loads(line) for line in (source / "items.jsonl").read_text().splitlines()]
    for row in rows:
        for message in row["messages"]:
            message["content"] = [p for p in message["content"] if p["type"] in ("text", *kinds)]
    (target / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return target
