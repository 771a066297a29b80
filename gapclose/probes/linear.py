"""Probes: linear readings of concepts from the residual stream, fitted on labels and frozen.

Every family has the form ``softmax((W z + b) / T)`` of the standardised residual ``z``, so one
frozen module serves them all. Folds never split a clip. A probe may read several layers, whose
residuals are concatenated. :mod:`gapclose.probes.search` chooses layers, family and regularisation.

Shapes: N items, D width (of all layers of a probe together), C concepts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import nn

from gapclose.core.files import read_json, write_json
from gapclose.core.tensor_files import read_tensors, write_tensors
from gapclose.probes.config import FAMILIES, PROBE_FAMILIES
from gapclose.probes.logistic import solve
from gapclose.probes.standardize import varies

ROWS = 8192
"""number of residuals converted to double precision at once"""


def side_by_side(residuals: Mapping[int, torch.Tensor], layers: Sequence[int]) -> torch.Tensor:
    """Concatenate the residuals of ``layers`` to (N, D), D the sum of their widths.

    A single layer is not copied.
    """
    return residuals[layers[0]] if len(layers) == 1 else torch.cat([residuals[layer] for layer in layers], dim=-1)


class FrozenProbe(nn.Module):
    """A fitted probe that cannot be trained: buffers only, and its input is detached.

    ``forward`` maps the output of :meth:`features`, (..., D), to log r(c|x), (..., C), in float32.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    temperature: torch.Tensor

    def __init__(
        self,
        *,
        mean: np.ndarray,
        scale: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray,
        temperature: float,
        layers: Sequence[int],
        family: str,
        strength: float,
        concepts: Sequence[str],
    ) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("scale", scale), ("weight", weight), ("bias", bias), ("temperature", temperature)):
            self.register_buffer(name, torch.as_tensor(np.asarray(value), dtype=torch.float32))
        self.layers, self.family, self.strength, self.concepts = tuple(layers), family, strength, tuple(concepts)

    @property
    def layer(self) -> int:
        """The highest of ``layers``, the last one; changes above it do not reach the probe."""
        return self.layers[-1]

    def features(self, residuals: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """Concatenate an observation's residuals of the probe's layers, (N, D)."""
        return side_by_side(residuals, self.layers)

    @torch.no_grad()
    def forward(self, residual: torch.Tensor) -> torch.Tensor:
        z = (residual.detach().float() - self.mean) / self.scale
        return ((z @ self.weight.T + self.bias) / self.temperature).log_softmax(-1)

    @torch.no_grad()
    def predict_log_proba(self, residual: torch.Tensor) -> np.ndarray:
        """Return log r(c|x) as a float64 array (N, C).

        It is computed in float64, so that very small probabilities keep their digits.
        """
        mean, scale, weight, bias, temperature = (
            part.cpu().double() for part in (self.mean, self.scale, self.weight, self.bias, self.temperature)
        )
        flat, rows = residual.detach().reshape(-1, residual.shape[-1]), list[torch.Tensor]()
        for part in flat.split(ROWS):
            z = (part.cpu().double() - mean) / scale
            rows.append(((z @ weight.T + bias) / temperature).log_softmax(-1))
        log = torch.cat(rows) if rows else flat.new_zeros((0, len(self.concepts)), dtype=torch.float64)
        return log.reshape(*residual.shape[:-1], len(self.concepts)).numpy()

    def predict_proba(self, residual: torch.Tensor) -> np.ndarray:
        """Return the reading r(c|x) as a float64 array (N, C); values below 1e-323 become 0."""
        return np.exp(self.predict_log_proba(residual))

    def save(self, path: Path, evidence: Mapping[str, Any] | None = None) -> None:
        """Write ``path``.safetensors and ``path``.json.

        The JSON file holds the layers and the highest one, family, strength, concepts and
        ``evidence``.
        """
        write_tensors(path.with_suffix(".safetensors"), dict(self.named_buffers()))
        facts = {"layer": self.layer, "layers": list(self.layers), "family": self.family, "strength": self.strength}
        write_json(path.with_suffix(".json"), {**facts, "concepts": list(self.concepts), **(evidence or {})})

    @classmethod
    def load(cls, path: Path) -> FrozenProbe:
        """Read the files of :meth:`save`, and older files with a single ``layer``.

        Raises:
            ValueError: when a file is damaged.
        """
        facts = read_json(path.with_suffix(".json"), "layer", "family", "strength", "concepts")
        facts.setdefault("layers", [facts["layer"]])
        tensors = {k: v.numpy() for k, v in read_tensors(path.with_suffix(".safetensors"))[0].items()}
        known = {k: facts[k] for k in ("layers", "family", "strength", "concepts")}
        return cls(**tensors, **known)


def fit_linear(z: np.ndarray, y: np.ndarray, family: str, strength: float) -> tuple[np.ndarray, ...]:
    """Fit one family on residuals (N, D) and classes (N,).

    Returns:
        mean (D,), scale (D,), weight (C, D), bias (C,) of the standardised linear classifier. A
        dimension that never varies has scale 1 and weight 0
        (:func:`gapclose.probes.standardize.varies`).
    """
    mean, scale = (of(0, dtype=np.float64).astype(z.dtype) for of in (z.mean, z.std))
    kept = varies(scale, mean)
    scale = np.where(kept, scale, z.dtype.type(1))
    classes, index = np.unique(y, return_inverse=True)
    if family == "logistic":
        everything = torch.ones(1, len(y), dtype=torch.bool)
        fit = solve(torch.as_tensor(z), torch.as_tensor(index), everything, [strength], tolerance=1e-6 if z.dtype == np.float64 else None)
        return mean, scale, fit.weight[0, 0].numpy(), fit.bias[0, 0].numpy()
    x = z - mean
    x /= scale
    x[:, ~kept] = 0
    if family not in FAMILIES:
        weight, bias = PROBE_FAMILIES.get(family)(x, index, strength)
        if weight.shape != (len(classes), x.shape[1]) or bias.shape != (len(classes),):
            raise ValueError(
                f"probe family {family!r} returned a weight {weight.shape} and a bias {bias.shape}; they must be ({len(classes)}, "
                f"{x.shape[1]}) and ({len(classes)},)"
            )
        return mean, scale, np.asarray(weight), np.asarray(bias)
    if family == "mean_difference":
        weight = np.stack([x[y == c].mean(0) for c in classes])
        priors = np.array([(y == c).mean() for c in classes])
        return mean, scale, weight, -0.5 * (weight**2).sum(1) + np.log(priors)
    weight, bias = linear_discriminant(x, index, strength)
    return mean, scale, weight, bias


def linear_discriminant(x: np.ndarray, index: np.ndarray, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    """Fit linear discriminant analysis on standardised residuals (N, D) and classes 0..C-1, (N,).

    Returns weight (C, D) and bias (C,), with mean 0 over classes.

    It is ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)`` of scikit-learn, which solves by a singular value
    decomposition. With shrinkage the covariance within classes is positive definite, so a Cholesky factor solves it in a
    fraction of the time. Without shrinkage least squares are solved, as there; with fewer items than dimensions their result
    then depends on rounding. Where nothing varies within classes all weights are 0.
    """
    priors = np.bincount(index) / len(index)
    means = np.stack([x[index == c].mean(0) for c in range(len(priors))])
    apart = x - means[index]
    variance = (apart**2).mean()
    within = (1 - shrinkage) / len(x) * (apart.T @ apart)
    within.flat[:: len(within) + 1] += shrinkage * variance
    if variance <= np.finfo(x.dtype).eps:  # of standardised residuals, whose variance is 1
        weight = np.zeros_like(means)
    elif shrinkage:
        weight = scipy.linalg.solve(within, means.T, assume_a="pos").T
    else:
        solved: Any = scipy.linalg.lstsq(within, means.T)
        weight = solved[0].T
    bias = np.log(priors) - 0.5 * (means * weight).sum(1)
    return weight - weight.mean(0), bias - bias.mean()


def linear_logits(z: np.ndarray, parts: tuple[np.ndarray, ...]) -> np.ndarray:
    """Logits (N, C) of a classifier from :func:`fit_linear`."""
    mean, scale, weight, bias = parts
    return ((z - mean) / scale) @ weight.T + bias
