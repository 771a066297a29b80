"""Logistic regression for all folds and strengths of a layer, one matrix product per step.

The problem is scikit-learn's: minimise ``C * sum_i CE_i + |W|^2 / 2`` on residuals standardised by
mean and deviation of the fold's own training part. The intercept is not penalised. Three identities
make the sweep one problem:

* Standardising is linear, so it is applied to the weights:
  ``logits = x (w / s_f) + (b - m_f . w / s_f)`` with one shared ``x``. All folds and strengths then
  share the product ``x @ [all weights]``, which also gives the held-out logits.
* The best ``W`` sums to zero over the classes, so C - 1 orthonormal contrasts represent it, with
  the same penalty and no flat direction. With two classes scikit-learn penalises the single
  difference of the rows, which is the same problem at half the strength.
* With the best intercept the objective is 1-strongly convex in ``W``, hence
  ``|W - W*| <= |gradient|``. The stopping rule ``|gradient| <= tol |W|`` therefore bounds the
  relative error of the weights. The intercept's own gradient, the mean residual, must be within
  ``tol`` too. Both are checked on the returned solution.

The minimiser is L-BFGS (Nocedal & Wright 2006, algorithm 7.4) on all problems in parallel. Its line
search works in the space of logits (no further product with ``x``). Its starting metric uses the
leading directions of ``x``, found once per layer by a randomised range finder (Halko, Martinsson &
Tropp 2011, algorithm 4.4): ``C * s * x'x + 1`` inverted on them, with ``s`` the current mean
softmax curvature. Solved problems leave the batch.

Shapes: N items, D width, F folds, S strengths, P = F * S problems, C classes, K = C - 1 contrasts,
R leading directions.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gapclose.probes.logistic_problems import Problems, dot, make_problems
from gapclose.probes.standardize import standardise

WIDE = 1024
MEMORY = {False: 20, True: 6}  # pairs that L-BFGS keeps; beyond width WIDE, 20 would cost as much as the product
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}


class NotConverged(UserWarning):
    """A problem stopped before its gradient was small enough."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Solutions for every fold and strength, in the dtype and on the device of the residuals."""

    mean: Tensor
    """(F, D) of each fold's training part"""
    scale: Tensor
    """(F, D) standard deviations of the same; 1 where a feature never varies"""
    weight: Tensor
    """(F, S, C, D) of the standardised residuals; rows sum to zero over classes"""
    bias: Tensor
    """(F, S, C)"""
    logits: Tensor
    """(F, S, N, C) of all items, held out or not"""
    gap: Tensor
    """(F, S) norm of the gradient over norm of the weights, a bound on the weights' relative error"""
    steps: Tensor
    """(F, S) iterations taken"""
    converged: Tensor
    """(F, S) whether ``gap`` and the mean residual of every class are within the tolerance"""


def _line_search(problems: Problems, theta: Tensor, step: Tensor, z: Tensor, dz: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find step lengths (P,) that leave at most a quarter of the slope.

    Safeguarded Newton steps on a convex function of one variable.

    Returns:
        the lengths, and probabilities and residuals there.
    """
    w, d = theta[..., :-1], step[..., :-1]
    wd, dd = dot(w, d), dot(d, d)
    length = torch.ones_like(slope)
    low, high = torch.zeros_like(slope), torch.full_like(slope, torch.inf)
    turn = problems.turn(dz)
    for _ in range(20):
        p, r = problems.residual(z + length[:, None, None] * dz)
        now = problems.strength * dot(r, dz) + wd + length * dd
        good = now.abs() <= 0.25 * slope.abs()
        if bool(good.all()):
            break
        bend = problems.strength * problems.bend(p, turn) + dd
        low, high = torch.where(now < 0, length, low), torch.where(now > 0, length, high)
        newton = length - now / bend
        middle = torch.where(high.isinf(), 2 * length, (low + high) / 2)
        length = torch.where(good, length, torch.where((newton > low) & (newton < high), newton, middle))
    else:
        p, r = problems.residual(z + length[:, None, None] * dz)
    return length, p, r


def _minimise(problems: Problems, theta: Tensor, tolerance: float, max_steps: int) -> tuple[Tensor, Tensor]:
    """Run L-BFGS on all problems from ``theta``; return parameters and steps per problem (P,)."""
    solution, steps = theta.clone(), torch.full((len(theta),), max_steps, device=theta.device)
    alive = torch.arange(len(theta), device=theta.device)
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    memory = MEMORY[theta.shape[-1] > WIDE]
    z = problems.logits(theta)
    p, r = problems.residual(z)
    g = problems.gradient(theta, r)
    for step in range(max_steps):
        gap, off = problems.errors(theta, g)
        open_ = (gap > tolerance) | (off > tolerance)
        remaining = int(open_.sum())
        if remaining <= 0.8 * len(alive):
            solution[alive], steps[alive[~open_]] = theta, step
            keep = open_.nonzero()[:, 0]
            if not remaining:
                break
            problems, alive = problems.subset(keep), alive[keep]
            theta, z, p, g, open_ = theta[keep], z[keep], p[keep], g[keep], open_[keep]
            history = [(s[keep], y[keep], rho[keep]) for s, y, rho in history]
        d, coefficients = -g, []
        for s, y, rho in reversed(history):
            coefficients.append(rho * dot(s, d))
            d = d - coefficients[-1][:, None, None] * y
        d = problems.metric(d, p)
        for (s, y, rho), a in zip(history, reversed(coefficients), strict=True):
            d = d + (a - rho * dot(y, d))[:, None, None] * s
        d = d * open_[:, None, None]  # solved problems that are still in the batch stay in place
        dz = problems.logits(d)
        length, p, r = _line_search(problems, theta, d, z, dz, dot(d, g))
        s = length[:, None, None] * d
        theta, z, before = theta + s, z + length[:, None, None] * dz, g
        g = problems.gradient(theta, r)
        y = g - before
        bend = dot(s, y)
        history = [*history[1 - memory :], (s, y, torch.where(bend > 0, 1 / bend, 0.0))]
    solution[alive] = theta
    return solution, steps


def solve(
    z: Tensor,
    y: Tensor,
    train: Tensor,
    strengths: Sequence[float],
    *,
    tolerance: float | None = None,
    max_steps: int = 1000,
) -> Fit:
    """Fit every fold and every strength on one layer.

    Args:
        z: residuals (N, D); float32 and float64 keep their precision, other types are computed in
            float32. Their device is used.
        y: classes 0..C-1 per item, (N,).
        train: (F, N), true where an item belongs to the training part of a fold.
        strengths: values of C, scikit-learn's inverse regularisation.
        tolerance: largest ``Fit.gap`` and mean residual; None: 1e-4 in float32, 1e-8 in float64.
        max_steps: of L-BFGS. Problems that do not converge are returned as they are, with the
            warning :class:`NotConverged`.

    Raises:
        ValueError: when a residual is not finite, a strength is not positive, there are fewer than
            two classes, or a fold trains without one of them.
    """
    z = z.detach() if z.dtype in TOLERANCE else z.detach().float()
    y, train = y.to(z.device), train.to(z)
    tolerance = TOLERANCE[z.dtype] if tolerance is None else tolerance
    classes = int(y.max()) + 1
    onehot = torch.nn.functional.one_hot(y, classes).to(z).T.contiguous()  # (C, N)
    present = train @ onehot.T  # (F, C)
    if classes < 2 or not bool((present > 0).all()):
        raise ValueError(f"every fold must train on every one of at least two classes; items per fold and class: {present.int().tolist()}")
    if not strengths or min(strengths) <= 0:
        raise ValueError(f"strengths {list(strengths)} must be positive")
    if not bool(torch.isfinite(z).all()):
        raise ValueError("the residuals hold values that are not finite; observe them again in a wider dtype")
    ones = torch.cat([torch.ones(classes, 1, dtype=torch.float64), torch.eye(classes, dtype=torch.float64)[:, 1:]], dim=1)
    contrasts = torch.linalg.qr(ones)[0][:, 1:].to(z)  # (C, K), orthonormal, each summing to zero
    layer = standardise(z, train)
    z = layer.x  # frees a copy in another precision
    folds, each = len(train), len(strengths)
    fold = torch.arange(folds, device=z.device).repeat_interleave(each)
    strength = torch.tensor(strengths, dtype=z.dtype, device=z.device).repeat(folds) / (2 if classes == 2 else 1)
    problems = make_problems(layer, fold, strength, onehot, contrasts)
    theta = z.new_zeros(len(fold), classes - 1, z.shape[1] + 1)
    theta[..., -1] = (present.log() @ contrasts)[fold]  # the solution without features
    steps = torch.zeros(len(fold), dtype=torch.long, device=z.device)
    rounds = 0
    while True:  # rounding adds up in the logits, so convergence is judged by the gradient of the returned weights
        theta, taken = _minimise(problems, theta, tolerance, max_steps)
        steps, rounds = steps + taken, rounds + 1
        logits = problems.logits(theta)
        gap, off = problems.errors(theta, problems.gradient(theta, problems.residual(logits)[1]))
        converged = (gap <= tolerance) & (off <= tolerance)
        if rounds == 3 or bool(converged.all()) or bool((taken >= max_steps).any()):
            break
    if not bool(converged.all()):
        worst = int(torch.where(converged, -1, gap.maximum(off)).argmax())
        warnings.warn(
            f"{int((~converged).sum())} of {len(fold)} logistic regressions stopped short of tolerance {tolerance:g}; the worst, C = "
            f"{strengths[worst % each]:g}, has a gradient of {float(gap[worst]):.1e} of its weights. Lower C, raise max_steps or use float64",
            NotConverged,
            stacklevel=2,
        )

    def table(t: Tensor) -> Tensor:
        return t.unflatten(0, (folds, each))

    return Fit(
        mean=layer.mean, scale=layer.scale, weight=table(contrasts @ theta[..., :-1]), bias=table(theta[..., -1] @ contrasts.T),
        logits=table((contrasts @ logits).transpose(1, 2)), gap=table(gap), steps=table(steps), converged=table(converged),
    )  # fmt: skip


def held_out(z: Tensor, y: Tensor, folds: Sequence[tuple[Any, Any]], strengths: Sequence[float], **options: Any) -> Tensor:
    """Logits (S, N, C) of every item from the fold that held it out.

    Args:
        z: residuals (N, D) of one layer.
        folds: (training, held-out) indices; the held-out parts must cover every item once.
        options: as for :func:`solve`.
    """
    train = torch.zeros(len(folds), len(y), dtype=torch.bool)
    for f, (part, _) in enumerate(folds):
        train[f, part] = True
    fit = solve(z, y, train, strengths, **options)
    logits = torch.full_like(fit.logits[0], torch.nan)
    for f, (_, left) in enumerate(folds):
        logits[:, left] = fit.logits[f][:, left]
    return logits
