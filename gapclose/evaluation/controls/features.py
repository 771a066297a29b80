"""Readings from features that should know less than residuals: words, lengths, confidence.

Everything fitted or chosen (vectors, scales, strengths) uses only the fit split, in folds that
never split a clip.

Shapes: M fit items, N items, C concepts, O options, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax, logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from gapclose.data.items import Item
from gapclose.probes.cross_validation import grouped_folds

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
FLOOR = -30.0  # nats; log-probability of a concept that no option of an item expresses


class Chosen(NamedTuple):
    """A reading from the best of several feature makers, with the maker's name and strength."""

    reading: np.ndarray
    """(N, C)"""
    maker: str
    strength: float


Within = tuple[np.ndarray, np.ndarray]
"""modality of every fit item, (M,), and of every item to read, (N,)"""


def chosen_reading(
    makers: Mapping[str, Callable[[], Any]],
    fit: np.ndarray,
    y: np.ndarray,
    clips: np.ndarray,
    items: np.ndarray,
    *,
    within: Within | None = None,
    folds: int,
    seed: int,
) -> Chosen:
    """Read by logistic regression on features.

    Maker and strength are chosen by out-of-fold log-likelihood in fit.

    Args:
        makers: name -> a new, unfitted scikit-learn transformer; it is fitted again in every fold.
        fit: (M, ...) input of the transformers, y: (M,) concepts, clips: (M,) groups of the folds.
        items: (N, ...) input to read.
        within: fit and read every modality separately, because the modality of a question is known.
            One model for all would have to infer the modality, which a residual contains. Where the
            text tells *that* a premise is false and the media *which*, such a control would look
            weaker than it is. None: all items are of one modality.
    """
    known, modality = within or (np.zeros(len(y), dtype=int), np.zeros(len(items), dtype=int))
    parts, table = grouped_folds(y, clips, folds, seed), {}
    for name, make in makers.items():
        likelihood = dict.fromkeys(STRENGTHS, 0.0)
        for train, held in parts:
            read = read_features(make, STRENGTHS, fit[train], y[train], known[train], fit[held], known[held], int(y.max()) + 1)
            for c, reading in zip(STRENGTHS, read, strict=True):
                likelihood[c] += np.log(np.maximum(reading[np.arange(len(held)), y[held]], np.exp(FLOOR))).sum()
        table |= {(name, c): value for c, value in likelihood.items()}
    name, strength = max(table, key=lambda key: table[key])
    reading = read_features(makers[name], [strength], fit, y, known, items, modality, int(y.max()) + 1)[0]
    return Chosen(reading, name, strength)


def read_features(
    make: Callable[[], Any],
    strengths: Sequence[float],
    fit: np.ndarray,
    y: np.ndarray,
    known: np.ndarray,
    items: np.ndarray,
    modality: np.ndarray,
    concepts: int,
) -> np.ndarray:
    """Return readings (S, N, C), each modality fitted separately; a modality missing in fit gets
    the frequencies of all concepts."""
    reading = np.tile(majority(y, len(items), concepts), (len(strengths), 1, 1))
    for name in np.unique(modality):
        mine, here = known == name, np.flatnonzero(modality == name)
        seen = np.unique(y[mine])
        if not len(seen):
            continue
        reading[:, here] = 0
        if len(seen) == 1:
            reading[:, here, seen[0]] = 1
            continue
        maker = make().fit(fit[mine])
        features, asked = maker.transform(fit[mine]), maker.transform(items[here])
        for s, strength in enumerate(strengths):
            model = LogisticRegression(C=strength, max_iter=2000).fit(features, y[mine])
            reading[s][np.ix_(here, seen)] = model.predict_proba(asked)
    return reading


def majority(y: np.ndarray, n: int, concepts: int) -> np.ndarray:
    """Return a reading (n, C) that always gives the class frequencies of ``y``."""
    return np.tile(np.bincount(y, minlength=concepts) / len(y), (n, 1))


def option_features(items: Sequence[Item], concepts: Sequence[str], places: int, count: Callable[[str], int]) -> np.ndarray:
    """Compute order and lengths, without words, (N, F).

    They cover the question, and the options by place and by concept.

    Args:
        places: number of option places, from the longest list of options; later options are left
            out.
        count: text -> number of tokens.
    """
    rows = []
    for item in items:
        row = [len(item.options), len(item.text), len(item.text.split()), count(item.text)]
        for place in range(places):
            option = item.options[place] if place < len(item.options) else None
            row += [option is not None and option.concept == c for c in concepts]
            row += [len(option.text), count(option.text)] if option is not None else [0, 0]
        for concept in concepts:
            texts = [o.text for o in item.options if o.concept == concept]
            row += [len(texts), np.mean([len(t) for t in texts] or [0]), np.mean([count(t) for t in texts] or [0])]
        rows.append(row)
    return np.array(rows, dtype=float)


def action_features(scores: np.ndarray, option_concept: np.ndarray, concepts: int) -> np.ndarray:
    """Compute features of the model's own option scores, (N, C + 3), in nats.

    These are the log concept marginals, the options' entropy, margin and total mass. Options differ
    between items, so they enter by the concept that they express.

    Args:
        scores: (N, O), -inf beyond an item's options.
        option_concept: (N, O), -1 beyond them.
    """
    logp = log_softmax(scores, axis=1)
    with np.errstate(divide="ignore"):  # a concept without options has probability 0
        marginals = [np.asarray(logsumexp(np.where(option_concept == c, logp, -np.inf), axis=1)) for c in range(concepts)]
    entropy = -(np.exp(logp) * np.maximum(logp, FLOOR)).sum(1)
    second, first = np.sort(logp, axis=1)[:, -2:].T
    features = np.stack([*marginals, entropy, first - np.maximum(second, FLOOR), np.asarray(logsumexp(scores, axis=1))], axis=1)
    return np.maximum(features, FLOOR)


def feature_reading(
    fit: np.ndarray, y: np.ndarray, clips: np.ndarray, items: np.ndarray, *, within: Within | None = None, folds: int, seed: int
) -> np.ndarray:
    """Return a reading (N, C) by logistic regression on standardised features (M, F) and (N, F)."""
    return chosen_reading({"standardised": StandardScaler}, fit, y, clips, items, within=within, folds=folds, seed=seed).reading
