"""How far two ways of computing the same log-probabilities may differ in a trial."""

from __future__ import annotations

import torch

FLOOR = {
    torch.float32: 1e-4, torch.float64: 1e-4,
    torch.bfloat16: 32 * torch.finfo(torch.bfloat16).eps, torch.float16: 32 * torch.finfo(torch.float16).eps,
}  # fmt: skip
"""dtype of the model -> difference in nats that is always accepted; in half precision two rounding
steps of a logit between 16 and 32: 0.25 and 0.031"""
NOISES = 3
"""in half precision, accepted multiple of the difference that another batch makes"""


def allowed_difference(dtype: torch.dtype, here: torch.Tensor, elsewhere: torch.Tensor) -> float:
    """Return the largest accepted difference in nats.

    Half precision rounds a logit of 20 to steps of 0.125, so how far equal computations differ
    depends on the model. The same prompts are therefore computed in two batches, in one way.

    Args:
        dtype: of the model. here, elsewhere: log-probabilities of the same tokens, any shape, in a
            batch and in another one.

    Returns:
        nan if one of them is nan, so that no comparison with it holds.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return FLOOR.get(dtype, FLOOR[torch.float32])
    noise = (here.float() - elsewhere.float()).abs().max()
    return float(torch.maximum(torch.tensor(FLOOR[dtype], device=noise.device), NOISES * noise))
