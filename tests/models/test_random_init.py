"""Networks of the same shape that learned nothing: what is drawn anew, what stays, and that a seed decides it."""

from __future__ import annotations

import pytest
import torch

from gapclose.models.config import ModelConfig
from gapclose.models.loading import load_model
from gapclose.models.random_init import draw_anew
from gapclose.models.structure import decoder_layers


@pytest.fixture
def trained():
    """The shipped base, every parameter of which moved in training."""
    return load_model(ModelConfig(path="digits", dtype="float32")).model


def parameters(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_the_decoder_alone(trained):
    """Every parameter of the layers and of the norm after them is another; embeddings, towers and head are the trained ones."""
    before = parameters(trained)
    draw_anew(trained, "decoder", 0)
    changed = {name for name, p in parameters(trained).items() if not torch.equal(p, before[name])}
    inside = {id(p) for p in decoder_layers(trained).parameters()}
    expected = {n for n, p in trained.named_parameters() if id(p) in inside or n.endswith("language_model.norm.weight")}
    assert changed == expected and len(expected) < len(before)


def test_everything(trained):
    """No trained parameter is left, and the initial values are the class's: weights of its standard deviation, norms of one."""
    before = parameters(trained)
    draw_anew(trained, "everything", 0)
    after = parameters(trained)
    assert [name for name, p in after.items() if torch.equal(p, before[name])] == []
    spread = trained.config.get_text_config().initializer_range
    layer = decoder_layers(trained)[0]
    assert layer.mlp.gate_proj.weight.std().item() == pytest.approx(spread, rel=0.05)
    assert bool((layer.input_layernorm.weight == 1).all())


def test_the_seed_decides(trained):
    """The same seed gives the same network after any other; the caller's random numbers are not touched."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    draw_anew(trained, "everything", 1)
    assert torch.equal(torch.rand(3), expected)
    first = parameters(trained)
    draw_anew(trained, "everything", 2)
    other = parameters(trained)
    draw_anew(trained, "everything", 1)
    again = parameters(trained)
    assert all(torch.equal(p, again[name]) for name, p in first.items())
    assert any(not torch.equal(p, other[name]) for name, p in first.items())


def test_what_the_class_does_not_initialise_is_drawn_too(trained):
    """A parameter that the class knows nothing of: same mean and spread, other values."""
    layer = decoder_layers(trained)[1]
    layer.extra = torch.nn.Parameter(torch.linspace(2.0, 4.0, 5000))
    draw_anew(trained, "decoder", 0)
    assert layer.extra.mean().item() == pytest.approx(3.0, abs=0.05) and layer.extra.std().item() == pytest.approx(0.577, abs=0.05)
    assert not torch.equal(layer.extra.detach(), torch.linspace(2.0, 4.0, 5000))


def test_another_part_is_refused(trained):
    """By name."""
    with pytest.raises(ValueError, match="part is 'head'; choose one of"):
        draw_anew(trained, "head", 0)
