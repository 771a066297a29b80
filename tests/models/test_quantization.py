"""Quantised bases as far as a machine without a GPU can tell: what is refused, and what transformers would be told."""

import pytest
import torch
from torch import nn

import gapclose.models.quantization
from gapclose.models.architecture import build_on_meta, read_architecture
from gapclose.models.config import ModelConfig
from gapclose.models.loading import load_model
from gapclose.models.quantization import bytes_saved, outside, quantised_loading
from gapclose.models.structure import decoder_layers
from gapclose.pipeline.config import parse_config


@pytest.fixture
def empty(tiny_checkpoint):
    config = ModelConfig(path=str(tiny_checkpoint), dtype="bfloat16")
    return build_on_meta(read_architecture(config), config)


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_what_is_missing_is_said_before_anything_is_read(kind, monkeypatch):
    """A GPU, then bitsandbytes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"model.quantisation {kind} needs a CUDA GPU"):
        load_model(ModelConfig(path="/nowhere", quantisation=kind))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gapclose.models.quantization.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs bitsandbytes.*quantised"):
        load_model(ModelConfig(path="/nowhere", quantisation=kind))


def test_a_run_is_refused_before_its_items_are_read(tmp_path, monkeypatch):
    """Films of hours would be decoded for nothing."""
    from gapclose.pipeline.cli import main

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("gapclose.pipeline.context.prepare_plain", lambda *args, **kwargs: pytest.fail("items were read"))
    assert main(["measure", "--model.quantisation", "4bit", "--run_dir", str(tmp_path / "run")]) == 2


def test_the_decoder_alone_is_quantised(empty):
    """Towers, embeddings, the final norm and the output stay as they are."""
    blocks = decoder_layers(empty)
    left = outside(empty, blocks)
    assert {"model.audio_tower", "model.visual", "lm_head"} <= set(left) and not any("layers" in name for name in left)
    named = dict(empty.named_modules())
    beside = {id(m) for name in left for m in named[name].modules()}
    inside = {id(m) for m in blocks.modules()}
    linears = {id(m) for m in empty.modules() if isinstance(m, nn.Linear)}
    assert not beside & inside and linears <= beside | inside
    told = quantised_loading("4bit", empty, blocks)["quantization_config"]
    assert told.load_in_4bit and told.bnb_4bit_quant_type == "nf4" and told.bnb_4bit_compute_dtype == torch.bfloat16
    assert told.llm_int8_skip_modules == left
    assert quantised_loading("8bit", empty, blocks)["quantization_config"].load_in_8bit


def test_what_it_saves(empty):
    """Half of bfloat16 in 8 bits, a little less than three quarters in 4; biases and norms are not quantised."""
    blocks = decoder_layers(empty)
    weights = sum(m.weight.nbytes for m in blocks.modules() if isinstance(m, nn.Linear))
    assert bytes_saved(None, blocks) == 0 and bytes_saved("8bit", blocks) == weights // 2
    assert 0.74 * weights < bytes_saved("4bit", blocks) < 0.75 * weights


def test_settings_that_do_not_go_together():
    """An unknown kind, and a merged export, which would be of rounded weights."""
    with pytest.raises(ValueError, match="model.quantisation is '2bit'; choose one of"):
        ModelConfig(quantisation="2bit")
    for kind in ("merged", "omni"):
        with pytest.raises(ValueError, match=f"export.{kind} with model.quantisation 4bit"):
            parse_config(["--model.quantisation", "4bit", f"--export.{kind}", "true"])
