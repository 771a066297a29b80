"""Controls: what a skeptic would try before believing a reading.

Every control is a reading of the same items as the probe's, by something that should know less: words, lengths, the model's own
confidence, labels that mean nothing. Whatever is fitted or chosen (vectors, scales, strengths, projections) sees the fit split alone,
in folds that never split a clip. How they are judged: :mod:`gapclose.judge`; with media blanked: :mod:`gapclose.blank`.

Shapes: M fit items, N items, D width, C concepts, O options, F features, K draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from gapclose.items import Item
from gapclose.probes import FrozenProbe, fit_linear, grouped_folds, linear_logits

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
FLOOR = -30.0  # nats: log-probability of a concept that no option of an item expresses


@dataclass(kw_only=True)
class ControlsConfig:
    """What ``gapclose measure`` tries beside the probe. ``gapclose close`` keeps to the majority class and the text alone."""

    labels: bool = True
    """shuffled labels, and a random label per clip; costs 3 x ``draws`` fits of the probe (the ungrouped one once per fold)"""
    residualise: bool = True
    """read again without the directions that predict the wording; costs a ridge regression and an SVD of the fit residuals"""
    codelength: bool = True
    """online codelength of the concepts given the residuals, and of shuffled ones; costs about ten fits of the probe, and as many a draw"""
    blank: bool = True
    """read with media blanked; costs a forward of all fit and test items for every kind of media, and one more for all kinds together"""
    layers: bool = True
    """probe every layer, logit lens, embedding layer; costs a forward of all fit and test items, and their residuals of all layers on disk"""
    interchange: bool = True
    """patch the residual of one twin into the other; costs a forward of every test item with a twin"""
    nested: bool = True
    """choose layer, family and strength again inside outer folds of fit; costs the probe's search once more for every fold"""
    draws: int = 10
    """how often random labels are drawn"""
    seed: int = 0
    """of the random labels, besides the run's own: another one gives other draws and leaves the rest as it is"""
    text_encoder: str | None = None
    """directory of a sentence encoder for transformers (read by AutoModel, token states averaged), a stronger text control; null: none"""

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"controls.draws is {self.draws}; it must be at least 1")
        if self.text_encoder is not None and not (Path(self.text_encoder) / "config.json").is_file():
            raise ValueError(
                f"controls.text_encoder {self.text_encoder!r} is no directory with a config.json; save a sentence encoder there with "
                "save_pretrained, or leave the key out"
            )


class Chosen(NamedTuple):
    """A reading by the best of several feature makers, and which it was."""

    reading: np.ndarray
    """(N, C)"""
    maker: str
    strength: float


def chosen_reading(
    makers: Mapping[str, Callable[[], Any]], fit: np.ndarray, y: np.ndarray, clips: np.ndarray, items: np.ndarray, *, folds: int, seed: int
) -> Chosen:
    """Logistic regression on features; maker and regularisation chosen by out-of-fold log-likelihood within fit.

    Args:
        makers: name -> a new, unfitted scikit-learn transformer; it is fitted anew in every fold.
        fit: (M, ...) what the transformers take, y: (M,) concepts, clips: (M,) groups of the folds.
        items: (N, ...) what to read.
    """
    parts, table = grouped_folds(y, clips, folds, seed), {}
    for name, make in makers.items():
        likelihood = dict.fromkeys(STRENGTHS, 0.0)
        for train, held in parts:
            maker = make().fit(fit[train])
            known, unknown = maker.transform(fit[train]), maker.transform(fit[held])
            for c in STRENGTHS:
                logp = _logistic(c).fit(known, y[train]).predict_log_proba(unknown)
                likelihood[c] += logp[np.arange(len(held)), np.searchsorted(np.unique(y[train]), y[held])].sum()
        table |= {(name, c): value for c, value in likelihood.items()}
    name, strength = max(table, key=lambda key: table[key])
    maker = makers[name]().fit(fit)
    reading = _logistic(strength).fit(maker.transform(fit), y).predict_proba(maker.transform(items))
    return Chosen(reading, name, strength)


def _logistic(strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=2000)


# -- text and options -------------------------------------------------------------------------------------------------------------

# one-character tokens stay in: a digit or a letter may be the whole clue
TEXT_MAKERS: dict[str, Callable[[], TfidfVectorizer]] = {
    "words": lambda: TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True, max_features=5000),
    "characters": lambda: TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 5), sublinear_tf=True, max_features=5000),
}


def text_only(fit_texts: Sequence[str], y: np.ndarray, clips: np.ndarray, texts: Sequence[str], *, folds: int, seed: int) -> Chosen:
    """Reading (N, C) of ``texts`` by TF-IDF with logistic regression: what the question alone gives away.

    The better of words with word pairs and of character n-grams within words, as grouped cross-validation in fit finds it.

    Args:
        fit_texts: labelled questions, y: (M,) their concepts, clips: (M,) groups of the folds.
        texts: the questions to read.
    """
    fit, items = (np.array(list(t), dtype=object) for t in (fit_texts, texts))
    return chosen_reading(TEXT_MAKERS, fit, y, clips, items, folds=folds, seed=seed)


def majority(y: np.ndarray, n: int, concepts: int) -> np.ndarray:
    """Reading (n, C) that always gives the class frequencies of ``y``."""
    return np.tile(np.bincount(y, minlength=concepts) / len(y), (n, 1))


def option_features(items: Sequence[Item], concepts: Sequence[str], places: int, count: Callable[[str], int]) -> np.ndarray:
    """Order and lengths, and no words, (N, F): of the question, of the options by place, and of the options by concept.

    Args:
        places: as many option places as the longest list of options has; later options are left out.
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
    """What the model's own option scores say, (N, C + 3): log of the concept marginals, entropy and margin of the options, their mass.

    Options differ from item to item, so they enter by the concept that they express. All in nats.

    Args:
        scores: (N, O), -inf beyond an item's options.
        option_concept: (N, O), -1 beyond them.
    """
    logp = log_softmax(scores, axis=1)
    with np.errstate(divide="ignore"):  # a concept without options has no probability
        marginals = [np.asarray(logsumexp(np.where(option_concept == c, logp, -np.inf), axis=1)) for c in range(concepts)]
    entropy = -(np.exp(logp) * np.maximum(logp, FLOOR)).sum(1)
    second, first = np.sort(logp, axis=1)[:, -2:].T
    features = np.stack([*marginals, entropy, first - np.maximum(second, FLOOR), np.asarray(logsumexp(scores, axis=1))], axis=1)
    return np.maximum(features, FLOOR)


def feature_reading(fit: np.ndarray, y: np.ndarray, clips: np.ndarray, items: np.ndarray, *, folds: int, seed: int) -> np.ndarray:
    """Reading (N, C) by logistic regression on standardised features (M, F) and (N, F)."""
    return chosen_reading({"standardised": StandardScaler}, fit, y, clips, items, folds=folds, seed=seed).reading


# -- the probe again, with something taken away -------------------------------------------------------------------------------------


def refit(probe: FrozenProbe, fit: np.ndarray, y: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Reading (N, C) by a probe of the same family, strength and temperature fitted on residuals (M, D) and concepts ``y`` (M,)."""
    logits, seen = np.full((len(items), len(probe.concepts)), -np.inf), np.unique(y)
    logits[:, seen] = linear_logits(items, fit_linear(fit, y, probe.family, probe.strength)) if len(seen) > 1 else 0
    return softmax(logits / float(probe.temperature), axis=1)


def refit_within(
    probe: FrozenProbe, fit: np.ndarray, y: np.ndarray, known: np.ndarray, items: np.ndarray, modality: np.ndarray
) -> np.ndarray:
    """As :func:`refit`, with a probe for each modality that is fitted and read on its items alone; it gives the concepts seen there.

    For controls from which the right concept, or the modality, was taken away. One probe for all would then be biased: where the
    modality is readable in some items only, say when a premise is false, it falls back on the concept that the modalities share in the
    others, and that alone beats chance.

    Args:
        known: (M,) and modality: (N,) modalities of fit items and items.
    """
    reading = np.zeros((len(items), len(probe.concepts)))
    for name in np.unique(modality):
        reading[modality == name] = refit(probe, fit[known == name], y[known == name], items[modality == name])
    return reading


class Residualised(NamedTuple):
    """Residuals without the directions that predict the wording."""

    fit: np.ndarray
    """(M, D)"""
    items: np.ndarray
    """(N, D)"""
    removed: int
    """directions taken out, 0..D"""


def residualise(fit: np.ndarray, fit_texts: Sequence[str], items: np.ndarray, maker: str) -> Residualised:
    """Project the residuals away from all that predicts the text features linearly (the source paper's control, arXiv 2605.13737).

    Ridge regression ``standardised residual -> TF-IDF`` (alpha 1, no intercept) gives W (F, D); of its right singular vectors those
    with singular values above 1e-5 of the largest make V; then ``h - V V^T h``, which a probe standardises again. With more text features than D, that may be all there
    is: ``removed`` tells.

    Args:
        fit: (M, D) and their texts. items: (N, D). maker: key of :data:`TEXT_MAKERS`.
    """
    scaler = StandardScaler().fit(fit)
    h, g = (np.asarray(scaler.transform(part)) for part in (fit, items))
    vectors: Any = TEXT_MAKERS[maker]()
    text: np.ndarray = vectors.fit_transform(list(fit_texts)).toarray()  # (M, F)
    if text.shape[1] > text.shape[0]:
        text = np.asarray(np.linalg.qr(text.T, mode="r")).T  # (M, M): W keeps its singular values and right singular vectors
    weight = np.linalg.solve(h.T @ h + np.eye(h.shape[1]), h.T @ text)  # (D, F) = W^T
    directions, sizes, _ = np.linalg.svd(weight, full_matrices=False)
    kept = directions[:, sizes > 1e-5 * sizes[0]]
    return Residualised(h - h @ kept @ kept.T, g - g @ kept @ kept.T, kept.shape[1])


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
    test data. Clips never do across splits or grouped folds, so there it must fail, whatever the capacity of the probe: what it finds is
    a leak of clips. Across folds over *items* it can be learnt, by whatever tells a clip again: what the real task has above that is
    selectivity in their sense.
    """
    names, index = np.unique(clips, return_inverse=True)
    drawn, labels = rng.random(len(names))[index], np.zeros(len(clips), dtype=int)
    for name, share in shares.items():
        mine = modality == name
        labels[mine] = np.searchsorted(share.cumsum(), drawn[mine], side="right").clip(0, len(share) - 1)
    return labels
