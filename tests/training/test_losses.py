"""The loss terms by hand, against torch, and by finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gapclose.training.losses import answer_nll, topk_kl


def logits(rows: int = 4, vocabulary: int = 9, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def top(logp: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    best = logp.topk(k, dim=-1)
    return best.values, best.indices


def test_answer_nll_by_hand():
    """Two options at one position, one of them with a second token at another; a token may be gathered twice."""
    logp = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]))
    place, token, weight = torch.tensor([0, 0, 1, 0]), torch.tensor([0, 1, 2, 0]), torch.tensor([0.25, 0.75, 0.75, 0.5])
    expected = -(0.25 * np.log(0.5) + 0.75 * np.log(0.3) + 0.75 * np.log(0.8) + 0.5 * np.log(0.5))
    assert answer_nll(logp, place, token, weight).item() == pytest.approx(expected, rel=1e-6)
    nothing = torch.zeros(0, dtype=torch.long)
    assert answer_nll(logp, nothing, nothing, torch.zeros(0)).item() == 0


def test_retain_with_the_whole_vocabulary_is_torchs_kl():
    """KL(base || adapted), summed over positions, in whatever order the tokens come."""
    base, now = logits().log_softmax(-1), logits(seed=1).log_softmax(-1)
    expected = torch.nn.functional.kl_div(now, base, log_target=True, reduction="sum")
    assert topk_kl(now, *top(base, 9)).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("seed", range(5))
def test_retain_with_kept_tokens_is_a_lower_bound_that_grows_with_them(seed):
    """The data processing inequality: 0 <= KL on a coarser partition <= KL on a finer one <= the exact KL."""
    base, now = logits(seed=seed).log_softmax(-1), logits(seed=seed + 100).log_softmax(-1)
    found = [topk_kl(now, *top(base, k)).item() for k in (1, 3, 5, 8, 9)]
    assert found[0] >= 0 and (np.diff(found) >= -1e-12).all()
    assert found[-2] == pytest.approx(found[-1])  # a rest of one token is no partition at all


@pytest.mark.parametrize("k", [1, 4, 9])
def test_retain_and_its_gradient_vanish_at_the_base(k):
    """Float64 to show the formula, float32 to show that rounding in the rest stays harmless."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        raw = logits().to(dtype).requires_grad_()
        value = topk_kl(raw.log_softmax(-1), *top(raw.detach().log_softmax(-1), k))
        value.backward()
        assert value.item() == pytest.approx(0, abs=tolerance) and raw.grad.abs().max() < tolerance


def test_a_base_that_is_certain_gives_a_finite_loss():
    """All mass on the kept tokens leaves a rest of zero, in float32 even slightly less."""
    raw = torch.tensor([[60.0, 0.0, 0.0, 0.0]]).requires_grad_()
    base = torch.tensor([[60.0, 55.0, -60.0, -60.0]]).log_softmax(-1)
    value = topk_kl(raw.log_softmax(-1), *top(base, 2))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(raw.grad).all()


@pytest.mark.parametrize("term", ["answer", "retain"])
def test_gradients_are_finite_differences(term):
    """Through the log-softmax, as training uses them."""
    kept = top(logits(seed=2).log_softmax(-1), 4)
    place, token, weight = torch.tensor([0, 1, 1]), torch.tensor([3, 0, 8]), torch.tensor([0.2, 0.8, 1.0], dtype=torch.float64)

    def value(raw):
        logp = raw.log_softmax(-1)
        return answer_nll(logp, place, token, weight) if term == "answer" else topk_kl(logp, *kept)

    assert torch.autograd.gradcheck(value, logits().requires_grad_())


def test_what_is_impossible_makes_no_loss_that_is_no_number():
    """-inf log-probabilities of what has no weight and of what the base never says cost nothing, forward and backward; what it says and the
    adapted model cannot costs infinitely much."""
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 0.5]], requires_grad=True)
    logp = logits.log_softmax(-1)
    place, token = torch.zeros(2, dtype=torch.long), torch.tensor([1, 2])
    loss = answer_nll(logp, place, token, torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx(-logp[0, 1].item())
    assert answer_nll(logp.detach(), place, token, torch.tensor([0.5, 0.5])).item() == torch.inf
    base = torch.tensor([[2.0, 1.0, -torch.inf, 0.0]]).log_softmax(-1)
    for tokens in ([[0, 1, 2, 3]], [[0, 1, 3]], [[0, 2]], [[0, 1]]):
        kept = torch.tensor(tokens)
        loss = loss + topk_kl(logp, base.gather(1, kept), kept)
    assert torch.isfinite(loss) and topk_kl(base, base[:, [0, 1, 3]], torch.tensor([[0, 1, 3]])).item() == pytest.approx(0, abs=1e-5)
    loss.backward()
    assert torch.isfinite(logits.grad).all()
    assert topk_kl(base, logp.detach(), torch.tensor([[0, 1, 2, 3]])).item() > 0
    assert topk_kl(base, torch.zeros(1, 4).log_softmax(-1), torch.tensor([[0, 1, 2, 3]])).item() == torch.inf
