"""What a comparison takes from a run: operating points are chosen on val, never on test; without one, the base model answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from comparison.collect import Answers, adapted_points, untrained, untrained_front

from gapclose.core.files import read_json, write_json, write_text
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.data.jsonl import write_items
from gapclose.evaluation.baselines.compare import BUDGETS, compare
from gapclose.evaluation.baselines.operating_point import Seen
from gapclose.metrics.bootstrap import ClipBootstrap
from gapclose.metrics.labels import Labels
from gapclose.observe.store import read_observations, shard_path, write_shard
from gapclose.pipeline.config import parse_config, save_config
from gapclose.pipeline.run_dir import bind_items

CONCEPTS = ("standard", "false_vision", "false_audio")
OPTIONS = [Option(text=t, concept=c) for t, c in zip(("odd", "even", "unseen", "unheard"), (CONCEPTS[0], *CONCEPTS), strict=True)]
CLIPS = {"fit": 12, "val": 15, "test": 20}
LACKING = {"fit": 2.0, "val": 2.0, "test": 3.0}
"""nats by which content is ahead of a rejection, on average: test would choose another shift than val"""


def item_set(root: Path, permute: str = "") -> ItemSet:
    """Four questions a clip; the split ``permute`` has the labels of its items in another order."""
    items = []
    for split, clips in CLIPS.items():
        golds = [gold for c in range(clips) for gold in (c % 2, 2, c % 2, 3)]
        if permute == split:  # within a modality, so that every item may have its label
            golds[::2], golds[1::2] = golds[1::2], golds[::2]
        for n, gold in enumerate(golds):
            modality = "vision" if n % 4 < 2 else "audio"
            message = {"role": "user", "content": f"About {modality} {n}?"}
            items.append(
                Item(
                    id=f"{split}-{n}", clip=f"{split}-{n // 4}", split=split, modality=modality, purpose="gap",
                    messages=[message], options=OPTIONS, gold=gold,
                )
            )  # fmt: skip
    return ItemSet(root=root, name="planted", concepts=CONCEPTS, alarm=CONCEPTS[1:], items=tuple(items))


def scores_of(split: str, *, says: float, right: bool = True) -> np.ndarray:
    """(N, O) of a model in which a rejection gains ``says`` nats where its premise is false; content is right, or always wrong."""
    rng, count = np.random.default_rng(sum(map(ord, split))), 4 * CLIPS[split]
    n, scores = np.arange(count), rng.normal(scale=0.7, size=(count, 4))
    scores[:, :2] += LACKING[split]
    scores[n, (n // 4 + (not right)) % 2] += 2
    scores[n, np.where(n % 4 < 2, 2, 3)] += 2 + says * (n % 2)
    return scores


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """``(name, permute=split, right=bool)`` -> the directory of a run that was made of such scores, by the project's own writers."""

    def make(name: str, permute: str = "", *, right: bool = True) -> Path:
        run = tmp_path_factory.mktemp(name)
        items = item_set(run / "data", permute)
        write_items(items, items.root)
        save_config(parse_config(["--data.path", str(items.root), "--run_dir", str(run)]), run / "config.yaml")
        bind_items(items, run / "items.json")
        write_text(run / "gap.jsonl", '{"stage": "adapted/test", "epoch": 2, "state": "open"}\n')
        stages = {"base-val": ("val", 0.0, True), "base-test": ("test", 0.0, True)}
        stages |= {"epoch-2-val": ("val", 2.0, right), "adapted-test": ("test", 2.0, right)}
        for stage, (split, says, good) in stages.items():
            ids, directory = [i.id for i in items.select(split=split)], run / "observations" / stage
            directory.mkdir(parents=True)
            scores = torch.tensor(scores_of(split, says=says, right=good))
            write_shard(shard_path(directory, 0), [{"ids": ids, "answers": [], "scores": scores}])
            write_json(directory / "manifest.json", {"shards": 1, "fingerprint": stage})
        return run

    return make


def observed(run: Path, stage: str) -> np.ndarray:
    return read_observations(run / "observations" / stage).scores.numpy()


def shift_of(run: Path, answers: Answers) -> float:
    """Nats that were added to the rejections of the adapted model; content stays."""
    assert answers.scores is not None
    added = answers.scores - observed(run, "adapted-test")
    assert np.ptp(added[:, 2:]) < 1e-9 and not added[:, :2].any()
    return float(added[0, 2])


def test_labels_of_test_do_not_choose_a_shift(planted):
    """Other labels there judge the same answers otherwise; other labels of val choose others."""
    runs = [planted("plain"), planted("other-test", "test"), planted("other-val", "val")]
    (plain, edge), (test, test_edge), (val, val_edge) = (adapted_points(run) for run in runs)
    assert tuple(plain) == BUDGETS and not np.array_equal(plain[0.03].labels.gold, test[0.03].labels.gold)
    for budget in BUDGETS:
        assert np.array_equal(plain[budget].chosen, test[budget].chosen), budget
    shifts = [shift_of(run, of[0.03]) for run, of in zip(runs[:2], (plain, test), strict=True)]
    assert shifts[0] == shifts[1] != 0
    chosen = plain[0.03]
    assert np.array_equal(chosen.chosen, chosen.scores.argmax(1)) and not np.array_equal(chosen.chosen, val[0.03].chosen)
    assert shift_of(runs[0], plain[None]) != shift_of(runs[2], val[None])
    assert len(edge) > 2 and [p[0] for p in edge] == [p[0] for p in test_edge] != [p[0] for p in val_edge]
    assert [p[1:] for p in edge] != [p[1:] for p in test_edge]


def test_the_front_has_standard_accuracy_of_val_and_figures_of_test(planted):
    """Highest on val first; every point is one that a shift between neighbouring margins of val gives."""
    run = planted("front")
    _, edge = adapted_points(run)
    assert [p[0] for p in edge] == sorted((p[0] for p in edge), reverse=True)
    val, test = (observed(run, stage) for stage in ("epoch-2-val", "adapted-test"))

    def standard(scores: np.ndarray, shift: float) -> float:
        right = scores[::2, :2].argmax(1) == np.arange(len(scores) // 2) // 2 % 2
        return float(np.mean(right & (behind(scores)[::2] > shift)))

    possible = [(standard(val, a), standard(test, a), np.mean(behind(test)[1::2] < a)) for a in grid(behind(val))]
    assert {tuple(np.round(p, 6)) for p in edge} <= {tuple(np.round(p, 6)) for p in possible}


def behind(scores: np.ndarray) -> np.ndarray:
    """Nats that a rejection lacks to be the answer, (N,)."""
    return scores[:, :2].max(1) - scores[:, 2:].max(1)


def grid(margin: np.ndarray) -> np.ndarray:
    """Shifts between the margins of val, and beyond them; none."""
    rising = np.sort(margin)
    return np.concatenate([[0, rising[0] - 1, rising[-1] + 1], (rising[1:] + rising[:-1]) / 2])


def test_where_no_shift_keeps_to_the_budget_the_base_model_answers(planted):
    """An adapted model that gets every content wrong; with any loss allowed it is still its own best shift that counts."""
    run = planted("spoilt", right=False)
    found, edge = adapted_points(run)
    for budget in BUDGETS[1:]:
        assert np.array_equal(found[budget].scores, observed(run, "base-test").astype(float)), budget
        assert np.array_equal(found[budget].chosen, observed(run, "base-test").argmax(1))
    assert shift_of(run, found[None]) > 0 and {p[0] for p in edge} == {0.0}


# -- methods without training ---------------------------------------------------------------------------------------------------------


def measured(run: Path, permute: str = "") -> Path:
    """The run with ``measurement.json``, of what the labels of its own items choose and judge."""
    items = item_set(run, permute)

    def seen(split: str) -> tuple[Seen, Labels]:
        labels, scores = Labels.of(items.select(split=split)), scores_of(split, says=0.7)
        rng = np.random.default_rng(len(scores))
        false = np.arange(len(scores)) % 2
        residual, belief = rng.normal(size=(len(scores), 3)) + false[:, None], np.clip(rng.normal(0.3 + 0.4 * false, 0.2), 0.02, 0.98)
        vision = np.arange(len(scores)) % 4 < 2
        reading = np.stack([1 - belief, belief * vision, belief * ~vision], axis=1)
        return Seen(
            scores=scores, option_concept=labels.option_concept, residual=residual, reading=reading, text=reading[:, [0, 2, 1]]
        ), labels

    (fit, known), val, (test, labels) = (seen(split) for split in ("fit", "val", "test"))
    found = compare(fit, known, test, labels, ClipBootstrap(labels.clip, 10, 0), val=val, folds=2, seed=0)
    write_json(run / "measurement.json", {"baselines": found})
    return run


@pytest.fixture(scope="module")
def untrained_runs(planted):
    """As it is, with other labels of test, with other labels of val."""
    return [measured(planted("untrained", split), split) for split in ("", "test", "val")]


@pytest.mark.slow
def test_labels_of_test_do_not_choose_settings(untrained_runs):
    """Every method answers test as it did, at every budget, and has the same front on val; with other labels of val it does not."""
    fronts = [untrained_front(run) for run in untrained_runs]
    for budget in BUDGETS:
        plain, test, val = (untrained(run, budget) for run in untrained_runs)
        assert set(plain) == {"pgla", "pgla_wide", "shift", "shift_each", "pgla_text", "text", "probe"} == set(fronts[0])
        assert all(np.array_equal(plain[name].chosen, test[name].chosen) for name in plain)
        assert any(not np.array_equal(plain[name].chosen, val[name].chosen) for name in plain)
        assert all(not np.array_equal(a.labels.gold, test[name].labels.gold) for name, a in plain.items())
    for name, edge in fronts[0].items():
        assert [p[0] for p in edge] == [p[0] for p in fronts[1][name]] and [p[1:] for p in edge] != [p[1:] for p in fronts[1][name]]
        assert edge != fronts[2][name]


def test_what_was_not_chosen_on_val_is_refused(untrained_runs, planted):
    """Nor a budget that nobody measured, nor a measurement without any method."""
    run, found = planted("refused"), read_json(untrained_runs[0] / "measurement.json")
    path = run / "measurement.json"
    write_json(path, found)
    with pytest.raises(ValueError, match="pgla has no point at a budget of 0.5"):
        untrained(run, 0.5)
    write_json(path, {"baselines": found["baselines"] | {"chosen_on": "fit"}})
    with pytest.raises(ValueError, match="were not chosen on val"):
        untrained(run, 0.03)
    write_json(path, {"baselines": None})
    with pytest.raises(ValueError, match="no inference-time baselines"):
        untrained(run, 0.03)
