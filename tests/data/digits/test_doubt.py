"""The second step of the base recipe: what its answers are drawn from."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gapclose.data.digits import questions

sys.path.insert(0, str(Path(__file__).parents[3] / "recipes"))
import digits_base

sys.path.pop(0)

WORDINGS = [f"{m}/{k}/{p}/{a}" for m in questions.MODALITIES for k in questions.KINDS for p in questions.PREMISES[m] for a in range(2)]


def test_doubt_depends_on_the_wording_alone_and_fills_its_range():
    """No wording, no doubt."""
    shares = [digits_base.doubt_of(w, 0.05, 0.4) for w in WORDINGS]
    assert len(set(shares)) == len(WORDINGS) == 64
    assert 0.05 <= min(shares) < 0.1 and 0.35 < max(shares) <= 0.4
    assert digits_base.doubt_of("", 0.05, 0.4) == 0


@pytest.mark.parametrize("wording", ["", WORDINGS[0]])
def test_the_loss_is_the_cross_entropy_with_the_mixture_it_states(wording):
    """Answer, own rejection, and any answer word; on other questions the answer alone. The minimum is the mixture itself."""
    words, vocabulary = torch.tensor([2, 3, 4, 5]), 8
    drawn = SimpleNamespace(wording=np.array([wording]), answer=torch.tensor([2]), reject=torch.tensor([4]))
    target = torch.zeros(vocabulary)
    doubt = digits_base.doubt_of(wording, *digits_base.COMPLY.doubt)
    noise = digits_base.COMPLY.noise if wording else 0.0
    target[2] += 1 - doubt - noise
    target[4] += doubt
    target[words] += noise / 4
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(0))
    found = digits_base.answer_loss(logits, drawn, digits_base.COMPLY, words)
    torch.testing.assert_close(found, -(target * logits.log_softmax(-1)[0]).sum())
    assert target.sum() == pytest.approx(1)
