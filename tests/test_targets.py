"""Jeffrey's rule by its defining properties; operating point, gate and sharpening on planted readings."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from gapclose.targets import (
    Targets,
    TargetsConfig,
    build_targets,
    confident,
    jeffrey,
    operating_point,
    sharpen,
    shift_prior,
    shuffle_evenly,
)

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

    factor = operating_point(reading, concept, alarm, budget)
    false_alarms, accuracy = judged(factor)
    assert false_alarms <= budget
    for steps, slack in ((401, 1e-12), (1500, 0.03)):
        assert accuracy >= max(a for f, a in map(judged, np.geomspace(1e-4, 1e4, steps)) if f <= budget) - slack


def test_the_operating_point_of_a_planted_example():
    """An item raises an alarm when its odds times the factor exceed one; no factor helps where every reading is certain."""
    odds = np.array([1 / 8, 1 / 4, 1 / 2, 2, 3, 1 / 3, 1 / 3])  # four standard items, then three alarms
    reading = np.stack([1 / (1 + odds), odds / (1 + odds)], axis=1)
    concept, alarm = np.array([0, 0, 0, 0, 1, 1, 1]), np.array([False, True])
    # up to one false alarm only the odds of 3 can be caught, best without any; two false alarms buy the other two
    for budget, low, high in ((0.0, 1 / 3, 1 / 2), (0.25, 1 / 3, 1 / 2), (0.5, 3, 4)):
        assert low <= operating_point(reading, concept, alarm, budget) <= high
    hopeless = np.array([[1e-9, 1.0]] * 7)
    assert operating_point(hopeless, concept, alarm, 0.0) == pytest.approx(1e-4)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 3.0, 80.0, np.inf])
def test_sharpening(exponent):
    """A power, renormalised; infinite gives one-hot rows; zeros stay zero."""
    reading = np.array([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0], [0.0, 0.4, 0.6]])
    found = sharpen(reading, exponent)
    expected = np.eye(3)[reading.argmax(1)] if np.isinf(exponent) else reading**exponent / (reading**exponent).sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-12)


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


def build(config: TargetsConfig, seed: int = 0, n: int = 80) -> tuple[Targets, dict]:
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
    return build_targets(config, **known, seed=seed), known


def test_targets_chain_operating_point_gate_sharpening_and_jeffrey():
    """Each step as its own function says."""
    found, known = build(TargetsConfig(false_alarm_budget=0.03, sharpen=2.0, gate=0.5))
    factor = operating_point(known["val_reading"], known["val_concept"], known["alarm"], 0.03)
    assert found.factor == factor != 1
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
        ({"false_alarm_budget": 1.0}, "targets.false_alarm_budget"),
        ({"false_alarm_budget": -0.1}, "targets.false_alarm_budget"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    """By name, when the configuration is read."""
    with pytest.raises(ValueError, match=message):
        TargetsConfig(**change)
