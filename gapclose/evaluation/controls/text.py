"""The text control: a classifier that sees only the words of the question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from gapclose.data.item_set import ItemSet
from gapclose.evaluation.controls.features import Chosen, Within, chosen_reading, majority, read_features
from gapclose.evaluation.controls.scoring import named
from gapclose.evaluation.measurement import SplitMeasurement
from gapclose.metrics.bootstrap import ClipBootstrap, Interval
from gapclose.metrics.config import GapConfig
from gapclose.metrics.labels import Labels
from gapclose.probes.cross_validation import grouped_folds


def read_text(fit: ItemSet, measured_items: ItemSet, *, folds: int, seed: int) -> Chosen:
    """Return the text-only reading of the measured gap items, fitted on the labelled ones."""
    labelled, gap = fit.select(purpose="gap"), measured_items.select(purpose="gap")
    known, within = Labels.of(labelled), (labelled.modalities, gap.modalities)
    known_texts, texts = ([i.text for i in part] for part in (labelled, gap))
    return text_only(known_texts, known.concept, known.clip, texts, within=within, folds=folds, seed=seed)


def text_control(
    fit: ItemSet, measured_items: ItemSet, measured: SplitMeasurement, config: GapConfig, *, reading: np.ndarray, seed: int
) -> dict[str, Any]:
    """Score the text-only reading, the majority class, and the probe's advantage over the text.

    Each is given overall and per modality. Text and majority class are judged among the concepts of
    the modality (:func:`gapclose.evaluation.controls.scoring.named`).
    :mod:`gapclose.metrics.verdict` decides what follows from it.

    Args:
        reading: (N, C) text-only reading of the measured gap items.
    """
    gap, known = measured_items.select(purpose="gap"), Labels.of(fit.select(purpose="gap"))
    guess = majority(known.concept, len(gap), len(gap.concepts))
    result: dict[str, Any] = {"text_only": {}, "majority": {}, "reading_minus_text": {}}
    labels = Labels.of(gap)
    for scope in ("all", *sorted(set(labels.modality))):
        keep = np.ones(len(gap), dtype=bool) if scope == "all" else labels.modality == scope
        part = labels.take(keep)
        clips = ClipBootstrap(part.clip, config.replicates, seed)
        text = clips.balanced(named(reading[keep], part) == part.concept, part)
        found = measured.overall if scope == "all" else measured.modality[scope]
        difference = Interval.of(found["reading.balanced"] - text)
        result["text_only"][scope] = Interval.of(text).to_dict()
        result["majority"][scope] = Interval.of(clips.balanced(named(guess[keep], part) == part.concept, part)).to_dict()
        result["reading_minus_text"][scope] = difference.to_dict()
    return result


# -- text and options -------------------------------------------------------------------------

# one-character tokens are kept, because a single digit or letter may be the clue
TEXT_MAKERS: dict[str, Callable[[], TfidfVectorizer]] = {
    "words": lambda: TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True, max_features=5000),
    "characters": lambda: TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 5), sublinear_tf=True, max_features=5000),
}


def text_only(
    fit_texts: Sequence[str],
    y: np.ndarray,
    clips: np.ndarray,
    texts: Sequence[str],
    *,
    within: Within | None = None,
    folds: int,
    seed: int,
) -> Chosen:
    """Return the reading (N, C) of ``texts`` by TF-IDF with logistic regression.

    Features are words with word pairs, or character n-grams within words: the better by grouped
    cross-validation in fit.

    Args:
        fit_texts: labelled questions, y: (M,) their concepts, clips: (M,) groups of the folds.
        texts: the questions to read. within: as in :func:`chosen_reading`.
    """
    fit, items = (np.array(list(t), dtype=object) for t in (fit_texts, texts))
    return chosen_reading(TEXT_MAKERS, fit, y, clips, items, within=within, folds=folds, seed=seed)


def text_out_of_fold(
    texts: Sequence[str], y: np.ndarray, clips: np.ndarray, chosen: Chosen, *, known: np.ndarray | None = None, folds: int, seed: int
) -> np.ndarray:
    """Return the out-of-fold reading (M, C) of the labelled ``texts``.

    It uses the ``chosen`` features and strength, and folds that never split a clip.

    Args:
        known: (M,) modalities, each read separately; None: all of one.
    """
    concepts, known = int(y.max()) + 1, np.zeros(len(y), dtype=int) if known is None else known
    words, reading = np.array(list(texts), dtype=object), np.zeros((len(y), concepts))
    for train, held in grouped_folds(y, clips, folds, seed):
        part = (words[train], y[train], known[train], words[held], known[held])
        reading[held] = read_features(TEXT_MAKERS[chosen.maker], [chosen.strength], *part, concepts)[0]
    return reading
