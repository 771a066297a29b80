"""Labels drawn at random by clip, for a probe's selectivity (Hewitt & Liang 2019, arXiv
1909.03368)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def shuffled(y: np.ndarray, modality: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Permute concepts (M,) over the items of each modality: the modality stays readable, the
    right concept does not."""
    mixed = y.copy()
    for name in np.unique(modality):
        mine = np.flatnonzero(modality == name)
        mixed[mine] = y[rng.permutation(mine)]
    return mixed


def concept_shares(y: np.ndarray, modality: np.ndarray, concepts: int) -> dict[str, np.ndarray]:
    """Return the frequencies (C,) of the concepts ``y`` (M,) within each modality."""
    return {name: np.bincount(y[modality == name], minlength=concepts) / (modality == name).sum() for name in np.unique(modality).tolist()}


def clip_labels(clips: np.ndarray, modality: np.ndarray, shares: Mapping[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Draw a random concept for every clip (N,).

    This is the control task of Hewitt & Liang (2019, arXiv 1909.03368), with clips for word types.
    One uniform number per clip is mapped through the concept frequencies of the item's modality
    (:func:`concept_shares`). So all items of a clip and modality have one label, and the task is as
    skewed as the real one. Their task can be memorised, because word types recur in their test
    data. Clips must not recur across splits or grouped folds, so there a probe of any capacity must
    fail, and success is a leak of clips. Across folds over *items* the task can be learned from
    anything that identifies a clip. The real task's excess over it is selectivity in their sense.

    Args:
        clips: (N,) names or other identifiers of clips. Use their media, and draw for both splits
            at once: then a clip that is in both under two names has one label, and the leak is
            detected.
    """
    names, index = np.unique(clips, return_inverse=True)
    drawn, labels = rng.random(len(names))[index], np.zeros(len(clips), dtype=int)
    for name, share in shares.items():
        mine = modality == name
        labels[mine] = np.searchsorted(share.cumsum(), drawn[mine], side="right").clip(0, len(share) - 1)
    return labels
