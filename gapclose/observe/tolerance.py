"""How far two ways of computing the same log-probabilities may differ."""

from __future__ import annotations

import torch

WIDE = 1e-4
"""nats, in float32 and float64"""
SPACINGS = 2
"""in half precision, machine epsilons of the largest log-probability; a logit of 20 is rounded to 0.125
in bfloat16, so a fixed number of nats would refuse models for the size of their logits"""


def allowed_difference(dtype: torch.dtype, logp: torch.Tensor) -> float:
    """Return the largest accepted difference in nats; a wrong mask or position differs far more.

    Args:
        dtype: of the model. logp: log-probabilities of the whole vocabulary, whose largest size counts.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return WIDE
    finite = logp[torch.isfinite(logp)]
    return max(WIDE, SPACINGS * torch.finfo(dtype).eps * float(finite.abs().max()))
