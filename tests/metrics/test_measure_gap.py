"""The gap from plain arrays: the figures of a planted world, the same numbers as a run gives, and errors that say what to pass instead."""

import json

import numpy as np
import pytest
import torch

from gapclose import Interval, measure_gap
from gapclose.metrics.bootstrap import ClipBootstrap
from gapclose.metrics.gap import statistics
from gapclose.metrics.labels import Action, Labels

N = 240


def world(seed=0, know=3.0, tell=0.0, lean=-3.0):
    """Readings, scores, labels, clips and modalities: the probe knows (d' = ``know``), the model answers by ``tell`` and leans to accept."""
    rng = np.random.default_rng(seed)
    label = rng.integers(2, size=N)
    evidence = rng.normal(size=N) + know * (label - 0.5)
    believed = 1 / (1 + np.exp(-know * evidence))
    scores = np.stack([np.zeros(N), rng.normal(size=N) + tell * (label - 0.5) + lean], 1)
    return np.stack([1 - believed, believed], 1), scores, label, np.arange(N) // 4, np.where(np.arange(N) % 4 < 2, "audio", "vision")


def test_a_planted_gap_is_found_in_every_modality():
    readings, scores, label, clips, modality = world()
    found = measure_gap(readings, scores, label, clips=clips, modality=modality, alarm=[1], replicates=500)
    assert found.n_items == N and found.n_clips == N // 4 and set(found.by_modality) == {"audio", "vision"}
    assert found.gap.lower > 0.3 and found.action.value == pytest.approx(0.5, abs=0.05) and found.reading.value > 0.88
    assert {name: of.word for name, of in found.verdict.items()} == {"audio": "real", "vision": "real"}
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["gap"]["value"] == found.gap.value
    assert found.false_alarm.value < 0.05 and found.standard_accuracy.value > 0.95


def test_the_figures_are_those_of_a_run():
    """The same arrays through the functions that a run calls."""
    readings, scores, label, clips, _ = world(1)
    found = measure_gap(readings, scores, label, clips=clips, alarm=[1], replicates=300, seed=3)
    known = Labels(
        clip=clips, modality=np.full(N, "items"), concept=label, gold=label, option_concept=np.tile([0, 1], (N, 1)), concepts=("0", "1"),
        alarm=("1",),
    )  # fmt: skip
    each = statistics(ClipBootstrap(clips, 300, 3), known, Action(chosen=scores.argmax(1), scores=scores), readings)
    for name, key in (("gap", "gap.balanced"), ("gap_matched", "gap.matched"), ("gap_auroc", "gap.auroc"), ("action", "action.balanced")):
        assert getattr(found, name) == Interval.of(each[key])


def test_torch_tensors_and_several_options_of_a_concept():
    """Half precision sums to one only nearly; two options may express one concept, and gold tells which is right."""
    readings, scores, label, *_ = world(2)
    wide = np.concatenate([scores, np.full((N, 1), -np.inf)], 1)
    concept = np.array([0, 1, 1])
    found = measure_gap(torch.tensor(readings).half(), torch.tensor(wide), torch.tensor(label), option_concept=concept, alarm=[1])
    plain = measure_gap(torch.tensor(readings).half(), torch.tensor(scores), torch.tensor(label), alarm=[1])
    assert found.action == plain.action and found.gap == plain.gap
    with pytest.raises(ValueError, match="pass gold"):
        measure_gap(readings, np.concatenate([scores, scores[:, 1:]], 1), label, option_concept=concept)


def test_an_option_without_a_concept_is_a_wrong_answer():
    """A model that always chooses it is never right; an option that is not there cannot be chosen."""
    readings, scores, label, *_ = world(3)
    third = np.concatenate([scores, np.full((N, 1), 50.0)], 1)
    found = measure_gap(readings, third, label, option_concept=[0, 1, -1], alarm=[1], replicates=100)
    assert found.action.value == 0 and found.standard_accuracy.value == 0


def test_a_control_that_knows_as_much_takes_the_verdict_away():
    readings, scores, label, clips, _ = world(4)
    found = measure_gap(readings, scores, label, clips=clips, alarm=[1], controls={"text": readings}, replicates=500)
    assert found.verdict["items"].word == "explained by text"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"readings": lambda a: np.log(a["readings"])}, "readings holds log-probabilities; pass their exponentials"),
        ({"readings": lambda a: 2 * a["readings"]}, "readings must lie between 0 and 1"),
        ({"readings": lambda a: 0.7 * a["readings"]}, "readings must sum to one over the concepts"),
        ({"readings": lambda a: np.where(np.arange(N)[:, None] == 7, np.nan, a["readings"])}, "not finite, first in row 7"),
        ({"readings": lambda a: a["readings"][:, 0]}, r"readings has shape \(240,\)"),
        ({"scores": lambda a: a["scores"][:9]}, "scores has 9 rows and readings 240"),
        ({"scores": lambda a: np.zeros((N, 3))}, "scores has 3 options and readings 2 concepts; pass option_concept"),
        ({"scores": lambda a: np.full((N, 2), -np.inf)}, "scores has no finite value in row 0"),
        ({"labels": lambda a: np.where(a["labels"] > 0, -100, 0)}, "labels has -100 in .* that is padding"),
        ({"labels": lambda a: a["labels"] + 1}, r"labels must lie in 0\.\.1"),
        ({"labels": lambda a: a["labels"] * 1.0}, "type float64; it must be one whole number"),
        ({"clips": lambda a: np.arange(3)}, r"clips has shape \(3,\)"),
        ({"alarm": lambda a: [2]}, r"alarm names concepts \[2\]"),
        ({"alarm": lambda a: [True]}, r"alarm names concepts \[True\]"),
        ({"alarm": lambda a: [0, 1]}, "alarm names every concept"),
        ({"clips": lambda a: np.where(np.arange(N) == 3, np.nan, np.arange(N))}, "clips has no value in row 3"),
        ({"clips": lambda a: [None, *map(str, range(N - 1))]}, "clips has no value in row 0"),
        ({"modality": lambda a: ["all"] * N}, "which stands for all items"),
        ({"controls": lambda a: {"majority": a["readings"]}}, r"controls\['majority'\] is there already"),
        ({"controls": lambda a: {"text": np.zeros((N, 3))}}, r"controls\['text'\] has shape"),
        ({"gold": lambda a: 1 - a["labels"]}, "does not express the right concept"),
    ],
)
def test_wrong_arrays_are_named_with_the_remedy(change, says):
    readings, scores, label, *_ = world()
    arrays = {"readings": readings, "scores": scores, "labels": label}
    arrays |= {name: made(arrays) for name, made in change.items()}
    with pytest.raises(ValueError, match=says):
        measure_gap(**arrays)


def test_tables_and_the_figure():
    found = measure_gap(*world()[:3], alarm=[1], replicates=200)
    assert found.plot().axes[0].get_xlabel().startswith("balanced accuracy")
    pandas = pytest.importorskip("pandas")
    table = found.to_pandas()
    assert isinstance(table, pandas.DataFrame) and len(table) == 18
    assert table.query("modality == 'all' and figure == 'gap'").value.item() == found.gap.value
