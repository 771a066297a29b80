"""Standardise the residuals of one layer once for all folds.

Each fold changes only a shift and a scale, which are stored separately.

Shapes: N items, D width, F folds, R leading directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

RANK = 64  # leading directions; more did not pay on residual-like spectra
ROUNDING = 10 * torch.finfo(torch.float32).eps
"""deviation over mean below which a dimension holds only rounding errors; models compute in float32
at best, whatever the dtype of the residuals here"""


def varies(deviation: Any, mean: Any) -> Any:
    """Whether each dimension varies, (..., D) bool, by its deviation and mean (..., D).

    Takes arrays or tensors; all probes use this rule. A dimension that does not vary gets no weight
    and is divided by 1.
    """
    return deviation > ROUNDING * abs(mean)


@dataclass(frozen=True, kw_only=True)
class Standardised:
    """One layer standardised over all items, and each fold's difference from that."""

    x: Tensor  # (N, D)
    train: Tensor  # (F, N), ones and zeros
    shift: Tensor  # (F, D), mean of the training part of x
    inverse: Tensor  # (F, D), one over its deviation; 0 where it never varies
    mean: Tensor  # (F, D), in the units of the residuals
    scale: Tensor  # (F, D)
    directions: Tensor  # (D, R), orthonormal
    energy: Tensor  # (R,), sums of squares of x along them, rising


def standardise(z: Tensor, train: Tensor) -> Standardised:
    """Standardise residuals (N, D) over all items, with the shift and scale of each fold.

    ``train`` is (F, N). Deviations come from one product. Where subtracting squares would cancel
    digits, they are recomputed in two passes.
    """
    centre = z.mean(0, dtype=torch.float64)
    x = z - centre.to(z.dtype)
    spread = x.square().mean(0).sqrt()
    spread = torch.where(varies(spread, centre.to(z.dtype)), spread, torch.inf)
    x /= spread
    spread = torch.where(spread.isinf(), 1.0, spread)
    part = train / train.sum(1, keepdim=True)  # (F, N)
    shift, square = part @ x, part @ x.square()  # (F, D)
    variance = square - shift.square()
    doubtful = (variance < 1e-2 * square).any(0).nonzero()[:, 0]
    if len(doubtful):
        exact = x[:, doubtful].double()
        average = part.double() @ exact
        variance[:, doubtful] = torch.stack([p.double() @ (exact - a).square() for p, a in zip(part, average, strict=True)]).to(z.dtype)
    deviation = variance.clamp_min(0).sqrt()
    mean = centre.to(z.dtype) + spread * shift
    kept = varies(spread * deviation, mean)
    directions, energy = leading(x)
    return Standardised(
        x=x, train=train, shift=shift, inverse=torch.where(kept, 1 / deviation, 0.0), mean=mean,
        scale=torch.where(kept, spread * deviation, 1.0), directions=directions, energy=energy,
    )  # fmt: skip


def leading(x: Tensor) -> tuple[Tensor, Tensor]:
    """Approximate the leading right singular directions (D, R) of ``x``, orthonormal.

    Also returns the sums of squares along them (R,), rising.
    """
    rank = min(RANK, max(len(x) // 2, 1), x.shape[1])  # as many as items would leave no energy for directions that a fold adds
    start = torch.randn(len(x), rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x)
    basis = torch.linalg.qr(x.T @ (x @ (x.T @ start)))[0]  # (D, R)
    scores = x @ basis
    energy, turn = torch.linalg.eigh(scores.T @ scores)
    return basis @ turn, energy.clamp_min(0)
