"""Jeffrey's rule by its defining properties; operating point, gate and sharpening on planted readings."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binom

from gapclose.probes.posterior import GIVEN_UP, Point, at_least, differ, factors, jeffrey, operating_point, sharpen, shift_prior
from gapclose.training.config import TargetsConfig
from gapclose.training.targets import Targets, build_targets, confident, shuffle_evenly

TABLE = np.array([0, 0, 1, 2, 2])  # concept of every option


def planted(n: int = 50, seed: int = 0):
    """Random readings (N, 3), scores (N, 5) and the option table."""
    rng = np.random.default_rng(seed)
    return softmax(2 * rng.normal(size=(n, 3)), axis=1), 3 * rng.normal(size=(n, 5)) - 10, np.tile(TABLE, (n, 1))


def marginal(target: np.ndarray, table: np.ndarray = TABLE, concepts: int = 3) -> np.ndarray:
    return np.stack([(target * (table == c)).sum(1) for c in range(concepts)], axis=1)


def test_jeffrey_has_the_readings_marginal_and_the_bases_ratios_within_a_concept():
    """The two properties that define it."""
    reading, scores, table = planted()
    target, base = jeffrey(reading, scores, table), softmax(scores, axis=1)
    np.testing.assert_allclose(marginal(target), reading, atol=1e-12)
    np.testing.assert_allclose(target[:, 0] / target[:, 1], base[:, 0] / base[:, 1])
    np.testing.assert_allclose(target[:, 3] / target[:, 4], base[:, 3] / base[:, 4])
    # and so it is the formula as written: r(c) pi0(o) / q0(c)
    np.testing.assert_allclose(target, reading[:, TABLE] * base / marginal(base)[:, TABLE], atol=1e-12)


def test_jeffrey_leaves_a_base_alone_that_believes_what_it_reads():
    """r = q0 gives t = pi0."""
    _, scores, table = planted()
    base = softmax(scores, axis=1)
    np.testing.assert_allclose(jeffrey(marginal(base), scores, table), base, atol=1e-12)


def test_jeffrey_is_the_closest_in_kl_among_competitors_with_the_same_marginal():
    """No other split within the concepts comes nearer to the base."""
    reading, scores, table = planted(20)
    target, base, rng = jeffrey(reading, scores, table), softmax(scores, axis=1), np.random.default_rng(1)

    def kl(p):
        return (p * np.log(p / base)).sum(1)

    for _ in range(200):
        other = target * np.exp(rng.normal(scale=rng.choice([0.01, 0.3, 2]), size=target.shape))
        other *= (reading / marginal(other))[:, TABLE]
        np.testing.assert_allclose(marginal(other), reading, atol=1e-9)
        assert (kl(other) >= kl(target) - 1e-12).all()


@pytest.mark.parametrize("low", [-1e3, -1e30, -np.finfo(np.float32).max])
def test_jeffrey_knows_no_zero_division(low):
    """A concept that the base gives no mass at all still gets the reading's, split by the scores within it."""
    scores = np.array([[0.0, -1.0, low, low, low + np.log(3)]])
    target = jeffrey(np.array([[0.2, 0.3, 0.5]]), scores, TABLE[None])
    np.testing.assert_allclose(marginal(target), [[0.2, 0.3, 0.5]])
    np.testing.assert_allclose(target[0, 4] / target[0, 3], 3 if low == -1e3 else 1)


def test_jeffrey_without_an_option_for_a_concept():
    """Its share goes to the others in proportion; an item whose reading has nowhere to go is refused by row."""
    scores, table = np.array([[0.0, 0.0, -np.inf]]), np.array([[0, 2, -1]])
    np.testing.assert_allclose(jeffrey(np.array([[0.3, 0.5, 0.2]]), scores, table), [[0.6, 0.4, 0.0]])
    with pytest.raises(ValueError, match="1 items have no option for the concept that is read, first at row 1"):
        jeffrey(np.array([[0.3, 0.5, 0.2], [0.0, 1.0, 0.0]]), np.tile(scores, (2, 1)), np.tile(table, (2, 1)))


@pytest.mark.parametrize("sharpness", [1.0, np.inf])
def test_an_item_is_read_among_what_it_can_express(sharpness):
    """Before sharpening: what is read most may have no option. Where nothing else is read the item is counted and not trained on."""
    reading = np.array([[0.3, 0.5, 0.2], [0.0, 1.0, 0.0], [0.1, 0.8, 0.1]])
    table, scores = np.array([[0, 2, -1], [0, 2, -1], [0, 1, 2]]), np.array([[0.0, 0.0, -np.inf], [1.0, 0.0, -np.inf], [0.0, 0.0, 0.0]])
    found = build_targets(
        TargetsConfig(sharpen=sharpness, false_alarm_budget=None), ids=["a", "b", "c"], reading=reading, scores=scores, option_concept=table,
        modality=np.repeat("vision", 3), val_reading=reading, val_concept=np.zeros(3, dtype=int), alarm=np.array([False, True, True]), seed=0,
    )  # fmt: skip
    assert found.keep.tolist() == [True, False, True] and found.silent == 1 and np.isfinite(found.target).all()
    np.testing.assert_allclose(found.reading, [[0.6, 0, 0.4], [0.5, 0, 0.5], reading[2]])
    np.testing.assert_allclose(found.target[0], [1, 0, 0] if np.isinf(sharpness) else [0.6, 0.4, 0])
    assert found.target[2].argmax() == 1 and found.summary(("x", "y", "z"))["not_expressible"] == 1


def test_no_score_turns_a_target_into_no_number():
    """Options that the base never says share their concept's belief; what is no number at all is refused by row."""
    reading, never = np.array([[0.2, 0.3, 0.5]]), -np.inf
    target = jeffrey(reading, np.array([[0.0, never, never, never, never]]), TABLE[None])
    np.testing.assert_allclose(target, [[0.2, 0, 0.3, 0.25, 0.25]])
    for broken in (np.nan, np.inf):
        scores = np.zeros((2, 5))
        scores[1, 2] = broken
        with pytest.raises(ValueError, match="1 items have a reading or option score that is not a number, first at row 1"):
            jeffrey(np.repeat(reading, 2, axis=0), scores, np.tile(TABLE, (2, 1)))


def test_a_prior_shift_multiplies_the_odds():
    """And leaves the ratio of the two alarms alone."""
    reading, alarm = planted()[0], np.array([False, True, True])
    shifted = shift_prior(reading, alarm, 4.0)
    odds = reading[:, 1:].sum(1) / reading[:, 0]
    np.testing.assert_allclose(shifted[:, 1:].sum(1) / shifted[:, 0], 4 * odds)
    np.testing.assert_allclose(shifted[:, 1] / shifted[:, 2], reading[:, 1] / reading[:, 2])
    np.testing.assert_allclose(shift_prior(reading, alarm, 1.0), reading)


def readings_of(concept: np.ndarray, strength: float, bias: float, seed: int = 0) -> np.ndarray:
    """Readings whose alarms are favoured by ``bias`` nats."""
    rng = np.random.default_rng(seed)
    return softmax(rng.normal(size=(len(concept), 3)) + strength * np.eye(3)[concept] + bias * np.array([0, 1, 1]), axis=1)


@pytest.mark.parametrize("bias", [-3.0, 0.0, 3.0])
@pytest.mark.parametrize("budget", [0.0, 0.01, 0.03, 0.3])
def test_the_operating_point_keeps_the_budget_and_is_the_best_within_it(bias, budget):
    """Against its own grid without the early stop, and against a finer one; the reading's own bias is undone."""
    concept = np.random.default_rng(1).choice(3, size=600, p=[0.5, 0.25, 0.25])
    reading, alarm = readings_of(concept, 2.0, bias), np.array([False, True, True])

    def judged(factor):
        said = shift_prior(reading, alarm, factor).argmax(1)
        return alarm[said][concept == 0].mean(), np.mean([(said == c)[concept == c].mean() for c in range(3)])

    point = operating_point(reading, concept, alarm, budget)
    false_alarms, accuracy = judged(point.factor)
    best = max(a for f, a in map(judged, factors()) if f <= budget)
    if point.standing == "kept":
        assert false_alarms <= budget and accuracy == pytest.approx(best)
        assert accuracy >= max(a for f, a in map(judged, np.geomspace(1e-4, 1e4, 1500)) if f <= budget) - 0.03
    else:  # more was counted, no more than so many items leave open, where the budget costs much
        assert point.standing == "not exceeded" and 0 < budget < 0.1 and point.at_least <= budget < false_alarms < budget + 0.025
        assert accuracy > best + GIVEN_UP


def test_the_operating_point_of_a_planted_example():
    """An item raises an alarm when its odds times the factor exceed one."""
    odds = np.array([1 / 8, 1 / 4, 1 / 2, 2, 3, 1 / 3, 1 / 3])  # four standard items, then three alarms
    reading = np.stack([1 / (1 + odds), odds / (1 + odds)], axis=1)
    concept, alarm = np.array([0, 0, 0, 0, 1, 1, 1]), np.array([False, True])
    reading, concept = np.tile(reading, (100, 1)), np.tile(concept, 100)  # so many that what is counted is shown
    # up to one false alarm only the odds of 3 can be caught, best without any; two false alarms buy the other two
    for budget, low, high in ((0.0, 1 / 3, 1 / 2), (0.25, 1 / 3, 1 / 2), (0.5, 3, 4)):
        assert low <= operating_point(reading, concept, alarm, budget).factor <= high


def test_of_equally_good_factors_the_nearest_to_one_is_taken():
    """A reading that is right on all of val is left as it is, however well it separates: 0.9 stays 0.9; a biased one moves no further than it
    must, to either side."""
    alarm, concept = np.array([False, True]), np.repeat([0, 1], 20)
    for believed in (0.6, 0.9, 1 - 1e-9):
        reading = np.where(concept[:, None] == [0, 1], believed, 1 - believed)
        assert operating_point(reading, concept, alarm, 0.03).factor == 1
    for odds in (50.0, 1 / 50):  # both kinds are read as the same, alarms a hundredfold more so
        reading = np.stack([np.ones(40), odds * np.where(concept == 1, 10, 0.1)], axis=1)
        reading /= reading.sum(1, keepdims=True)
        factor = operating_point(reading, concept, alarm, 0.03).factor
        assert (1 / 6 < factor < 1 / 5) if odds == 50 else (5 < factor < 6)
    tried = factors()
    assert tried[0] == 1 and (np.diff(np.abs(np.log(tried))) > -1e-12).all() and len(set(tried)) == 401


def test_where_no_factor_keeps_the_budget_the_reading_keeps_its_threshold_and_it_is_said():
    """Not the smallest factor that was tried, with which no target says alarm any more."""
    concept, alarm = np.array([0] * 40 + [1] * 10), np.array([False, True])
    found = operating_point(np.array([[1e-9, 1.0]] * 50), concept, alarm, 0.03)
    assert (found.factor, found.standing, found.false_alarms) == (1.0, "exceeded", 1.0) and found.at_least > 0.9
    assert "no factor keeps to the budget" in found.words() and "100.0 % of 40 standard items of 40 clips" in found.words()
    none = operating_point(np.array([[0.2, 0.8]] * 5), np.ones(5, dtype=int), alarm, 0.03)
    assert (none.factor, none.standing) == (1.0, "unknown") and none.words()
    assert Point.of({"round": 1, **found.to_dict()}) == found and Point().words() == ""


def clips_of_four(clips: int, strength: float, seed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Readings, concepts and clips of two standard items and one of each alarm a clip, which share some of their noise."""
    rng = np.random.default_rng(seed)
    concept, clip = np.tile([0, 0, 1, 2], clips), np.repeat(np.arange(clips), 4)
    noise = rng.normal(size=(4 * clips, 3)) + 0.3 * rng.normal(size=(clips, 3))[clip]
    return softmax(2 * (strength * np.eye(3)[concept] + noise), axis=1), concept, clip


def balanced(reading: np.ndarray, concept: np.ndarray) -> float:
    return float(np.mean([(reading.argmax(1) == c)[concept == c].mean() for c in range(3)]))


@pytest.mark.parametrize("clips", [8, 15])
def test_few_clips_do_not_silence_a_good_probe(clips):
    """A probe that is right on 97 % of new clips stays within ten points of that in 99 of 100 draws of val, and the mean within one."""
    alarm, (new, right, _) = np.array([False, True, True]), clips_of_four(4000, 3.2, 1)
    own = balanced(new, right)
    left = np.array([
        balanced(shift_prior(new, alarm, operating_point(reading, concept, alarm, 0.03, clip).factor), right)
        for reading, concept, clip in (clips_of_four(clips, 3.2, [2, draw]) for draw in range(200))
    ])  # fmt: skip
    assert own > 0.96 and np.mean(left > own - 0.1) >= 0.99 and left.mean() > own - 0.015


def test_many_items_hold_the_budget():
    """On new clips, by a probe that is a little beyond it by itself: 3 % up to the noise of 500 items, whatever the draw."""
    alarm, (new, right, _) = np.array([False, True, True]), clips_of_four(4000, 3.0, 1)
    assert (new.argmax(1) > 0)[right == 0].mean() > 0.038
    rates = np.array([
        (shift_prior(new, alarm, operating_point(reading, concept, alarm, 0.03, clip).factor).argmax(1) > 0)[right == 0].mean()
        for reading, concept, clip in (clips_of_four(500, 3.0, [3, draw]) for draw in range(40))
    ])  # fmt: skip
    assert rates.mean() < 0.031 and np.quantile(rates, 0.9) < 0.04 and rates.max() < 0.05


def test_items_of_one_clip_show_no_more_than_the_clip():
    """Five false alarms of 40 items show a rate beyond 3 %, unless they are of one clip of eight."""
    concept, alarm = np.zeros(40, dtype=int), np.array([False, True])
    reading = np.where((np.arange(40) < 5)[:, None], [1e-9, 1.0], [1.0, 1e-9])
    assert operating_point(reading, concept, alarm, 0.03).standing == "exceeded"
    clip = np.repeat(np.arange(8), 5)
    found = operating_point(reading, concept, alarm, 0.03, clip)
    assert (found.standing, found.standard_clips, found.factor) == ("not exceeded", 8, 1.0)
    # the bound is Clopper and Pearson's: with it as the true rate, as many or more are counted in one case of twenty
    low = at_least(np.array([0.125]), 40, 40)[0]
    assert binom.sf(4, 40, low) == pytest.approx(0.05) and at_least(np.zeros(1), 40, 40)[0] == 0


@pytest.mark.parametrize("exponent", [0.5, 1.0, 3.0, 80.0, np.inf])
def test_sharpening(exponent):
    """A power, renormalised; infinite gives one-hot rows, or equal shares where two are equal; zeros stay zero."""
    reading = np.array([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0], [0.0, 0.4, 0.6]])
    found = sharpen(reading, exponent)
    expected = np.eye(3)[reading.argmax(1)] if np.isinf(exponent) else reading**exponent / (reading**exponent).sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(sharpen(np.array([[0.4, 0.2, 0.4]]), 1e9 if exponent == 80 else np.inf), [[0.5, 0, 0.5]], atol=1e-12)


def test_the_gate_tells_certain_readings_apart():
    """Whose most probable concept is 1 up to rounding: the order of the file does not decide."""
    doubt = np.array([1e-17, 1e-30, 1e-18, 1e-40])
    assert confident(np.stack([1 - doubt, doubt], axis=1), 0.5).tolist() == [False, True, False, True]


def test_the_gate_keeps_the_most_confident_share_of_every_read_concept():
    """So that targets stay balanced; a concept read once is kept."""
    rng = np.random.default_rng(0)
    reading = softmax(np.r_[np.eye(3)[np.arange(90) % 2], np.eye(3)[[2]]] * rng.uniform(1, 4, (91, 1)), axis=1)
    for share in (0.2, 0.6, 1.0):
        keep = confident(reading, share)
        for concept, members in ((0, 45), (1, 45), (2, 1)):
            read = reading.argmax(1) == concept
            assert (keep & read).sum() == max(1, round(share * members))
            if share < 1 and members > 1:
                assert reading[keep & read].max(1).min() >= reading[~keep & read].max(1).max()


def test_twins_are_read_against_each_other():
    """By Bayes' rule under "not the same concept", counted over both twins; what both share cancels, and a prior on alarms cancels with it."""
    rng = np.random.default_rng(0)
    reading, partner = softmax(rng.normal(size=(7, 3)), axis=1), np.array([1, 0, -1, 4, 3, 6, 5])
    reading[5:] = [0.0, 1.0, 0.0]  # both certain of one concept: nothing can be said
    found = differ(reading, partner)
    for n in (0, 1, 3, 4):
        joint = np.outer(reading[n], reading[partner[n]]) * (1 - np.eye(3))
        np.testing.assert_allclose(found[n], joint.sum(1) / joint.sum())
    np.testing.assert_array_equal(found[[2, 5, 6]], reading[[2, 5, 6]])
    two, pair = softmax(rng.normal(size=(2, 2)), axis=1), np.array([1, 0])
    log_odds = np.log(two[:, 1] / two[:, 0])
    after = differ(two, pair)
    np.testing.assert_allclose(np.log(after[:, 1] / after[:, 0]), [log_odds[0] - log_odds[1], log_odds[1] - log_odds[0]])
    np.testing.assert_allclose(differ(shift_prior(two, np.array([False, True]), 5.0), pair), after)


def test_targets_set_twins_against_each_other_before_the_operating_point():
    """In train and in val alike; only where they are asked to."""
    partner = np.arange(80) ^ 1
    of_val = np.where(np.arange(200) < 100, np.arange(200) ^ 1, -1)
    with_twins, known = build(TargetsConfig(twins=True), partner=partner, val_partner=of_val)
    point = operating_point(differ(known["val_reading"], of_val), known["val_concept"], known["alarm"], 0.03)
    assert with_twins.point == point
    np.testing.assert_allclose(with_twins.reading, shift_prior(differ(known["reading"], partner), known["alarm"], point.factor))
    shuffled = build(TargetsConfig(twins=True, control="shuffled", false_alarm_budget=None), partner=partner)[0]
    paired = differ(known["reading"], partner)
    for m in ("vision", "audio"):
        np.testing.assert_allclose(np.sort(shuffled.reading[known["modality"] == m], 0), np.sort(paired[known["modality"] == m], 0))
    plain = build(TargetsConfig())[0]
    np.testing.assert_array_equal(build(TargetsConfig(), partner=partner, val_partner=of_val)[0].target, plain.target)


def build(config: TargetsConfig, seed: int = 0, n: int = 80, **more) -> tuple[Targets, dict]:
    reading, scores, table = planted(n)
    concept = np.random.default_rng(1).choice(3, size=200)
    known = {
        "ids": [f"i{k}" for k in range(n)],
        "reading": reading,
        "scores": scores,
        "option_concept": table,
        "modality": np.array(["vision", "audio"])[np.arange(n) % 2],
        "val_reading": readings_of(concept, 2.0, 0.5),
        "val_concept": concept,
        "alarm": np.array([False, True, True]),
    }
    return build_targets(config, **known, **more, seed=seed), known


def test_targets_chain_operating_point_gate_sharpening_and_jeffrey():
    """Each step as its own function says."""
    found, known = build(TargetsConfig(false_alarm_budget=0.03, sharpen=2.0, gate=0.5))
    point = operating_point(known["val_reading"], known["val_concept"], known["alarm"], 0.03)
    factor = point.factor
    assert found.factor == factor != 1 and found.point == point
    facts = found.summary(("a", "b", "c"))
    assert facts["prior_factor"] == factor and facts["standing"] == point.standing and facts["not_expressible"] == 0
    shifted = shift_prior(known["reading"], known["alarm"], factor)
    np.testing.assert_allclose(found.reading, shifted)
    np.testing.assert_allclose(marginal(found.target), shifted**2 / (shifted**2).sum(1, keepdims=True), atol=1e-12)
    assert (found.keep == confident(shifted, 0.5)).all()
    assert found.summary(("a", "b", "c"))["kept"] == found.keep.sum() == sum(found.summary(("a", "b", "c"))["kept_by_concept"].values())
    assert build(TargetsConfig(false_alarm_budget=None))[0].factor == 1
    np.testing.assert_allclose(marginal(build(TargetsConfig(false_alarm_budget=None))[0].target), known["reading"], atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_an_even_shuffle_carries_nothing_over(seed):
    """A permutation within strata in which what an item gets does not depend, up to rounding, on what was read of it."""
    rng = np.random.default_rng(seed)
    read, stratum = rng.choice(3, size=700, p=[0.5, 0.3, 0.2]), np.array(["a", "b"])[rng.integers(0, 2, 700)]
    given = shuffle_evenly(read, stratum, seed)
    assert sorted(given) == list(range(700)) and (stratum[given] == stratum).all()
    assert (given != np.arange(700)).mean() > 0.95
    for s in ("a", "b"):
        here = stratum == s
        for own in range(3):
            for got in range(3):
                count, expected = (
                    (here & (read == own) & (read[given] == got)).sum(),
                    (here & (read == own)).sum() * (read[here] == got).mean(),
                )
                assert abs(count - expected) <= 2, (s, own, got, count, expected)


def test_the_shuffled_control_permutes_readings_within_a_modality_only():
    """The same readings, on other items; and the input is left as it was."""
    plain, known = build(TargetsConfig(false_alarm_budget=None))
    before = known["reading"].copy()
    shuffled = build(TargetsConfig(false_alarm_budget=None, control="shuffled"))[0]
    again, other = (build(TargetsConfig(false_alarm_budget=None, control="shuffled"), seed=s)[0] for s in (0, 1))
    for m in ("vision", "audio"):
        rows = known["modality"] == m
        assert sorted(map(tuple, shuffled.reading[rows])) == sorted(map(tuple, plain.reading[rows]))
    assert (shuffled.reading != plain.reading).any(1).mean() > 0.9
    assert (again.reading == shuffled.reading).all() and (other.reading != shuffled.reading).any()
    assert (known["reading"] == before).all()


def test_save_and_load_are_exact_and_refuse_targets_of_other_items(tmp_path):
    """Also of as many other items."""
    found, _ = build(TargetsConfig(gate=0.5))
    found.save(tmp_path / "targets.safetensors")
    back = Targets.load(tmp_path / "targets.safetensors", found.ids)
    assert all((getattr(back, k) == getattr(found, k)).all() for k in ("target", "keep", "reading"))
    assert back.factor == found.factor and back.ids == found.ids
    for ids in (found.ids[:-1], [*found.ids[:-1], "other"], found.ids[::-1]):
        with pytest.raises(ValueError, match=r"targets\.safetensors: holds targets of .* delete it to rebuild"):
            Targets.load(tmp_path / "targets.safetensors", ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"control": "shuffle"}, "targets.control"),
        ({"gate": 0.0}, "targets.gate"),
        ({"gate": 1.1}, "targets.gate"),
        ({"sharpen": 0.0}, "targets.sharpen"),
        ({"sharpen": float("nan")}, "targets.sharpen"),
        ({"patience": 0}, "targets.patience"),
        ({"false_alarm_budget": 1.0}, "targets.false_alarm_budget"),
        ({"false_alarm_budget": -0.1}, "targets.false_alarm_budget"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    """By name, when the configuration is read."""
    with pytest.raises(ValueError, match=message):
        TargetsConfig(**change)


def test_the_operating_point_is_chosen_on_the_readings_that_it_is_applied_to():
    """Items of val are read among what their options express, like those of train: the third concept, which none has, tells nothing."""
    table, scores = np.tile([0, 1], (40, 1)), np.zeros((40, 2))
    concept = np.repeat([0, 1], 20)
    reading = np.where(concept[:, None] == 0, [0.2, 0.1, 0.7], [0.35, 0.65, 0.0])
    given = {"ids": [str(n) for n in range(40)], "reading": reading, "scores": scores, "option_concept": table, "seed": 0,
             "modality": np.full(40, "vision"), "val_reading": reading, "val_concept": concept, "alarm": np.array([False, True, True])}  # fmt: skip
    config = TargetsConfig(false_alarm_budget=0.03)
    made = build_targets(config, **given, val_option_concept=table)
    assert made.factor == 1.0 and (made.target.argmax(1) == concept).all()
    assert build_targets(config, **given).factor < 0.5  # judged by a concept that no option expresses
