"""Controls: what a skeptic would try before believing a reading.

Shapes: N items, C concepts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline

from gapclose.probes import grouped_folds


def text_only(fit_texts: list[str], y: np.ndarray, clips: np.ndarray, texts: list[str], *, folds: int, seed: int) -> np.ndarray:
    """Reading (N, C) of ``texts`` by TF-IDF on words and word pairs with logistic regression: what the question alone gives away.

    Args:
        fit_texts: labelled questions, y: (M,) their concepts, clips: (M,) groups of the folds that choose the regularisation.
        texts: the questions to read.
    """
    # one-character tokens stay in: a digit or a letter may be the whole clue
    vectors = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True, max_features=5000)
    settings: dict[str, Any] = {"Cs": [0.01, 0.1, 1.0, 10.0], "scoring": "neg_log_loss", "max_iter": 2000, "l1_ratios": (0.0,)}
    settings["use_legacy_attributes"] = False
    model = LogisticRegressionCV(cv=grouped_folds(y, clips, folds, seed), **settings)
    return make_pipeline(vectors, model).fit(fit_texts, y).predict_proba(texts)


def majority(y: np.ndarray, n: int, concepts: int) -> np.ndarray:
    """Reading (n, C) that always gives the class frequencies of ``y``."""
    return np.tile(np.bincount(y, minlength=concepts) / len(y), (n, 1))
