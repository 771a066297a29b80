"""Probes: linear readings of concepts from the residual stream, fitted on labels, chosen by grouped cross-validation, frozen.

Every family ends as ``softmax((W z + b) / T)`` of the standardised residual ``z``, so one frozen module serves them all. Layer,
family and regularisation are chosen inside ``fit`` by out-of-fold log-likelihood after a temperature that is itself fitted out of
fold; folds never split a clip. A probe may read several layers, their residuals side by side as one.

Shapes: N items, D width (of all layers of a probe together), C concepts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import StratifiedGroupKFold
from torch import nn

from gapclose.files import read_json, write_json, write_tensors
from gapclose.progress import track
from gapclose.solver import held_out, solve

FAMILIES = ("logistic", "lda", "mean_difference")


@dataclass(kw_only=True)
class ProbeConfig:
    """How probes are fitted and chosen."""

    families: list[str] = field(default_factory=lambda: list(FAMILIES))
    """logistic (C is ``strength``), lda (shrinkage is ``strength``), mean_difference (nearest class mean)"""
    c: list[float] = field(default_factory=lambda: [0.001, 0.01, 0.1, 1.0])
    """inverse regularisation of the logistic family, on standardised residuals"""
    shrinkage: list[float] = field(default_factory=lambda: [0.1, 0.5])
    """covariance shrinkage of the lda family, 0..1"""
    folds: int = 4
    """grouped cross-validation folds inside fit"""
    layers: list[int] | None = None
    """candidate layers, counted from 1; null: all that leave ``layers_above`` decoder layers above them"""
    layers_above: int = 2
    """decoder layers that must remain above the probe's layer, for LoRA to act on what the probe reads"""
    stack: int = 1
    """also try the residuals of the up to so many best single layers, side by side, as one probe; chosen by the same cross-validation
    (1: single layers only)"""

    def __post_init__(self) -> None:
        unknown = [f for f in self.families if f not in FAMILIES]
        if unknown or not self.families:
            raise ValueError(f"probe.families {self.families}: choose some of {list(FAMILIES)}")
        if self.folds < 2:
            raise ValueError(f"probe.folds is {self.folds}; it must be at least 2")
        if self.layers_above < 1:
            raise ValueError(f"probe.layers_above is {self.layers_above}; LoRA needs at least one layer above the probe")
        if self.stack < 1:
            raise ValueError(f"probe.stack is {self.stack}; it must be at least 1, which tries single layers only")
        if any(c <= 0 for c in self.c) or any(not 0 <= s <= 1 for s in self.shrinkage):
            raise ValueError(f"probe.c {self.c} must be positive and probe.shrinkage {self.shrinkage} within 0..1")

    def candidates(self, n_layers: int) -> list[int]:
        """The layers to try in a decoder of ``n_layers``.

        Raises:
            ValueError: when a layer does not exist or leaves too few above it, or there are fewer than ``stack``.
        """
        highest = n_layers - self.layers_above
        layers = list(range(1, highest + 1)) if self.layers is None else sorted(set(self.layers))
        bad = [layer for layer in layers if not 1 <= layer <= highest]
        if bad or not layers:
            raise ValueError(f"probe.layers {bad or layers}: this decoder has {n_layers} layers, and a probe may read layers 1..{highest}")
        if self.stack > len(layers):
            raise ValueError(f"probe.stack is {self.stack}, and there are {len(layers)} candidate layers: {layers}")
        return layers

    def settings(self) -> list[tuple[str, float]]:
        """All (family, strength) pairs."""
        strengths = {"logistic": self.c, "lda": self.shrinkage, "mean_difference": [1.0]}
        return [(family, s) for family in self.families for s in strengths[family]]


def side_by_side(residuals: Mapping[int, torch.Tensor], layers: Sequence[int]) -> torch.Tensor:
    """The residuals of ``layers`` as one tensor (N, D), D the sum of their widths."""
    return torch.cat([residuals[layer] for layer in layers], dim=-1)


class FrozenProbe(nn.Module):
    """A fitted probe that cannot be trained: buffers only, and its input is detached.

    ``forward`` maps what :meth:`see` gives, (..., D), to log r(c|x), (..., C), in float32.
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
        """The highest of ``layers``, which rise: what changes above it does not reach the probe."""
        return self.layers[-1]

    def see(self, residuals: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """What the probe reads of an observation's residuals: those of its layers side by side, (N, D)."""
        return side_by_side(residuals, self.layers)

    @torch.no_grad()
    def forward(self, residual: torch.Tensor) -> torch.Tensor:
        z = (residual.detach().float() - self.mean) / self.scale
        return ((z @ self.weight.T + self.bias) / self.temperature).log_softmax(-1)

    def read(self, residual: torch.Tensor) -> np.ndarray:
        """The reading r(c|x) as a float64 array (N, C)."""
        return self(residual).double().exp().cpu().numpy()

    def save(self, path: Path, evidence: Mapping[str, Any] | None = None) -> None:
        """Write ``path``.safetensors and ``path``.json (layers and the highest of them, family, concepts, and how it was chosen)."""
        write_tensors(path.with_suffix(".safetensors"), dict(self.named_buffers()))
        facts = {"layer": self.layer, "layers": list(self.layers), "family": self.family, "strength": self.strength}
        write_json(path.with_suffix(".json"), {**facts, "concepts": list(self.concepts), **(evidence or {})})

    @classmethod
    def load(cls, path: Path) -> FrozenProbe:
        """Read what :meth:`save` wrote; of older files, which know one ``layer`` alone, as well."""
        facts = read_json(path.with_suffix(".json"))
        facts.setdefault("layers", [facts["layer"]])
        tensors = {k: v.numpy() for k, v in load_file(path.with_suffix(".safetensors")).items()}
        known = {k: facts[k] for k in ("layers", "family", "strength", "concepts")}
        return cls(**tensors, **known)


def fit_linear(z: np.ndarray, y: np.ndarray, family: str, strength: float) -> tuple[np.ndarray, ...]:
    """Fit one family on residuals (N, D) and classes (N,).

    Returns:
        mean (D,), scale (D,), weight (C, D), bias (C,) of the standardised linear classifier.
    """
    mean, scale = z.mean(0), z.std(0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    x = (z - mean) / scale
    classes, index = np.unique(y, return_inverse=True)
    if family == "logistic":
        everything = torch.ones(1, len(y), dtype=torch.bool)
        fit = solve(torch.as_tensor(z), torch.as_tensor(index), everything, [strength], tolerance=1e-6 if z.dtype == np.float64 else None)
        return mean, scale, fit.weight[0, 0].numpy(), fit.bias[0, 0].numpy()
    if family == "mean_difference":
        weight = np.stack([x[y == c].mean(0) for c in classes])
        priors = np.array([(y == c).mean() for c in classes])
        return mean, scale, weight, -0.5 * (weight**2).sum(1) + np.log(priors)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=strength).fit(x, y)
    weight, bias = model.coef_, model.intercept_
    if len(classes) == 2:  # scikit-learn gives one row for two classes; as two rows, softmax agrees with its sigmoid
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return mean, scale, weight, bias


def linear_logits(z: np.ndarray, parts: tuple[np.ndarray, ...]) -> np.ndarray:
    """Logits (N, C) of what :func:`fit_linear` returned."""
    mean, scale, weight, bias = parts
    return ((z - mean) / scale) @ weight.T + bias


def grouped_folds(y: np.ndarray, clips: np.ndarray, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(train, test) index pairs that never split a clip and keep the classes balanced.

    Raises:
        ValueError: when there are too few clips, or a fold would train without one of the classes.
    """
    n_clips = len(np.unique(clips))
    if n_clips < folds:
        raise ValueError(f"{n_clips} clips cannot make {folds} folds; add labelled clips or lower probe.folds")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    parts = list(splitter.split(np.zeros(len(y)), y, clips))
    for train, _ in parts:
        if len(np.unique(y[train])) < len(np.unique(y)):
            raise ValueError(
                f"a concept occurs in too few of the {n_clips} clips for {folds} folds; add labelled clips or lower probe.folds"
            )
    return parts


def out_of_fold(z: np.ndarray, y: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]], family: str, strength: float) -> np.ndarray:
    """Logits (N, C) of every item from a probe that never saw its clip."""
    logits = np.zeros((len(y), len(np.unique(y))))
    for train, test in folds:
        logits[test] = linear_logits(z[test], fit_linear(z[train], y[train], family, strength))
    return logits


def fit_temperature(logits: np.ndarray, y: np.ndarray) -> float:
    """The temperature that maximises the likelihood of classes ``y`` under ``softmax(logits / T)`` (Guo et al. 2017)."""

    def loss(log_t: float) -> float:
        return -log_softmax(logits / np.exp(log_t), axis=1)[np.arange(len(y)), y].mean()

    found: Any = minimize_scalar(loss, bounds=(-5, 5), method="bounded")
    return float(np.exp(found.x))


def _searched(
    residuals: Mapping[int, torch.Tensor],
    stacks: Sequence[tuple[int, ...]],
    settings: Sequence[tuple[str, float]],
    y: np.ndarray,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
) -> Iterator[tuple[tuple[tuple[int, ...], str, float], np.ndarray]]:
    """(layers, family, strength) with its out-of-fold logits (N, C); the logistic probes of a stack of layers are all fitted together."""
    together = [strength for family, strength in settings if family == "logistic"]
    for layers in stacks:
        z = side_by_side(residuals, layers)
        logistic = iter(held_out(z, torch.as_tensor(y), folds, together).double().cpu().numpy() if together else ())
        alone = z.double().cpu().numpy() if len(together) < len(settings) else np.empty(0)
        for family, strength in settings:
            yield (layers, family, strength), next(logistic) if family == "logistic" else out_of_fold(alone, y, folds, family, strength)


def _score(logits: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Log-likelihood in nats at the best temperature, that temperature, and the accuracy."""
    temperature = fit_temperature(logits, y)
    log_reading = log_softmax(logits / temperature, axis=1)
    return {
        "log_likelihood": float(log_reading[np.arange(len(y)), y].mean()),
        "temperature": temperature,
        "accuracy": float((logits.argmax(1) == y).mean()),
    }


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The outcome of the cross-validated search."""

    probe: FrozenProbe
    reading: np.ndarray
    """(N, C) out-of-fold r(c|x) of the chosen setting on the fit items"""
    table: list[dict[str, Any]]
    """one row per (layers, family, strength): out-of-fold log-likelihood in nats and temperature; ``layer`` is the highest"""


def choose_probe(
    residuals: Mapping[int, torch.Tensor],
    y: np.ndarray,
    clips: np.ndarray,
    concepts: Sequence[str],
    config: ProbeConfig,
    *,
    layers: Sequence[int],
    settings: Sequence[tuple[str, float]] | None = None,
    seed: int,
    label: str = "choosing the probe",
) -> Choice:
    """Search layers x families x regularisation by grouped cross-validation, then fit the best on everything.

    With ``config.stack`` above 1, the two layers that are best by themselves are then tried side by side, the three best, and so on, in
    the same folds and with all families and strengths; of equals the fewest layers are kept.

    Args:
        residuals: layer -> (N, D); the logistic family is searched on their device.
        y: concept index per item, (N,); every concept must occur.
        clips: group per item, (N,).
        layers: candidates; there are no stacks of more than these.

    Raises:
        ValueError: when a concept has no item or too few clips.
    """
    absent = [c for i, c in enumerate(concepts) if i not in set(y.tolist())]
    if absent:
        raise ValueError(f"no labelled item expresses {absent}; a probe for {list(concepts)} needs some of each")
    folds, settings = grouped_folds(y, clips, config.folds, seed), settings or config.settings()

    def search(stacks: Sequence[tuple[int, ...]], label: str) -> list[dict[str, Any]]:
        searched = track(_searched(residuals, stacks, settings, y, folds), len(stacks) * len(settings), label)
        return [
            {"layer": stack[-1], "layers": list(stack), "family": family, "strength": strength, **_score(logits, y)}
            for (stack, family, strength), logits in searched
        ]

    table = search([(layer,) for layer in layers], label)
    best = {layer: max(r["log_likelihood"] for r in table if r["layer"] == layer) for layer in layers}
    ranked = sorted(layers, key=lambda layer: -best[layer])
    stacks = [tuple(sorted(ranked[:k])) for k in range(2, min(config.stack, len(layers)) + 1)]
    table += search(stacks, f"{label}, layers side by side")
    row = max(table, key=lambda r: r["log_likelihood"])
    z = side_by_side(residuals, row["layers"]).double().cpu().numpy()
    logits = out_of_fold(z, y, folds, row["family"], row["strength"])  # as a fresh probe is read later, in double precision
    row.update(_score(logits, y))
    log_reading = log_softmax(logits / row["temperature"], axis=1)
    mean, scale, weight, bias = fit_linear(z, y, row["family"], row["strength"])
    probe = FrozenProbe(
        mean=mean, scale=scale, weight=weight, bias=bias, concepts=concepts,
        **{k: row[k] for k in ("temperature", "layers", "family", "strength")},
    )  # fmt: skip
    return Choice(probe=probe, reading=np.exp(log_reading), table=table)


def fresh_reading(probe: FrozenProbe, residual: torch.Tensor, y: np.ndarray, clips: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Out-of-fold reading (N, C) of a probe of the same family and strength re-fitted on these residuals.

    What it reads is what is *there now*, whatever the frozen probe still sees.

    Args:
        residual: (N, D), what the frozen probe sees (:meth:`FrozenProbe.see`).
    """
    z = residual.double().numpy()
    logits = out_of_fold(z, y, grouped_folds(y, clips, folds, seed), probe.family, probe.strength)
    return np.exp(log_softmax(logits / fit_temperature(logits, y), axis=1))
