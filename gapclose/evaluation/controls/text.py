"""The text control: what a classifier predicts from the words of the question alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from gapclose.data.item_set import ItemSet
from gapclose.evaluation.controls.features import Chosen, Within, chosen_reading, majority, read_features
from gapclose.evaluation.measurement import SplitMeasurement
from gapclose.metrics.bootstrap import ClipBootstrap, Interval
from gapclose.metrics.config import GapConfig
from gapclose.metrics.labels import Labels
from gapclose.probes.cross_validation import grouped_folds


def read_text(fit: ItemSet, measured_items: ItemSet, *, folds: int, seed: int) -> Chosen:
    """What the text alone tells of the measured gap items, after the labelled ones."""
    labelled, gap = fit.select(purpose="gap"), measured_items.select(purpose="gap")
    known, within = Labels.of(labelled), (labelled.modalities, gap.modalities)
    known_texts, texts = ([i.text for i in part] for part in (labelled, gap))
    return text_only(known_texts, known.concept, known.clip, texts, within=within, folds=folds, seed=seed)


def text_control(
    fit: ItemSet, measured_items: ItemSet, measured: SplitMeasurement, config: GapConfig, *, reading: np.ndarray, seed: int
) -> dict[str, Any]:
    """What the questions alone give away, and by how much the reading beats it, overall and per modality.

    What may be claimed from it is another question: :mod:`gapclose.metrics.verdict`.

    Args:
        reading: (N, C) of the measured gap items by their text alone.
    """
    gap, known = measured_items.select(purpose="gap"), Labels.of(fit.select(purpose="gap"))
    guess = majority(known.concept, len(gap), len(gap.concepts))
    result: dict[str, Any] = {"text_only": {}, "majority": {}, "reading_minus_text": {}}
    labels = Labels.of(gap)
    for scope in ("all", *sorted(set(labels.modality))):
        keep = np.ones(len(gap), dtype=bool) if scope == "all" else labels.modality == scope
        part = labels.take(keep)
        clips = ClipBootstrap(part.clip, config.replicates, seed)
        text = clips.balanced(reading[keep].argmax(1) == part.concept, part)
        found = measured.overall if scope == "all" else measured.modality[scope]
        difference = Interval.of(found["reading.balanced"] - text)
        result["text_only"][scope] = Interval.of(text).to_dict()
        result["majority"][scope] = Interval.of(clips.balanced(guess[keep].argmax(1) == part.concept, part)).to_dict()
        result["reading_minus_text"][scope] = difference.to_dict()
    return result


# -- text and options -------------------------------------------------------------------------------------------------------------

# one-character tokens stay in: a digit or a letter may be the whole clue
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
    """Reading (N, C) of ``texts`` by TF-IDF with logistic regression: what the question alone gives away.

    The better of words with word pairs and of character n-grams within words, as grouped cross-validation in fit finds it.

    Args:
        fit_texts: labelled questions, y: (M,) their concepts, clips: (M,) groups of the folds.
        texts: the questions to read. within: as in :func:`chosen_reading`.
    """
    fit, items = (np.array(list(t), dtype=object) for t in (fit_texts, texts))
    return chosen_reading(TEXT_MAKERS, fit, y, clips, items, within=within, folds=folds, seed=seed)


def text_out_of_fold(
    texts: Sequence[str], y: np.ndarray, clips: np.ndarray, chosen: Chosen, *, known: np.ndarray | None = None, folds: int, seed: int
) -> np.ndarray:
    """Reading (M, C) of the labelled ``texts`` themselves, each by a fit of the ``chosen`` features and strength without its clip.

    Args:
        known: (M,) modalities, each of which is read by itself; None: all of one.
    """
    concepts, known = int(y.max()) + 1, np.zeros(len(y), dtype=int) if known is None else known
    words, reading = np.array(list(texts), dtype=object), np.zeros((len(y), concepts))
    for train, held in grouped_folds(y, clips, folds, seed):
        part = (words[train], y[train], known[train], words[held], known[held])
        reading[held] = read_features(TEXT_MAKERS[chosen.maker], [chosen.strength], *part, concepts)[0]
    return reading
