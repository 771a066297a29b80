"""Controls: what the words alone give away, and nothing more."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from gapclose.controls import majority, text_only


def questions(n: int, seed: int, telling: bool) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Questions about a digit; where ``telling``, the concept is a one-character word of the text."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    digit = (3 * rng.integers(3, size=n) + y) if telling else rng.integers(9, size=n)
    return [f"The image shows the digit {d}. Is it odd or even?" for d in digit], y, np.repeat(np.arange(n // 3), 3)


@pytest.mark.parametrize(("telling", "low", "high"), [(True, 0.99, 1.0), (False, 0.2, 0.47)])
def test_text_only_reads_single_characters_and_nothing_that_is_not_there(telling, low, high):
    """Judged on other clips than those it was fitted on."""
    texts, y, clips = questions(150, 0, telling)
    others, truth, _ = questions(300, 1, telling)
    reading = text_only(texts, y, clips, others, folds=3, seed=0)
    assert reading.shape == (300, 3)
    np.testing.assert_allclose(reading.sum(1), 1)
    assert low <= balanced_accuracy_score(truth, reading.argmax(1)) <= high
    np.testing.assert_array_equal(reading, text_only(texts, y, clips, others, folds=3, seed=0))


def test_majority_gives_the_class_frequencies():
    """To every item, also for a class that never occurs."""
    np.testing.assert_allclose(majority(np.array([0, 0, 2, 0]), 2, 4), [[0.75, 0, 0.25, 0]] * 2)
