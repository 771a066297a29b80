"""Nested cross-validation: the quality of a probe including the choice of its settings.

The out-of-fold reading of :func:`gapclose.probes.search.choose_probe` belongs to the best of many
settings, so the choice biases its accuracy upwards. Here every choice is made without the items
that judge it.

Shapes: N items, D width, C concepts, F outer folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gapclose.observe.store import take_residuals
from gapclose.probes.config import ProbeConfig
from gapclose.probes.cross_validation import grouped_folds
from gapclose.probes.search import choose_probe


@dataclass(frozen=True, kw_only=True)
class Nested:
    """Readings without selection bias, and the selected settings."""

    reading: np.ndarray
    """(N, C) r(c|x) of every item, from a probe whose fit, temperature, layers, family and strength
    never used its clip"""
    chosen: list[tuple[tuple[int, ...], str, float]]
    """(layers, family, strength) of every outer fold, (F,)"""


def nested_reading(
    residuals: Mapping[int, torch.Tensor],
    y: np.ndarray,
    clips: np.ndarray,
    concepts: Sequence[str],
    config: ProbeConfig,
    *,
    layers: Sequence[int],
    modality: np.ndarray | None = None,
    settings: Sequence[tuple[str, float]] | None = None,
    folds: int | None = None,
    seed: int,
    spread: bool = False,
) -> Nested:
    """Choose and fit inside each outer training part, then read the held-out part.

    As in Varma & Simon (2006) and Cawley & Talbot (2010). Costs ``folds`` times a
    :func:`~gapclose.probes.search.choose_probe`.

    Args:
        residuals: layer -> (N, D).
        y: concept index per item, (N,).
        clips: group per item, (N,); no fold splits one.
        layers: candidates.
        modality: the modality that an item's question is about, (N,); None: the same for all.
        settings: (family, strength) pairs; default those of ``config``.
        folds: outer folds; default ``config.folds``, which the inner cross-validation always uses.
        spread: as for ``choose_probe``.

    Raises:
        ValueError: when there are too few clips, or a concept occurs in too few of them, for the
            outer or the inner folds.
    """
    reading, chosen = np.full((len(y), len(concepts)), np.nan), []
    outer = grouped_folds(y, clips, config.folds if folds is None else folds, seed)
    for fold, (train, test) in enumerate(outer, 1):
        inside = take_residuals(residuals, torch.as_tensor(train))
        probe = choose_probe(
            inside, y[train], clips[train], concepts, config,
            layers=layers, modality=None if modality is None else modality[train], settings=settings, seed=seed, spread=spread,
            label=f"choosing in outer fold {fold} of {len(outer)}",
        ).probe  # fmt: skip
        reading[test] = probe.predict_proba(probe.features(residuals)[test])
        chosen.append((probe.layers, probe.family, probe.strength))
    return Nested(reading=reading, chosen=chosen)
