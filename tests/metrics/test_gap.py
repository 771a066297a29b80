"""The gap's statistics against scikit-learn, brute force and hand computation, and the seven states by planted cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.metrics.bootstrap import ClipBootstrap, Interval
from gapclose.metrics.config import GapConfig
from gapclose.metrics.gap import closure, detection, intervals, statistics
from gapclose.metrics.labels import Action, Labels, concept_scores, evidence_for, option_concepts
from gapclose.metrics.status import STATES, Evidence, dropped, state_of

CONCEPTS, ALARM = ("standard", "false_vision", "false_audio"), ("false_vision", "false_audio")
CONFIG = GapConfig(replicates=200)


def labels(n: int = 120, clips: int = 30, seed: int = 0, alarm: tuple[str, ...] = ALARM) -> Labels:
    """Four items a clip, two modalities, half standard; options 0 and 1 are content, 2 objects to vision and 3 to audio."""
    rng = np.random.default_rng(seed)
    modality = np.array(["vision", "audio"])[np.arange(n) % 2]
    false = rng.random(n) < 0.5
    concept = np.where(false, np.where(modality == "vision", 1, 2), 0)
    return Labels(
        clip=np.array([f"c{i % clips}" for i in range(n)]),
        modality=modality,
        concept=concept,
        gold=np.where(concept == 0, rng.integers(2, size=n), concept + 1),
        option_concept=np.tile([0, 0, 1, 2], (n, 1)),
        concepts=CONCEPTS,
        alarm=alarm,
    )


def readings(known: Labels, strength: float, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return softmax(rng.normal(size=(len(known.concept), 3)) + strength * np.eye(3)[known.concept], axis=1)


def actions(known: Labels, strength: float, seed: int = 2) -> Action:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=known.option_concept.shape) + strength * np.eye(4)[known.gold]
    return Action(chosen=scores.argmax(1), scores=scores)


@pytest.mark.parametrize("decimals", [6, 1, 0], ids=["distinct", "some ties", "mostly ties"])
def test_auroc_is_scikit_learns_on_the_data_and_on_every_replicate(decimals):
    """Replicates are the same curve with every item weighted by how often its clip was drawn."""
    known, rng = labels(), np.random.default_rng(3)
    positive = known.concept > 0
    score = np.round(rng.normal(size=len(positive)) + positive, decimals)
    clips = ClipBootstrap(known.clip, 20, seed=0)
    found = clips.auroc(score, positive)
    assert found[0] == pytest.approx(roc_auc_score(positive, score), abs=1e-12)
    for r in range(1, 21):
        weight = clips.weights[r][clips.index]
        assert found[r] == pytest.approx(roc_auc_score(positive, score, sample_weight=weight), abs=1e-12)


def test_auroc_counts_infinite_scores_as_ties():
    """Items without a rejecting option have the margin -inf; their order in the file must not matter."""
    score, positive = np.array([-np.inf, -np.inf, -np.inf, 1.0, np.inf, np.inf]), np.array([True, False, True, True, False, True])
    expected = roc_auc_score(positive, np.clip(score, -9, 9))
    for order in (np.arange(6), np.arange(6)[::-1], np.array([1, 0, 2, 3, 5, 4])):
        clips = ClipBootstrap(np.arange(6), 2, seed=0)
        assert clips.auroc(score[order], positive[order])[0] == pytest.approx(expected)


@pytest.mark.parametrize("block", [1, 700, 10**9])
def test_results_do_not_depend_on_how_replicates_are_blocked(block, monkeypatch):
    """Neither the draws nor a single figure."""
    known = labels()
    usual = ClipBootstrap(known.clip, 50, 0)
    expected = statistics(usual, known, actions(known, 1.0), readings(known, 1.0))
    monkeypatch.setattr("gapclose.metrics.bootstrap.BLOCK", block)
    clips = ClipBootstrap(known.clip, 50, 0)
    np.testing.assert_array_equal(clips.weights, usual.weights)
    for name, found in statistics(clips, known, actions(known, 1.0), readings(known, 1.0)).items():
        np.testing.assert_array_equal(found, expected[name], err_msg=name)


def test_a_score_that_is_nan_makes_the_curve_undefined():
    """It has no place in the order; ranking it last would be an invention."""
    clips, positive = ClipBootstrap(np.arange(6), 5, 0), np.arange(6) % 2 == 0
    score = np.array([0.1, np.nan, 0.3, 0.2, 0.5, 0.4])
    assert np.isnan(clips.auroc(score, positive)).all() and np.isnan(clips.tpr_at(score, positive, np.full(6, 0.1))).all()


def test_constant_scores_are_chance_in_every_replicate():
    """All ties: AUROC one half, and the TPR at any false-alarm rate is that rate."""
    clips, positive = ClipBootstrap(np.arange(40) // 2, 30, 0), np.arange(40) % 2 == 0
    np.testing.assert_allclose(clips.auroc(np.zeros(40), positive), 0.5)
    np.testing.assert_allclose(clips.tpr_at(np.zeros(40), positive, np.full(31, 0.3)), 0.3)


def test_one_clip_has_estimates_and_no_intervals():
    """However many items it holds: nothing is known of how another clip would do."""
    known = replace(labels(), clip=np.full(120, "only"))
    found = statistics(ClipBootstrap(known.clip, 100, 0), known, actions(known, 1.0), readings(known, 1.0))
    for name, values in found.items():
        interval = Interval.of(values).to_dict()
        assert interval["value"] is not None and interval["lower"] is interval["upper"] is None, name
    assert np.isnan(closure(found, found)["closure"][0]) and not dropped(found["action.auroc"] - 1, found["action.auroc"], 0.05)


@pytest.mark.parametrize("right", [True, False])
def test_an_answerer_that_is_always_right_or_always_wrong_has_finite_figures(right):
    """d' stays finite by its correction, and AUROC sits at its end."""
    known = labels()
    chosen = known.gold if right else np.where(known.concept == 0, np.where(known.modality == "vision", 2, 3), 0)
    action = Action(chosen=chosen, scores=4.0 * np.eye(4)[chosen])
    found = {k: v[0] for k, v in statistics(ClipBootstrap(known.clip, 100, 0), known, action, readings(known, 1.0)).items()}
    assert found["action.balanced"] == found["action.auroc"] == found["action.rejection"] == right
    assert np.isfinite(found["action.dprime"]) and (found["action.dprime"] > 3) == right and found["action.false_alarm"] == (not right)


def brute_tpr(score, positive, weight, false_alarm):
    """Walk every threshold of the weighted ROC and read it off by hand, highest point first."""
    points = [(0.0, 0.0)]
    for threshold in sorted(set(score), reverse=True):
        above = score >= threshold
        rate = [(weight * above * p).sum() / (weight * p).sum() for p in (~positive, positive)]
        points.append((rate[0], rate[1]))
    within = [p for p in points if p[0] <= false_alarm + 1e-12]
    beyond = [p for p in points if p[0] > false_alarm + 1e-12]
    (x0, y0) = max(within, key=lambda p: (p[0], p[1]))
    if not beyond or x0 == pytest.approx(false_alarm, abs=1e-12):
        return y0
    (x1, y1) = min(beyond)
    return y0 + (y1 - y0) * (false_alarm - x0) / (x1 - x0)


@pytest.mark.parametrize("decimals", [6, 0], ids=["distinct", "ties"])
@pytest.mark.parametrize("false_alarm", [0.0, 0.05, 0.37, 1.0])
def test_tpr_at_is_a_brute_force_roc(decimals, false_alarm):
    """On the data and on replicates, whose weights hold zeros."""
    known, rng = labels(), np.random.default_rng(4)
    positive = known.concept > 0
    score = np.round(rng.normal(size=len(positive)) + positive, decimals)
    clips = ClipBootstrap(known.clip, 10, seed=0)
    found = clips.tpr_at(score, positive, np.full(11, false_alarm))
    for r in range(11):
        assert found[r] == pytest.approx(brute_tpr(score, positive, clips.weights[r][clips.index], false_alarm), abs=1e-9)


def test_matched_is_zero_where_reading_and_action_are_the_same_detector():
    """A reading that alarms exactly where the action does has the action's TPR at the action's false alarms."""
    known = labels()
    action = actions(known, 1.0)
    same = np.eye(3)[action.concept(known)]
    found = detection(ClipBootstrap(known.clip, 50, 0), known, action, same)
    np.testing.assert_allclose(found["matched"], 0, atol=1e-12)
    np.testing.assert_allclose(found["reading_tpr"], found["tpr"], atol=1e-12)


def test_balanced_and_standard_accuracy_by_hand():
    """Mean over the four cells; accuracy on options beside accuracy on concepts; a missing answer is wrong."""
    known = Labels(
        clip=np.array(list("aabbccdd")),
        modality=np.array(["vision"] * 5 + ["audio"] * 3),
        concept=np.array([0, 0, 0, 0, 1, 0, 2, 2]),
        gold=np.array([0, 0, 1, 1, 2, 0, 3, 3]),
        option_concept=np.tile([0, 0, 1, 2], (8, 1)),
        concepts=CONCEPTS,
        alarm=ALARM,
    )
    #     standard/vision: option 0, other content, right, reject | false vision: right | standard/audio: none | false audio: right, wrong
    action = Action(chosen=np.array([0, 1, 1, 2, 2, -1, 3, 0]), scores=np.zeros((8, 4)))
    found = statistics(ClipBootstrap(known.clip, 100, 0), known, action, np.eye(3)[known.concept])
    assert known.cells[1] == ["audio/false_audio", "audio/standard", "vision/false_vision", "vision/standard"]
    assert found["action.balanced"][0] == pytest.approx((0.5 + 0 + 1 + 0.75) / 4)
    assert found["action.option_balanced"][0] == pytest.approx((0.5 + 0 + 1 + 0.5) / 4)
    assert found["action.standard_accuracy"][0] == pytest.approx(2 / 5)
    assert found["action.rejection"][0] == pytest.approx(2 / 3) and found["action.false_alarm"][0] == pytest.approx(1 / 5)
    assert found["reading.balanced"][0] == 1 and found["gap.balanced"][0] == pytest.approx(1 - 2.25 / 4)


def test_dprime_and_criterion_are_the_formulas_and_a_threshold_shift_moves_the_criterion_alone():
    """With Hautus' correction; and for a Gaussian detector d' stays near the separation under any threshold."""
    known = labels(n=4000, clips=1000)
    positive = known.concept > 0
    evidence = np.random.default_rng(5).normal(size=4000) + 1.5 * positive
    found = {}
    for threshold in (0.2, 1.2):
        chosen = np.where(evidence > threshold, np.where(known.modality == "vision", 2, 3), 0)
        found[threshold] = detection(
            ClipBootstrap(known.clip, 1, 0), known, Action(chosen=chosen, scores=np.zeros((4000, 4))), readings(known, 1)
        )
        hit = ((chosen > 1) & positive).sum() + 0.5, positive.sum() + 1
        alarm = ((chosen > 1) & ~positive).sum() + 0.5, (~positive).sum() + 1
        z_hit, z_alarm = norm.ppf(hit[0] / hit[1]), norm.ppf(alarm[0] / alarm[1])
        assert found[threshold]["dprime"][0] == pytest.approx(z_hit - z_alarm)
        assert found[threshold]["criterion"][0] == pytest.approx(-(z_hit + z_alarm) / 2)
        assert found[threshold]["dprime"][0] == pytest.approx(1.5, abs=0.15)
    assert found[1.2]["criterion"][0] - found[0.2]["criterion"][0] == pytest.approx(1.0, abs=0.15)


def test_the_margin_by_hand():
    """m = logsumexp over rejecting minus logsumexp over content options; columns beyond an item's options count nowhere."""
    with np.errstate(divide="ignore"):
        scores = np.log([[0.1, 0.3, 0.4, 0.2], [0.5, 0.5, 0.0, 0.0]])
    table = np.array([[0, 0, 1, 2], [0, 1, -1, -1]])
    np.testing.assert_allclose(np.exp(concept_scores(scores, table, [1, 2], inside=True)), [0.6, 0.5])
    np.testing.assert_allclose(np.exp(concept_scores(scores, table, [1, 2], inside=False)), [0.4, 0.5])


def test_row_zero_is_the_data_and_equal_clips_give_equal_draws():
    """Pairing rests on it: the same clips and seed must draw the same replicates whatever else differs."""
    clip = labels().clip
    clips = ClipBootstrap(clip, 300, seed=7)
    assert (clips.weights[0] == 1).all() and (clips.weights[1:].sum(1) == clips.n).all()
    np.testing.assert_array_equal(clips.weights, ClipBootstrap(clip[::-1], 300, seed=7).weights)
    assert (clips.weights != ClipBootstrap(clip, 300, seed=8).weights).any()
    values = np.random.default_rng(0).random(len(clip))
    assert clips.mean(values, np.ones(len(clip), bool))[0] == pytest.approx(values.mean())


def test_the_clip_bootstrap_is_wider_than_an_item_bootstrap_when_a_clip_is_all_right_or_all_wrong():
    """25 clips of 16 equal items: the interval must be that of 25 observations, four times as wide."""
    right = np.repeat(np.random.default_rng(0).random(25) < 0.6, 16)
    clip, everything = np.repeat(np.arange(25), 16), np.ones(400, bool)
    by_clip = Interval.of(ClipBootstrap(clip, 4000, 0).mean(right, everything))
    by_item = Interval.of(ClipBootstrap(np.arange(400), 4000, 0).mean(right, everything))
    assert by_clip.value == by_item.value == right.mean()
    assert (by_clip.upper - by_clip.lower) / (by_item.upper - by_item.lower) == pytest.approx(4, rel=0.15)
    expected = 2 * 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 25)
    assert by_clip.upper - by_clip.lower == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [
        (np.r_[0.5, np.arange(1, 1000) / 1000], (0.5, 0.025, 0.975)),
        (np.r_[0.5, np.arange(1, 1000) / 1000, [np.nan] * 9], (0.5, 0.025, 0.975)),
        (np.r_[np.nan, 0.1, 0.2], (None, None, None)),
        (np.r_[0.3, np.nan, np.nan], (0.3, None, None)),
        (np.array([0.3]), (0.3, None, None)),
    ],
    ids=["percentiles", "undefined replicates are left out", "undefined", "undefined replicates only", "no replicates"],
)
def test_interval(statistic, expected):
    """Percentiles of the finite replicates; None for what is not defined, so that JSON stays strict."""
    found = tuple(Interval.of(statistic).to_dict().values())
    assert [f is None for f in found] == [e is None for e in expected]
    assert [f for f in found if f is not None] == pytest.approx([e for e in expected if e is not None])


def test_closure_on_planted_data():
    """Action from 0.4 to 0.7 where the reading is at 0.8 closes 75 %; the fall of the reading is told beside it."""

    def planted(action, reading, noise):
        shape = np.r_[0.0, noise]
        both = {"action.balanced": action + shape, "reading.balanced": reading + shape, "action.auroc": action - 0.2 + shape}
        both |= {"reading.auroc": reading + shape, "gap.balanced": np.full(len(shape), reading - action)}
        return both | {"action.standard_accuracy": 0.9 - (action - 0.4) / 10 + shape}

    noise = np.random.default_rng(0).normal(scale=0.05, size=500)
    found = closure(planted(0.4, 0.8, noise), planted(0.7, 0.75, noise))
    expected = {
        "closure": 0.75,
        "closure_auroc": 0.3 / 0.6,
        "action_gain": 0.3,
        "auroc_gain": 0.3,
        "beyond_reading": -0.1,
        "reading_change": -0.05,
        "gap_before": 0.4,
        "gap_after": 0.05,
        "standard_drop": 0.03,
    }
    assert {k: v[0] for k, v in found.items()} == pytest.approx(expected)
    # the noise is common to both measurements: paired, nothing of it is left
    assert np.ptp(found["action_gain"]) < 1e-12 < np.ptp(planted(0.4, 0.8, noise)["action.balanced"])
    same = planted(0.8, 0.8, noise)
    assert Interval.of(closure(same, same)["closure"]).to_dict() == {"value": None, "lower": None, "upper": None}


def test_closure_of_measured_statistics_is_paired():
    """The interval of the gain is narrower than the two apart, since both saw the same clips."""
    known = labels(n=400, clips=40)
    clips = ClipBootstrap(known.clip, 500, 0)
    base = statistics(clips, known, actions(known, 1.0), readings(known, 2.0))
    scores = actions(known, 1.0).scores + 0.3 * np.eye(4)[known.gold]
    now = statistics(clips, known, Action(chosen=scores.argmax(1), scores=scores), readings(known, 2.0))
    gain = closure(base, now)["action_gain"]
    unpaired = now["action.balanced"][1:] - np.random.default_rng(0).permutation(base["action.balanced"][1:])
    assert gain[0] > 0 and np.std(gain[1:]) < 0.8 * np.std(unpaired)
    assert closure(base, base)["closure"][0] == 0


def test_a_set_without_alarms_is_scored_one_concept_against_the_rest():
    """AUROC is the macro average, every item is standard, and tpr is the mean recall."""
    known = labels(alarm=())
    action, reading = actions(known, 1.0), readings(known, 1.0)
    found = detection(ClipBootstrap(known.clip, 10, 0), known, action, reading)
    assert known.detections == [[0], [1], [2]] and known.standard.all()
    # roc_auc_score(average="macro", multi_class="ovr") on log odds equals it on probabilities
    assert found["reading_auroc"][0] == pytest.approx(roc_auc_score(known.concept, reading, multi_class="ovr"))
    recalls = [(action.concept(known) == c)[known.concept == c].mean() for c in range(3)]
    assert found["tpr"][0] == pytest.approx(np.mean(recalls))


def test_a_modality_without_alarm_items_has_no_detection_figures_but_has_accuracy():
    """They are None in the record and raise no warning."""
    known = labels().take(labels().concept == 0)
    found = intervals(statistics(ClipBootstrap(known.clip, 100, 0), known, actions(known, 1.0), readings(known, 1.0)))
    nothing = {"value": None, "lower": None, "upper": None}
    assert found["action"]["auroc"] == found["gap"]["matched"] == found["action"]["rejection"] == nothing
    assert found["action"]["balanced"]["value"] is not None and found["action"]["standard_accuracy"]["value"] is not None


def test_replicates_without_a_cell_are_averaged_over_the_others():
    """With one clip a cell most replicates miss some; the estimate must not turn into nan."""
    known = labels(n=4, clips=4)
    known = replace(known, concept=np.array([0, 0, 1, 2]))
    balanced = ClipBootstrap(known.clip, 200, 0).balanced(np.array([1, 1, 1, 0]), known)
    assert balanced[0] == pytest.approx(np.mean([1, 1, 1, 0])) and np.isfinite(balanced).all()


def ends(value: float, around: float = 0.02) -> Interval:
    return Interval(value, value - around, value + around)


NOTHING = Interval(np.nan, np.nan, np.nan)
GOOD = Evidence(
    closure=ends(0.5),
    beyond_reading=ends(0.0),
    standard_drop=ends(0.0),
    frozen_fell=False,
    fresh_fell=False,
    parse_rate=0.98,
    base_parse_rate=1.0,
)


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({}, "open"),
        ({"closure": ends(0.9)}, "open"),  # not shown
        ({"closure": ends(0.93)}, "closed"),
        ({"closure": ends(1.4, 0.6)}, "open"),
        ({"closure": ends(1.4)}, "closed"),
        ({"closure": Interval(1.0, np.nan, np.nan)}, "open"),
        ({"closure": ends(0.05)}, "blocked"),
        ({"closure": ends(-0.5)}, "blocked"),
        ({"closure": NOTHING}, "no gap"),
        ({"closure": ends(0.95), "frozen_fell": True}, "moved"),
        ({"closure": ends(0.95), "frozen_fell": True, "fresh_fell": True}, "lost"),
        ({"closure": ends(0.95), "fresh_fell": True}, "lost"),
        ({"closure": ends(0.95), "standard_drop": ends(0.051), "fresh_fell": True}, "over-rejecting"),
        ({"closure": ends(0.95), "standard_drop": ends(0.049)}, "closed"),
        ({"closure": ends(0.95), "standard_drop": ends(0.051, 0.06)}, "open"),  # within chance is no fall, and no proof of none either
        ({"closure": ends(0.95), "standard_drop": ends(0.2), "parse_rate": 0.89}, "collapsed"),
        ({"closure": ends(2.0), "beyond_reading": ends(0.051)}, "learned"),
        ({"closure": ends(2.0), "beyond_reading": ends(0.051), "frozen_fell": True}, "learned"),  # the probe was outgrown
        ({"closure": NOTHING, "beyond_reading": ends(0.3)}, "learned"),
        ({"closure": ends(2.0), "beyond_reading": ends(0.051, 0.06)}, "closed"),  # within chance
        ({"closure": ends(2.0), "beyond_reading": ends(0.049)}, "closed"),
        ({"closure": ends(2.0), "beyond_reading": ends(0.3), "fresh_fell": True}, "lost"),
        ({"closure": ends(2.0), "beyond_reading": ends(0.3), "standard_drop": ends(0.051, 0.06)}, "open"),
        ({"closure": ends(2.0), "beyond_reading": ends(0.3), "standard_drop": ends(0.2)}, "over-rejecting"),
        ({"closure": ends(0.95), "parse_rate": 0.55, "base_parse_rate": 0.6}, "closed"),
    ],
)
def test_states(change, state):
    """Planted cases of each, the most alarming first: what is good must be shown, what is bad must be beyond chance."""
    assert state_of(replace(GOOD, **change), GapConfig()) == state and state in STATES


def test_a_fall_needs_size_and_certainty():
    """Beyond the tolerance, and with an interval that excludes zero."""
    base, rng = np.full(301, 0.8), np.random.default_rng(0)
    assert dropped(base - 0.1 + np.r_[0, rng.normal(scale=0.01, size=300)], base, 0.05)
    assert not dropped(base - 0.04 + np.r_[0, rng.normal(scale=0.001, size=300)], base, 0.05)
    assert not dropped(base - 0.1 + np.r_[0, rng.normal(scale=0.2, size=300)], base, 0.05)


def test_labels_of_items():
    """Concept and option tables follow the set's order of concepts; unlabelled items are refused by name."""

    def item(name, options, gold):
        return Item(
            id=name, clip="c", split="test", modality="vision", messages=[{"role": "user", "content": "?"}],
            options=[Option(text=t, concept=c) for t, c in options], gold=gold,
        )  # fmt: skip

    two = item("two", [("no", "false_vision"), ("yes", "standard")], 0)
    three = item("three", [("a", "standard"), ("b", "false_audio"), ("c", "standard")], 2)
    items = ItemSet(root=Path(), name="", concepts=CONCEPTS, alarm=ALARM, items=(two, three))
    known = Labels.of(items)
    np.testing.assert_array_equal(known.option_concept, [[1, 0, -1], [0, 2, 0]])
    np.testing.assert_array_equal(option_concepts(items.items, CONCEPTS), known.option_concept)
    assert known.concept.tolist() == [1, 0] and known.standard.tolist() == [False, True] and known.gold.tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"1 items have no gold option, e\.g\. \['two'\]"):
        Labels.of(replace(items, items=(replace(two, gold=None), three)))


def test_too_few_replicates_are_refused():
    """Percentiles of a handful are no interval."""
    with pytest.raises(ValueError, match=r"gap\.replicates is 10"):
        GapConfig(replicates=10)


def test_without_a_gap_there_is_no_closure():
    """By either measure, where the interval of the base's gap reaches zero; and the state says so."""
    rng = np.random.default_rng(0)
    noise = np.r_[0.0, rng.normal(scale=0.1, size=200)]
    base = {f"{side}.{kind}": 0.5 + noise * (side == "reading") for side in ("action", "reading") for kind in ("balanced", "auroc")}
    base |= {"gap.balanced": base["reading.balanced"] - base["action.balanced"], "action.standard_accuracy": np.ones(201)}
    now = base | {"action.balanced": base["action.balanced"] + 0.1, "action.auroc": base["action.auroc"] + 0.1}
    changed = closure(base, now)
    assert np.isnan(changed["closure"]).all() and np.isnan(changed["closure_auroc"]).all()
    assert state_of(replace(GOOD, closure=Interval.of(changed["closure"])), GapConfig()) == "no gap"


def test_log_odds_are_symmetric_and_strictly_rising_at_any_confidence():
    """Evidence for a concept is minus that for the others, and ranks readings whose probability is 1 up to rounding."""
    logits = np.linspace(-60, 60, 1201)
    reading = np.stack([1 / (1 + np.exp(logits)), 1 / (1 + np.exp(-logits))], axis=1)
    found = evidence_for(reading, [1])
    assert (np.diff(found) > 0).all() and np.allclose(found, logits)
    np.testing.assert_array_equal(found, -evidence_for(reading, [0]))
    three = np.stack([reading[:, 0], reading[:, 1] / 3, 2 * reading[:, 1] / 3], axis=1)
    np.testing.assert_allclose(evidence_for(three, [1, 2]), logits, atol=1e-9)
    np.testing.assert_allclose(evidence_for(three, [0]), -logits, atol=1e-9)
    high = np.array([17.0, 20.0, 40.0, 300.0])  # nats
    order = evidence_for(np.stack([np.exp(-high), np.ones(4)], axis=1), [1])
    assert ClipBootstrap(np.arange(4), 0, 0).auroc(order, np.array([False, False, True, True]))[0] == 1
