"""Controls: what the words, the lengths or meaningless labels give away, on planted data, and nothing more."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.evaluation.config import ControlsConfig
from gapclose.evaluation.controls.blank_media import blank_controls, blank_sets, blank_stage
from gapclose.evaluation.controls.features import action_features, feature_reading, majority, option_features
from gapclose.evaluation.controls.mdl import clip_blocks, codelength, online_bits
from gapclose.evaluation.controls.random_labels import clip_labels, concept_shares, shuffled
from gapclose.evaluation.controls.residualize import residualise  # fmt: skip
from gapclose.evaluation.controls.scoring import Control, ControlScorer, chance, named
from gapclose.evaluation.controls.sentence_encoder import encode
from gapclose.evaluation.controls.text import TEXT_MAKERS, text_control, text_only
from gapclose.metrics.bootstrap import Interval
from gapclose.metrics.config import GapConfig
from gapclose.metrics.labels import Labels
from gapclose.probes.linear import FrozenProbe, fit_linear
from gapclose.probes.refit import refit, refit_within

CONCEPTS, WIDTH = ("standard", "false_vision", "false_audio"), 12


def questions(n: int, seed: int, telling: bool) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Questions about a digit; where ``telling``, the concept is a one-character word of the text."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    digit = (3 * rng.integers(3, size=n) + y) if telling else rng.integers(9, size=n)
    return [f"The image shows the digit {d}. Is it odd or even?" for d in digit], y, np.repeat(np.arange(n // 3), 3)


def planted(clips: int, seed: int, signal: float = 3.0) -> tuple[np.ndarray, Labels]:
    """Residuals (N, D) of four items a clip: dimension 0 tells the modality, 1 whether the premise is false, the last three the clip."""
    rng = np.random.default_rng(seed)
    modality, false = np.tile(["vision", "vision", "audio", "audio"], clips), np.tile([0, 1, 0, 1], clips)
    concept = np.where(false == 1, np.where(modality == "vision", 1, 2), 0)
    z = rng.normal(size=(4 * clips, WIDTH))
    z[:, 0] += 6 * (modality == "vision")
    z[:, 1] += signal * false
    z[:, -3:] = np.repeat(rng.normal(size=(clips, 3)), 4, axis=0)
    labels = Labels(
        clip=np.repeat([f"{seed}-{c}" for c in range(clips)], 4), modality=modality, concept=concept, gold=concept,
        option_concept=np.tile([0, 1, 2], (4 * clips, 1)), concepts=CONCEPTS, alarm=CONCEPTS[1:],
    )  # fmt: skip
    return z, labels


def probe_of(z: np.ndarray, y: np.ndarray, family: str = "logistic", strength: float = 0.1) -> FrozenProbe:
    mean, scale, weight, bias = fit_linear(z, y, family, strength)
    return FrozenProbe(
        mean=mean, scale=scale, weight=weight, bias=bias, temperature=1.0, layers=[1], family=family, strength=strength, concepts=CONCEPTS
    )


@pytest.fixture(scope="module")
def world():
    """Fit and test residuals with their labels, and the probe of fit."""
    (z_fit, fit), (z, test) = planted(60, 1), planted(60, 2)
    return z_fit, fit, z, test, probe_of(z_fit, fit.concept)


def judge_of(world) -> ControlScorer:
    _, _, z, test, probe = world
    return ControlScorer(test, probe.predict_proba(torch.tensor(z)), 200, 0)


# -- text and options -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("telling", "low", "high"), [(True, 0.99, 1.0), (False, 0.2, 0.47)])
def test_text_only_reads_single_characters_and_nothing_that_is_not_there(telling, low, high):
    """Judged on other clips than those it was fitted on."""
    texts, y, clips = questions(150, 0, telling)
    others, truth, _ = questions(300, 1, telling)
    reading = text_only(texts, y, clips, others, folds=3, seed=0).reading
    assert reading.shape == (300, 3)
    np.testing.assert_allclose(reading.sum(1), 1)
    assert low <= balanced_accuracy_score(truth, reading.argmax(1)) <= high
    np.testing.assert_array_equal(reading, text_only(texts, y, clips, others, folds=3, seed=0).reading)


def test_a_text_that_tells_all_but_the_modality_is_read_within_it():
    """The words say that a premise is false, and not of what; who asks knows that. One model for both would find half of it."""
    rng = np.random.default_rng(0)
    modality, false = np.tile(["vision", "audio"], 120), rng.random(240) < 0.5
    y = np.where(false, np.where(modality == "vision", 1, 2), 0)
    texts = [f"{rng.choice(['cat', 'dog', 'car'])} {'suddenly' if f else 'slowly'} moves" for f in false]
    clips, fit, test = np.arange(240), slice(120), slice(120, None)
    within = (modality[fit], modality[test])
    read = [text_only(texts[fit], y[fit], clips[fit], texts[test], within=w, folds=3, seed=0).reading for w in (within, None)]
    right = [balanced_accuracy_score(y[test], r.argmax(1)) for r in read]
    assert right[0] == 1 and right[1] < 0.8
    assert read[0][modality[test] == "vision", 2].max() == 0  # no such concept there
    lone = text_only(texts[fit], y[fit], clips[fit], ["new"], within=(modality[fit], np.array(["touch"])), folds=3, seed=0).reading
    np.testing.assert_allclose(lone[0], np.bincount(y[fit]) / 120)


def test_text_only_finds_what_only_characters_or_only_word_pairs_tell():
    """An ending that many words share, and two words whose order tells: each is read by the features that see it."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    stems = ["".join(rng.choice(list("bcdfgklmnprstv"), 5)) for _ in y]  # no word twice
    endings = [f"{stem}{'ize' if k else 'our'}" for stem, k in zip(stems, y, strict=True)]
    orders = ["left right" if k else "right left" for k in y]
    clips = np.arange(120)
    for texts, maker in ((endings, "characters"), (orders, "words")):
        found = text_only(texts[:80], y[:80], clips[:80], texts[80:], folds=3, seed=0)
        assert found.maker == maker and (found.reading.argmax(1) == y[80:]).all()


def test_majority_gives_the_class_frequencies():
    """To every item, also for a class that never occurs."""
    np.testing.assert_allclose(majority(np.array([0, 0, 2, 0]), 2, 4), [[0.75, 0, 0.25, 0]] * 2)


def test_nothing_is_fitted_on_the_items_that_are_read(monkeypatch):
    """Vectors and scales see the fit texts alone, and inside fit only those of the training folds."""
    seen: list[int] = []

    class Spy:
        def fit(self, values):
            seen.append(len(values))
            assert not set(values) & {"never fitted"}
            return self

        def transform(self, values):
            return np.array([[len(v)] for v in values], dtype=float)

    monkeypatch.setattr("gapclose.evaluation.controls.text.TEXT_MAKERS", {"spy": Spy})
    texts, y, clips = questions(30, 0, True)
    text_only(texts, y, clips, ["never fitted"] * 4, folds=3, seed=0)
    assert len(seen) == 4 and sum(seen[:3]) == 2 * 30 and seen[3] == 30


def option_item(n: int, order: list[int], text: str = "Odd or even?") -> Item:
    options = [Option(text=t, concept=c) for t, c in (("odd", "standard"), ("unseen", "false_vision"), ("not heard", "false_audio"))]
    mixed = [options[k] for k in order]
    message = {"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": text}]}
    return Item(id=str(n), clip=str(n), split="fit", modality="vision", messages=[message], options=mixed, gold=0)


def test_options_in_a_telling_order_are_found():
    """Where the right concept always comes first, the order gives it away; the texts of options do not enter, their lengths do."""
    rng = np.random.default_rng(0)
    orders = [[k, *rng.permutation([j for j in range(3) if j != k])] for k in np.arange(90) % 3]
    items = [option_item(n, o) for n, o in enumerate(orders)]
    features = option_features(items, CONCEPTS, 3, len)
    assert features.shape == (90, 4 + 3 * 5 + 3 * 3)
    np.testing.assert_array_equal(features[0, :4], [3, len("Odd or even?"), 3, len("Odd or even?")])
    reading = feature_reading(features[:60], np.arange(60) % 3, np.arange(60), features[60:], folds=3, seed=0)
    assert (reading.argmax(1) == np.arange(60, 90) % 3).all()
    same = replace(items[0], options=[replace(o, text=o.text[::-1]) for o in items[0].options])
    np.testing.assert_array_equal(option_features([same], CONCEPTS, 3, len)[0], features[0])
    assert option_features([option_item(0, [0])], CONCEPTS, 3, len).shape == (1, features.shape[1])


def test_the_scores_of_the_model_become_concepts_entropy_and_margin():
    """Options that express one concept count together; a concept without options has next to nothing."""
    scores = np.array([[*np.log([0.2, 0.2, 0.1]), -np.inf], [*np.log([0.05, 0.15, 0.3]), -np.inf]])
    option_concept = np.array([[0, 0, 1, -1], [0, 0, 2, -1]])
    found = action_features(scores, option_concept, 3)
    np.testing.assert_allclose(np.exp(found[:, :3]), [[0.8, 0.2, 0], [0.4, 0, 0.6]], atol=1e-12)
    np.testing.assert_allclose(found[0, 3:], [-(0.8 * np.log(0.4) + 0.2 * np.log(0.2)), 0, np.log(0.5)], atol=1e-12)
    assert np.isfinite(found).all()


# -- the probe again ------------------------------------------------------------------------------------------------------------------


def test_a_probe_on_planted_signal_beats_shuffled_labels(world):
    """The reading is far above, the shuffled one at chance: it still knows the modality, and no more."""
    z_fit, fit, z, test, probe = world
    rng = np.random.default_rng(0)
    mixed = [shuffled(fit.concept, fit.modality, rng) for _ in range(8)]
    for y in mixed:
        for name in ("vision", "audio"):
            mine = fit.modality == name
            assert np.bincount(y[mine]).tolist() == np.bincount(fit.concept[mine]).tolist()
    judge = judge_of(world)
    readings = [refit_within(probe, z_fit, y, fit.modality, z, test.modality) for y in mixed]
    control = Control(name="s", label="", question="", readings=readings, at_chance=True)
    entry = judge.entry(control)
    scopes = ("all", "audio", "vision")
    assert entry.chance == dict.fromkeys(scopes, 0.5) and chance(test) == 0.5 and False not in entry.at_chance.values()
    loose = ControlScorer(test, probe.predict_proba(torch.tensor(z)), 200, 0, detectable=0.5).entry(control)
    assert loose.at_chance == dict.fromkeys(scopes, True)
    strict = ControlScorer(test, probe.predict_proba(torch.tensor(z)), 200, 0, detectable=1e-6).entry(control)
    assert strict.at_chance == dict.fromkeys(scopes)  # holds chance, and all that matters besides
    assert entry.difference["all"].lower > 0.2 and entry.balanced["vision"].value == pytest.approx(0.5, abs=0.12)
    both = entry.balanced["all"].value + entry.difference["all"].value
    assert both == pytest.approx(float(judge.reading["all"].balanced[0]))


def test_a_random_label_per_clip_is_at_chance_on_new_clips_and_learnt_by_heart_on_old_ones(world):
    """Three dimensions tell the clip: with items of a clip on both sides of a fold, the control task can be learnt, across splits not."""
    z_fit, fit, z, test, _ = world
    nearest = probe_of(z_fit, fit.concept, "logistic", 1.0)
    shares, rng = concept_shares(fit.concept, fit.modality, 3), np.random.default_rng(0)
    np.testing.assert_allclose([shares["vision"], shares["audio"]], [[0.5, 0.5, 0], [0.5, 0, 0.5]])
    drawn = [clip_labels(fit.clip, fit.modality, shares, rng) for _ in range(6)]
    truth = [clip_labels(test.clip, test.modality, shares, rng) for _ in range(6)]
    for y in drawn:
        assert all(len(set(y[(fit.clip == c) & (fit.modality == m)])) == 1 for c in set(fit.clip) for m in ("vision", "audio"))
        assert set(y[fit.modality == "audio"]) <= {0, 2}
    readings = [refit(nearest, z_fit, y, z) for y in drawn]
    entry = judge_of(world).entry(Control(name="r", label="", question="", readings=readings, concepts=truth, at_chance=True))
    assert entry.at_chance["all"] and entry.chance["all"] == 0.5
    few, known = planted(6, 3, signal=0.0)  # six clips in twelve dimensions: the last three tell them apart
    y = clip_labels(known.clip, known.modality, concept_shares(known.concept, known.modality, 3), np.random.default_rng(5))
    even = np.arange(len(y)) % 2 == 0
    inside = refit(nearest, few[even], y[even], few[~even])
    assert (inside.argmax(1) == y[~even]).mean() > 0.8


def test_a_clip_in_both_splits_shows_in_the_random_labels(world):
    """Under another name, with the same media: one label on both sides, so a probe that tells the clip again is far above chance."""
    z_fit, fit, *_ = world
    telling = np.eye(60)[np.unique(fit.clip, return_inverse=True)[1]] + 0.01 * z_fit[:, :1]
    probe = probe_of(telling, fit.concept, "logistic", 1.0)
    shares, rng = concept_shares(fit.concept, fit.modality, 3), np.random.default_rng(0)
    other = replace(fit, clip=np.array([f"copy-{c}" for c in fit.clip]))
    found = {}
    for name, keys in (("by media", np.concatenate([fit.clip, fit.clip])), ("by name", np.concatenate([fit.clip, other.clip]))):
        both = [clip_labels(keys, np.tile(fit.modality, 2), shares, rng) for _ in range(4)]
        drawn, truth = ([y[part] for y in both] for part in (slice(240), slice(240, None)))
        readings = [refit_within(probe, telling, y, fit.modality, telling, fit.modality) for y in drawn]
        control = Control(name="r", label="", question="", readings=readings, concepts=truth, at_chance=True)
        found[name] = ControlScorer(other, probe.predict_proba(torch.tensor(telling)), 200, 0).entry(control).balanced["all"].value
    assert found["by media"] > 0.95 and found["by name"] < 0.65


def test_a_probe_of_another_label_gives_every_concept_a_place(world):
    """A concept that the drawn labels lack has probability zero; columns stay those of the concepts."""
    z_fit, fit, z, _, probe = world
    reading = refit(probe, z_fit, np.where(fit.concept == 2, 0, fit.concept), z)
    assert reading.shape == (len(z), 3) and not reading[:, 2].any()
    np.testing.assert_allclose(reading.sum(1), 1)
    np.testing.assert_allclose(refit(probe, z_fit, fit.concept, z), probe.predict_proba(torch.tensor(z)), atol=1e-6)
    np.testing.assert_array_equal(refit(probe, z_fit, np.ones_like(fit.concept), z[:2]), [[0, 1, 0]] * 2)  # nothing to fit


def test_residualising_takes_out_what_the_text_tells_and_leaves_the_rest():
    """Where the words tell the concept, nothing is read afterwards; where they tell something else, the reading stays."""
    z_fit, fit = planted(100, 1)
    z, test = planted(100, 2)
    probe = probe_of(z_fit, fit.concept)
    words = {0: "right", 1: "wrong", 2: "wrong"}

    def read(texts) -> tuple[float, int]:
        left = residualise(z_fit, texts, z, "words")
        assert np.linalg.matrix_rank(left.fit, tol=1e-6) == WIDTH - left.removed
        reading = refit_within(probe, left.fit, fit.concept, fit.modality, left.items, test.modality)
        return float(ControlScorer(test, reading, 100, 0).reading["all"].balanced[0]), left.removed

    leaky, removed = read([f"{m} {words[c]}" for m, c in zip(fit.modality, fit.concept, strict=True)])
    assert leaky < 0.6 and 1 <= removed < WIDTH
    kept, removed = read([f"about {m}" for m in fit.modality])
    assert kept > 0.85 and removed == 1


def test_a_probe_for_each_modality_is_at_chance_where_one_for_all_is_not():
    """Modality readable only where the premise is false: shuffled labels then beat chance with one probe, and not with one for each."""
    rng = np.random.default_rng(0)
    (z_fit, fit), (z, test) = planted(100, 1), planted(100, 2)
    for values, labels in ((z_fit, fit), (z, test)):
        values[labels.concept == 0, 0] = rng.normal(size=(labels.concept == 0).sum())
        values[labels.concept > 0, 0] += 3 * np.where(labels.concept[labels.concept > 0] == 1, 1, -4)
    probe, judge = probe_of(z_fit, fit.concept), ControlScorer(test, np.eye(3)[test.concept], 100, 0)
    mixed = [shuffled(fit.concept, fit.modality, rng) for _ in range(20)]
    one = [refit(probe, z_fit, y, z) for y in mixed]
    each = [refit_within(probe, z_fit, y, fit.modality, z, test.modality) for y in mixed]
    found = {k: np.mean([judge.judge("all", r).balanced[0] for r in readings]) for k, readings in (("one", one), ("each", each))}
    assert found["one"] > 0.6 and found["each"] == pytest.approx(0.5, abs=0.05), found
    whole = refit_within(probe, z_fit, fit.concept, fit.modality, z, test.modality)
    assert not whole[test.modality == "vision", 2].any() and judge.judge("all", whole).balanced[0] > 0.85


def test_residualising_with_more_features_than_items_is_the_same_projection():
    """The features are folded to as many as there are items first; the directions are those of the plain decomposition."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefgh"), 12)) for _ in range(20)]
    z = rng.normal(size=(20, 30))
    left = residualise(z, texts, z, "characters")
    h = (z - z.mean(0)) / z.std(0)
    text = TEXT_MAKERS["characters"]().fit_transform(texts).toarray()
    assert text.shape[1] > 20
    weight = np.linalg.solve(h.T @ h + np.eye(30), h.T @ text).T  # (F, D)
    _, sizes, right = np.linalg.svd(weight, full_matrices=False)
    v = right[sizes > 1e-5 * sizes[0]].T
    assert left.removed == v.shape[1]
    np.testing.assert_allclose(left.fit, h - h @ v @ v.T, atol=1e-6)


# -- codelength -----------------------------------------------------------------------------------------------------------------------


def test_codelength_compresses_planted_signal_and_not_noise(world):
    """Signal takes fewer bits than shuffled labels, which gain only what the modality rules out; noise gains nothing at all."""
    z_fit, fit, _, _, probe = world
    found = codelength(z_fit, fit.concept, fit.modality, fit.clip, probe, draws=3, rng=np.random.default_rng(0))
    assert found.uniform_bits == pytest.approx(240 * np.log2(3))
    assert found.compression == pytest.approx(found.uniform_bits / found.online_bits)
    assert found.compression > 1.5 * found.control_compression and found.control_compression > 1.1
    noise = np.random.default_rng(0).normal(size=z_fit.shape)
    nothing = codelength(noise, fit.concept, fit.modality, fit.clip, probe, draws=2, rng=np.random.default_rng(0))
    assert nothing.compression < 1.08 and abs(nothing.compression - nothing.control_compression) < 0.06


def test_blocks_hold_whole_clips_and_everything_once():
    """A clip that were partly sent could be told again."""
    clips = np.repeat(np.arange(30), 4)
    blocks = clip_blocks(clips, np.random.default_rng(0))
    assert sorted(np.concatenate(blocks).tolist()) == list(range(120)) and [len(b) // 4 for b in blocks] == [2, 1, 3, 6, 9, 9]
    owners = [set(clips[b]) for b in blocks]
    assert sum(len(o) for o in owners) == 30


def test_every_item_costs_the_uniform_code_until_two_concepts_were_sent():
    """And one that was never seen costs bits, but not endlessly many."""
    z, y = np.random.default_rng(0).normal(size=(12, 2)), np.array([0] * 8 + [1] * 4)
    blocks = [np.arange(0, 4), np.arange(4, 8)]
    assert online_bits(z, y, blocks, 4, "logistic", 1.0) == 16
    assert 16 < online_bits(z, y, [*blocks, np.arange(8, 12)], 4, "logistic", 1.0) == 24
    three = np.array([0, 1] * 4 + [2] * 4)
    assert np.isfinite(online_bits(z, three, [*blocks, np.arange(8, 12)], 4, "logistic", 1.0))
    tiny = [np.array([0, 1]), np.arange(2, 8)]  # a clip of two items that hold both concepts: nothing to fit a discriminant to
    assert online_bits(z, np.arange(16) % 2, tiny, 2, "lda", 0.5) == 8


# -- judged ---------------------------------------------------------------------------------------------------------------------------


def test_chance_is_that_of_whoever_knows_the_modality_alone():
    """Modalities over cells, whatever the number of items; and an interval off it is told."""
    _, labels = planted(5, 0)
    assert chance(labels) == 0.5 and chance(labels.take(labels.modality == "vision")) == 0.5
    uneven = labels.take((labels.modality == "vision") | (labels.concept == 0))
    assert chance(uneven) == pytest.approx(2 / 3)
    reading = np.eye(3)[labels.concept]
    judge = ControlScorer(labels, reading, 100, 0)
    entry = judge.entry(Control(name="p", label="", question="", readings=[reading], at_chance=True))
    assert entry.at_chance == {"all": False, "audio": False, "vision": False} and entry.difference["all"].value == 0
    assert judge.entry(Control(name="p", label="", question="", readings=[reading])).at_chance is None


def test_a_control_at_chance_is_judged_among_the_concepts_of_the_modality():
    """One that knows nothing names the alarm of the other modality in a third of the items, and is at chance all the same."""
    _, labels = planted(400, 0)
    reading = np.random.default_rng(0).dirichlet(np.ones(3), len(labels.concept))
    judge = ControlScorer(labels, np.eye(3)[labels.concept], 200, 0)
    control = Control(name="c", label="", question="", readings=[reading], at_chance=True)
    found, apart = judge.entry(control), judge.entry(replace(control, at_chance=False))
    assert found.at_chance == {"all": True, "audio": True, "vision": True}
    assert judge.outside(control) == pytest.approx(1 / 3, abs=0.05) and apart.balanced["all"].value < 0.4
    assert found.auroc == apart.auroc  # which sums all alarms
    telling = replace(control, readings=[(reading + 0.5 * np.eye(3)[labels.concept]) / 1.5])
    assert set(judge.entry(telling).at_chance.values()) == {False}  # what it knows still shows
    inside = replace(control, readings=[np.where(np.arange(3) == np.where(labels.modality == "vision", 2, 1)[:, None], 0, reading)])
    assert judge.outside(inside) == 0 and judge.entry(inside).balanced == judge.entry(replace(inside, at_chance=False)).balanced


def test_modalities_without_a_common_concept_have_a_majority_class_at_chance():
    """The commonest concept of all is none of the other modality's; nor does certainty of it leave a modality without a name."""
    _, labels = planted(30, 0)
    labels = replace(labels, concept=np.where(labels.modality == "vision", labels.concept, labels.concept + 2), concepts=tuple("abcd"))
    labels = replace(labels, concept=np.where(labels.concept == 4, 3, labels.concept), alarm=("b", "d"))
    assert [sorted(set(labels.concept[labels.modality == m])) for m in ("vision", "audio")] == [[0, 1], [2, 3]]
    reading = majority(np.array([0, 0, 0, 1, 2, 3]), len(labels.concept), 4)
    entry = ControlScorer(labels, np.eye(4)[labels.concept], 100, 0).entry(
        Control(name="m", label="", question="", readings=[reading], at_chance=True)
    )
    assert entry.at_chance == {"all": True, "audio": True, "vision": True} and entry.balanced["audio"].value == 0.5
    assert named(np.eye(4)[np.zeros(len(reading), dtype=int)], labels).tolist() == np.where(labels.modality == "vision", 0, 2).tolist()


def test_the_record_counts_text_and_majority_class_as_the_controls_do(tmp_path):
    """Among the concepts of the modality, so that a certain but foreign name is a guess and no less."""
    message = [{"role": "user", "content": "?"}]
    items = [
        Item(id=f"{n}", clip=f"{n // 2}", split="test", modality=m, messages=message, options=[Option(text=c, concept=c) for c in "abcd"], gold=k)
        for n, (m, k) in enumerate([("vision", 0), ("audio", 2), ("vision", 1), ("audio", 3)] * 10)
    ]  # fmt: skip
    test = ItemSet(root=tmp_path, name="four", concepts=tuple("abcd"), alarm=("b", "d"), items=tuple(items))
    ones = {"reading.balanced": np.ones(101)}
    measured = SimpleNamespace(overall=ones, modality={"audio": ones, "vision": ones})
    reading = np.tile(np.eye(4)[3], (len(items), 1))  # always d, which vision does not have
    found = text_control(test, test, measured, GapConfig(replicates=100), reading=reading, seed=0)
    for name in ("text_only", "majority"):
        assert {scope: interval["value"] for scope, interval in found[name].items()} == {"all": 0.5, "audio": 0.5, "vision": 0.5}
    labels = Labels.of(test)
    entry = ControlScorer(labels, np.eye(4)[labels.concept], 100, 0).entry(
        Control(name="t", label="", question="", readings=[reading], at_chance=True)
    )
    assert {scope: interval.to_dict() for scope, interval in entry.balanced.items()} == found["text_only"]


def test_the_interval_of_random_draws_covers_the_draws_as_well_as_the_clips():
    """Two draws of which one is always right and one never: clips alone would say nothing of their spread."""
    _, labels = planted(20, 0)
    right = np.eye(3)[labels.concept]
    entry = ControlScorer(labels, right, 400, 0).entry(Control(name="d", label="", question="", readings=[right, right[:, [1, 2, 0]]]))
    assert entry.balanced["all"] == Interval(0.5, 0.0, 1.0)


def test_a_set_without_alarms_is_judged_one_against_the_rest():
    """AUROC is the mean over its concepts."""
    z, labels = planted(40, 0)
    plain = replace(labels, alarm=())
    probe = probe_of(z, plain.concept)
    found = ControlScorer(plain, probe.predict_proba(torch.tensor(z)), 100, 0).reading["all"]
    assert 0.8 < found.auroc[0] < 1 and np.isfinite(found.auroc).all()


# -- media and encoder ----------------------------------------------------------------------------------------------------------------


def test_each_kind_of_media_is_blanked_alone_and_all_together(digits):
    """Those that the items carry, and no others; a set without media has nothing to blank."""
    assert blank_sets(digits) == [("image",), ("audio",), ("image", "audio")]
    assert blank_sets([option_item(0, [0, 1])]) == [("image",)]
    bare = replace(option_item(0, [0, 1]), messages=[{"role": "user", "content": "?"}])
    assert blank_sets([bare]) == [] and blank_stage(("image", "audio"), "fit") == "blank-image-audio-fit"


def test_only_the_probe_fitted_without_any_media_must_be_at_chance(world):
    """The frozen one may say anything where it meets states of a kind that it never saw."""
    z_fit, fit, z, test, probe = world
    given = (probe, torch.tensor(z_fit), fit.concept, torch.tensor(z), (fit.modality, test.modality))
    part, whole = blank_controls(("image",), False, *given), blank_controls(("image", "audio"), True, *given)
    assert [c.name for c in part + whole] == ["blank_image_frozen", "blank_image_refit", "blank_all_frozen", "blank_all_refit"]
    assert [c.at_chance for c in part + whole] == [False, False, False, True]
    np.testing.assert_allclose(part[0].readings[0], part[1].readings[0], atol=1e-6)  # here nothing was blank


def test_a_sentence_encoder_reads_a_text_leak(encoder):
    """Averaged over the tokens of each text: padding changes nothing."""
    texts, y, clips = questions(120, 0, True)
    lower = [t.lower() for t in texts]
    states = encode(encoder, lower, 16)
    assert states.shape == (120, 32)
    np.testing.assert_allclose(encode(encoder, lower[:1], 1)[0], encode(encoder, [lower[0], lower[1] * 3], 2)[0], atol=1e-5)
    reading = feature_reading(states[:90], y[:90], clips[:90], states[90:], folds=3, seed=0)
    assert balanced_accuracy_score(y[90:], reading.argmax(1)) > 0.6


def test_an_encoder_that_is_not_there_is_refused(tmp_path):
    """When the configuration is read; a directory that holds something else, when it is loaded."""
    with pytest.raises(ValueError, match=r"controls.text_encoder '.*nowhere' is no directory with a config.json; save a sentence"):
        ControlsConfig(text_encoder=str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be loaded as a model with its tokenizer"):
        encode(ControlsConfig(text_encoder=str(tmp_path)).text_encoder, ["a"], 1)
    with pytest.raises(ValueError, match="controls.draws is 0"):
        ControlsConfig(draws=0)
