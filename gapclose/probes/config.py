"""Settings of the probe and its search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from gapclose.core.config_checks import Checks
from gapclose.core.registry import Registry

FAMILIES = ("logistic", "lda", "mean_difference")
FitFunction = Callable[[np.ndarray, np.ndarray, float], tuple[np.ndarray, np.ndarray]]
"""(standardised residuals (N, D), classes (N,) from 0 to C - 1, strength) -> weight (C, D), bias (C,)"""
PROBE_FAMILIES: Registry[FitFunction] = Registry("probe.families", "probe family", FAMILIES)


def register_probe_family(name: str, fit: FitFunction) -> FitFunction:
    """Register a family of linear probes for ``probe.families``; it uses ``probe.strengths``.

    Args:
        fit: takes standardised residuals (N, D), classes (N,) from 0 to C - 1, and a strength;
            returns weight (C, D) and bias (C,), whose softmax is the posterior. It must depend on
            nothing else.

    Raises:
        ValueError: when the name is taken.
    """
    return PROBE_FAMILIES.register(name, fit)


@dataclass(kw_only=True)
class ProbeConfig:
    """How probes are fitted and chosen."""

    families: list[str] = field(default_factory=lambda: list(FAMILIES))
    """probe families to try: logistic (strengths in ``c``), lda (strengths in ``shrinkage``),
    mean_difference (nearest class mean), a registered family, or ``package.module:function``"""
    layers: list[int] | None = None
    """candidate layers, counted from 1; null: all with at least ``layers_above`` decoder layers
    above them"""
    layers_above: int = 2
    """decoder layers that must remain above the probe's layer, so that LoRA can act on the
    residuals that the probe reads"""
    folds: int = 4
    """grouped cross-validation folds inside fit"""
    c: list[float] = field(default_factory=lambda: [0.001, 0.01, 0.1, 1.0])
    """inverse regularisation of the logistic family, on standardised residuals"""
    shrinkage: list[float] = field(default_factory=lambda: [0.1, 0.5])
    """covariance shrinkage of the lda family, 0..1"""
    stack: int = 1
    """largest number of best single layers that are also tried concatenated, as one probe, in the
    same cross-validation (1: single layers only)"""
    strengths: list[float] = field(default_factory=lambda: [1.0])
    """strengths of the families that are not the package's own"""
    device: str = "auto"
    """where the logistic family is searched: auto (layers of a million numbers and more on the
    model's GPU if that is CUDA and has the memory, else on the CPU) or cpu"""

    def __post_init__(self) -> None:
        with Checks(self, "probe") as check:
            twice = len(set(self.families)) < len(self.families) if check.sound("families") else False
            if check.sound("families") and (twice or not self.families or not all(map(PROBE_FAMILIES.known, self.families))):
                names = f"{list(PROBE_FAMILIES.names)}, or package.module:function"
                check.add(f"{check.named('families')}; choose some of {names}, each once", "families")
            check.number("folds", least=2)
            check.number("layers_above", least=1, why="LoRA needs a layer above the probe")
            check.number("stack", least=1, why="1 tries single layers only")
            check.number("layers", least=1, why="the first decoder layer is 1")
            check.number("c", above=0)
            check.choice("device", ("auto", "cpu"))
            check.number("strengths")
            check.number("shrinkage", least=0, most=1)
            if check.sound("families", "strengths") and not self.strengths and set(self.families) - set(FAMILIES):
                check.add(
                    f"{check.named('strengths')}, and probe.families has others than {list(FAMILIES)}; give them a strength", "strengths"
                )
            for family, name in (("logistic", "c"), ("lda", "shrinkage")):
                if check.sound(name, "families") and not getattr(self, name) and family in self.families:
                    check.add(f"{check.named(name)}, and probe.families has {family}; give it a strength, or leave the family out", name)
            layers = sorted(set(self.layers or ())) if check.sound("layers") else []
            if self.layers == []:
                check.add(f"{check.named('layers')}; name some layers, or null for all", "layers")
            elif layers and check.sound("stack") and self.stack > len(layers):
                check.add(f"{check.named('stack')}, and there are {len(layers)} candidate layers: {layers}", "stack", "layers")

    def candidates(self, n_layers: int) -> list[int]:
        """The layers to try in a decoder of ``n_layers``.

        Raises:
            ValueError: when a layer does not exist or leaves too few above it, or there are fewer
                than ``stack``.
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
        return [(family, s) for family in self.families for s in strengths.get(family, self.strengths)]
