"""What another batch may do to log-probabilities, and how far a trial may therefore differ."""

import numpy as np
import pytest
import torch

from gapclose.models.config import ModelConfig
from gapclose.models.loading import load_model
from gapclose.observe import prompt_reuse
from gapclose.observe.prompt_reuse import reuse_refusal
from gapclose.observe.tolerance import allowed_difference


@pytest.mark.parametrize(
    ("dtype", "noise", "allowed"),
    [(torch.float32, 0.5, 1e-4), (torch.bfloat16, 0.01, 0.25), (torch.bfloat16, 0.5, 1.5), (torch.float16, 0.001, 0.03125)],
)
def test_it_grows_with_the_noise_of_half_precision_alone(dtype, noise, allowed):
    here = torch.tensor([-0.5, -16.0])
    assert allowed_difference(dtype, here, here + torch.tensor([0, -noise])) == pytest.approx(allowed, rel=1e-5)


def test_a_number_that_is_none_allows_nothing():
    assert np.isnan(allowed_difference(torch.bfloat16, torch.tensor([-1.0, torch.nan]), torch.tensor([-1.0, -1.0])))


def test_in_half_precision_a_sound_cache_is_used_and_a_wrong_one_is_not(digits, monkeypatch):
    loaded = load_model(ModelConfig(path="digits", dtype="bfloat16"))
    items = [i for i in digits.select(split="test", purpose="gap") if i.modality == "vision"]
    few = [min(items, key=lambda i: len(i.text)), max(items, key=lambda i: len(i.text))]
    for batch in (few, few[:1]):
        assert reuse_refusal(loaded, batch, loaded.media(digits)) is None
    real = prompt_reuse.next_logits
    monkeypatch.setattr(prompt_reuse, "next_logits", lambda model, asked, tokens: real(model, asked, tokens.roll(1, 0)))
    assert "a log-probability differs by" in str(reuse_refusal(loaded, few, loaded.media(digits)))
