"""What rounding may do to log-probabilities of a model in half precision."""

import pytest
import torch

from gapclose.observe.tolerance import allowed_difference


@pytest.mark.parametrize(("dtype", "size", "allowed"), [(torch.float32, 40, 1e-4), (torch.bfloat16, 16, 0.25), (torch.float16, 16, 1 / 32)])
def test_it_grows_with_the_log_probabilities_in_half_precision_alone(dtype, size, allowed):
    logp = torch.tensor([[-0.5, -float(size)], [-1.0, -torch.inf]])
    assert allowed_difference(dtype, logp) == pytest.approx(allowed)


def test_rounded_logits_of_that_size_are_within_it():
    """The difference of a logit that rounds up from one that rounds down is one spacing; log-softmax keeps it."""
    torch.manual_seed(0)
    logits = torch.randn(4, 1000) * 6 + 8
    exact, rounded = logits.log_softmax(-1), logits.bfloat16().float().log_softmax(-1)
    assert 1e-4 < float((exact - rounded).abs().max()) < allowed_difference(torch.bfloat16, exact)
