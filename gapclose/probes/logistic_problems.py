"""The unsolved logistic regressions of a layer: logits, residuals, gradients and a starting metric.

:mod:`gapclose.probes.logistic` minimises them; its docstring has the identities.

Shapes: N items, D width, F folds, S strengths, P = F * S problems, C classes, K = C - 1 contrasts,
R leading directions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gapclose.probes.standardize import Standardised


class Problems:
    """The unsolved problems: logits, residuals, gradients and the starting metric.

    Parameters ``theta`` are (P, K, D + 1), the intercepts last.
    """

    def __init__(self, layer: Standardised, fold: Tensor, strength: Tensor, onehot: Tensor, contrasts: Tensor) -> None:
        self.layer, self.fold, self.strength = layer, fold, strength  # fold (P,), strength (P,)
        self.onehot, self.contrasts = onehot, contrasts  # (C, N), (C, K)
        self.train = layer.train[fold]  # (P, N)
        self.inverse, self.shift = layer.inverse[fold, None], layer.shift[fold, None]  # (P, 1, D)
        self.count = self.train.sum(1)

    def subset(self, keep: Tensor) -> Problems:
        return type(self)(self.layer, self.fold[keep], self.strength[keep], self.onehot, self.contrasts)

    def logits(self, theta: Tensor) -> Tensor:
        """Contrast logits (P, K, N) of all items."""
        w = theta[..., :-1] * self.inverse
        constant = theta[..., -1:] - (w * self.shift).sum(-1, keepdim=True)
        return (w.flatten(0, 1) @ self.layer.x.T).unflatten(0, w.shape[:2]) + constant

    def residual(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (P, C, N), and (P, K, N) contrasts of probabilities minus classes.

        The contrasts are zero outside the training part. The error of the right class is summed
        from the other classes, so that it keeps its digits when it is tiny.
        """
        p = (self.contrasts @ z).softmax(1)
        wrong = p * (1 - self.onehot)
        error = (wrong - self.onehot * wrong.sum(1, keepdim=True)) * self.train[:, None]
        return p, self.contrasts.T @ error

    def curvature(self, p: Tensor) -> Tensor:
        """Softmax curvature, the mean over contrasts, summed over the training part: (P,)."""
        p = p * self.train[:, None]
        return (p.sum((1, 2)) - p.square().sum((1, 2))) / (p.shape[1] - 1)

    def turn(self, dz: Tensor) -> Tensor:
        """What :meth:`bend` needs of a step (P, K, N) of the contrast logits."""
        return self.contrasts @ dz  # (P, C, N)

    def bend(self, p: Tensor, turn: Tensor) -> Tensor:
        """Second derivative of the summed cross-entropy along a step, (P,)."""
        variance = (p * turn.square()).sum(1) - (p * turn).sum(1).square()  # (P, N)
        return (self.train * variance).sum(1)

    def gradient(self, theta: Tensor, residual: Tensor) -> Tensor:
        r = residual * self.strength[:, None, None]
        total = r.sum(-1, keepdim=True)
        slope = ((r.flatten(0, 1) @ self.layer.x).unflatten(0, r.shape[:2]) - self.shift * total) * self.inverse
        return torch.cat([slope + theta[..., :-1], total], dim=-1)

    def errors(self, theta: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient norm over weight norm (P,), and the largest mean residual (P,)."""
        size = theta[..., :-1].flatten(1).norm(dim=1)
        slope = gradient[..., :-1].flatten(1).norm(dim=1)
        return slope / size.clamp_min(torch.finfo(size.dtype).tiny), gradient[..., -1].abs().amax(1) / (self.strength * self.count)

    def metric(self, g: Tensor, p: Tensor) -> Tensor:
        """Apply the inverse of a cheap model of the Hessian to ``g`` (P, K, D + 1)."""
        stiff = (self.strength * (self.curvature(p) / self.count).clamp_min(1e-8))[:, None, None]
        share = (self.count / len(self.layer.x))[:, None, None]
        flat = 1 / (1 + stiff * share * self.layer.energy[0])  # all other directions count as the weakest leading one
        w = g[..., :-1]
        along = w @ self.layer.directions  # (P, K, R)
        w = flat * w + (along * (1 / (1 + stiff * share * self.layer.energy) - flat)) @ self.layer.directions.T
        w = w * (self.inverse > 0)  # features that never vary stay at zero
        return torch.cat([w, g[..., -1:] / (stiff * self.count[:, None, None])], dim=-1)


class TwoClasses(Problems):
    """The same for two classes: one logit, and one sigmoid instead of a softmax.

    Its probabilities ``p`` are those of the wrong class, (P, N).
    """

    def __init__(self, layer: Standardised, fold: Tensor, strength: Tensor, onehot: Tensor, contrasts: Tensor) -> None:
        super().__init__(layer, fold, strength, onehot, contrasts)
        self.width = contrasts[0, 0] - contrasts[1, 0]  # logit of class 0 over class 1, of a contrast of one
        self.toward = self.width * (onehot[1] - onehot[0])  # (N,) logit of the wrong class, of a contrast of one
        self.toward_train = self.toward * self.train  # (P, N)

    def residual(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of the wrong class (P, N), and the contrast of probabilities minus classes (P, 1, N)."""
        wrong = (z[:, 0] * self.toward).sigmoid_()
        return wrong, (wrong * self.toward_train)[:, None]

    def curvature(self, p: Tensor) -> Tensor:
        return 2 * (self.train * p * (1 - p)).sum(1)

    def turn(self, dz: Tensor) -> Tensor:
        return (self.width * dz[:, 0]).square() * self.train  # (P, N)

    def bend(self, p: Tensor, turn: Tensor) -> Tensor:
        return (turn * p * (1 - p)).sum(1)


def make_problems(layer: Standardised, fold: Tensor, strength: Tensor, onehot: Tensor, contrasts: Tensor) -> Problems:
    """The problems of ``fold`` and ``strength``, (P,) each."""
    return (TwoClasses if len(onehot) == 2 else Problems)(layer, fold, strength, onehot, contrasts)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per problem, (P,)."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))
