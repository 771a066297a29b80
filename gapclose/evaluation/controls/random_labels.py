"""Labels drawn at random by clip, for the selectivity of a probe (Hewitt & Liang 2019, arXiv 1909.03368)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def shuffled(y: np.ndarray, modality: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Concepts (M,) permuted over the items of each modality: what is asked about stays readable, what is right does not."""
    mixed = y.copy()
    for name in np.unique(modality):
        mine = np.flatnonzero(modality == name)
        mixed[mine] = y[rng.permutation(mine)]
    return mixed


def concept_shares(y: np.ndarray, modality: np.ndarray, concepts: int) -> dict[str, np.ndarray]:
    """Frequencies (C,) of the concepts ``y`` (M,) within each modality."""
    return {name: np.bincount(y[modality == name], minlength=concepts) / (modality == name).sum() for name in np.unique(modality).tolist()}


def clip_labels(clips: np.ndarray, modality: np.ndarray, shares: Mapping[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A random concept for every clip (N,): the control task of Hewitt & Liang (2019, arXiv 1909.03368), with clips for word types.

    One uniform number a clip goes through the concept frequencies of the item's modality (:func:`concept_shares`): all items of a clip
    and modality get one label, and the task is as skewed as the real one. Theirs is learnt by heart, since word types recur in their
    test data. Clips must not across splits or grouped folds, so there it must fail, whatever the capacity of the probe: what it finds is
    a leak of clips. Across folds over *items* it can be learnt, by whatever tells a clip again: what the real task has above that is
    selectivity in their sense.

    Args:
        clips: (N,) names, or what else tells clips apart. Name them by their media, and draw for both splits at once: a clip that is in
            both under two names then has one label, and shows.
    """
    names, index = np.unique(clips, return_inverse=True)
    drawn, labels = rng.random(len(names))[index], np.zeros(len(clips), dtype=int)
    for name, share in shares.items():
        mine = modality == name
        labels[mine] = np.searchsorted(share.cumsum(), drawn[mine], side="right").clip(0, len(share) - 1)
    return labels
