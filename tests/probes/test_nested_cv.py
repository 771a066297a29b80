"""Nested choice of the layer: honest where the best of many settings is flattered."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gapclose.probes.config import ProbeConfig
from gapclose.probes.nested_cv import nested_reading
from gapclose.probes.search import choose_probe

CONFIG = ProbeConfig(families=["mean_difference"], folds=3)


def layers(n_layers: int, telling: dict[int, float], seed: int, n: int = 120, width: int = 16):
    """Noise at every layer, with the class added at the ``telling`` ones; four items a clip."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % 2)
    states = {layer: rng.normal(size=(n, width)) for layer in range(1, n_layers + 1)}
    for layer, strength in telling.items():
        states[layer][:, :2] += strength * np.eye(2)[y]
    return {layer: torch.tensor(z) for layer, z in states.items()}, y, np.repeat(np.arange(n // 4), 4)


def test_the_best_of_many_empty_layers_looks_good_and_the_nested_reading_is_chance():
    """24 layers of noise: what is chosen and judged on the same folds is above one half, nested it is one half."""
    flattered, honest = [], []
    for seed in range(12):
        residuals, y, clips = layers(24, {}, seed)
        found = choose_probe(residuals, y, clips, ("no", "yes"), CONFIG, layers=range(1, 25), seed=seed)
        flattered.append((found.reading.argmax(1) == y).mean())
        nested = nested_reading(residuals, y, clips, ("no", "yes"), CONFIG, layers=range(1, 25), seed=seed)
        honest.append((nested.reading.argmax(1) == y).mean())
    error = np.std(honest) / np.sqrt(12)
    assert np.mean(flattered) > 0.54 and abs(np.mean(honest) - 0.5) < 3 * error < 0.06


def test_a_telling_layer_is_chosen_in_every_fold_and_read_as_well_as_it_can_be():
    """Selection costs nothing where one layer is clearly best."""
    residuals, y, clips = layers(6, {4: 3.0, 5: 1.0}, 0)
    nested = nested_reading(residuals, y, clips, ("no", "yes"), CONFIG, layers=range(1, 7), folds=5, seed=0)
    assert nested.chosen == [((4,), "mean_difference", 1.0)] * 5
    assert (nested.reading.argmax(1) == y).mean() > 0.9 and nested.reading.sum(1) == pytest.approx(1)


def test_no_reading_depends_on_the_labels_of_its_own_outer_fold(monkeypatch):
    """Turn every label of one fold over: its readings stay bit for bit, and all the others change."""
    residuals, y, clips = layers(4, {2: 1.0}, 0)
    parts = [(np.flatnonzero(clips % 3 != k), np.flatnonzero(clips % 3 == k)) for k in range(3)]
    monkeypatch.setattr("gapclose.probes.nested_cv.grouped_folds", lambda *_: parts)  # the labels decide the split as well: hold it

    def read(labels):
        return nested_reading(residuals, labels, clips, ("no", "yes"), CONFIG, layers=(1, 2, 3, 4), seed=0)

    first, turned = read(y), read(np.where(clips % 3 == 0, 1 - y, y))
    np.testing.assert_array_equal(first.reading[clips % 3 == 0], turned.reading[clips % 3 == 0])
    assert first.chosen[0] == turned.chosen[0] and (first.reading[clips % 3 > 0] != turned.reading[clips % 3 > 0]).all()


@pytest.mark.parametrize("clips", [1, 2])
def test_too_few_clips_for_the_folds_are_refused(clips):
    """In the words of the probes."""
    residuals, y, _ = layers(2, {}, 0, n=8)
    with pytest.raises(ValueError, match=f"{clips} clips cannot make 3 folds"):
        nested_reading(residuals, y, np.arange(8) % clips, ("no", "yes"), CONFIG, layers=(1, 2), seed=0)
