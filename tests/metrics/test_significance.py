"""Tests, corrections and scores against scipy, scikit-learn and statsmodels, and where they break."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import softmax
from scipy.stats import binom
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from gapclose.metrics.calibration import brier_score, calibration_bins, expected_calibration_error
from gapclose.metrics.power import balance, clips_needed, minimum_detectable, paired_error
from gapclose.metrics.significance import holm, mcnemar, selectivity, sign_flip


def calibrated(n: int = 1500, concepts: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Readings (n, C) that mean what they say, and the concepts."""
    rng = np.random.default_rng(seed)
    reading = softmax(1.5 * rng.normal(size=(n, concepts)), axis=1)
    return reading, np.array([rng.choice(concepts, p=row) for row in reading])


@pytest.mark.parametrize(("first", "second"), [(0.6, 0.6), (0.6, 0.8), (0.9, 0.2), (1.0, 0.0), (1.0, 1.0)])
def test_mcnemar_is_statsmodels_exact_test(first, second):
    """And twice the binomial tail."""
    rng = np.random.default_rng(0)
    a, b = rng.random(60) < first, rng.random(60) < second
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    expected = reference_mcnemar(table, exact=True).pvalue
    assert mcnemar(a, b) == pytest.approx(expected, abs=1e-12) == mcnemar(b, a)
    fewer, discordant = min(table[0][1], table[1][0]), table[0][1] + table[1][0]
    assert mcnemar(a, b) == pytest.approx(min(1, 2 * binom.cdf(fewer, discordant, 0.5)), abs=1e-12)


def test_sign_flips_of_single_item_clips_are_mcnemar():
    """One item a clip, right or wrong: the same null, by draws instead of the binomial."""
    rng = np.random.default_rng(1)
    a, b = rng.random(80) < 0.55, rng.random(80) < 0.7
    assert sign_flip(a.astype(float) - b, np.arange(80)) == pytest.approx(mcnemar(a, b), abs=0.02)


def test_sign_flips_of_few_clips_are_the_enumeration():
    """Every one of the 2^7 sign patterns by hand, on unequal clips."""
    rng = np.random.default_rng(2)
    difference, clip = rng.normal(0.4, 1, size=20), np.arange(20) % 7
    totals = np.bincount(clip, weights=difference)
    sums = [abs(np.dot(signs, totals)) for signs in itertools.product([-1, 1], repeat=7)]
    expected = np.mean(np.array(sums) >= abs(totals.sum()) - 1e-9)
    assert sign_flip(difference, clip, replicates=40_000) == pytest.approx(expected, abs=0.01)


@pytest.mark.slow
def test_where_items_of_a_clip_agree_mcnemar_finds_what_is_not_there_and_sign_flips_do_not():
    """No true difference, eight items a clip that are right together: false alarms at 5 %."""
    rng, clip = np.random.default_rng(3), np.repeat(np.arange(40), 8)
    exact, flipped = [], []
    for seed in range(1000):
        a, b = ((rng.random(40) < 0.6)[clip] ^ (rng.random(320) < 0.1) for _ in range(2))
        exact.append(mcnemar(a, b) <= 0.05)
        flipped.append(sign_flip(a.astype(float) - b, clip, replicates=500, seed=seed) <= 0.05)
    assert np.mean(exact) > 0.2 and 0.03 <= np.mean(flipped) <= 0.065


@pytest.mark.parametrize("clips", [1, 3, 5])
def test_a_handful_of_clips_cannot_be_significant(clips):
    """The smallest p is 2 / 2^M, however many items they hold."""
    p = sign_flip(np.ones(100 * clips), np.repeat(np.arange(clips), 100))
    assert p == pytest.approx(min(1, 2 / 2**clips), abs=0.02) and p > 0.05


def test_no_difference_anywhere_is_no_evidence():
    """Both always right, both always wrong, or differences that cancel within each clip."""
    right, clip = np.ones(20, bool), np.arange(20) // 2
    assert mcnemar(right, right) == mcnemar(~right, ~right) == sign_flip(np.zeros(20), clip) == 1
    assert sign_flip(np.tile([1.0, -1.0], 10), clip) == 1


def test_one_item_is_no_evidence():
    """A p of 1 and an undefined error; no exception."""
    assert mcnemar(np.array([True]), np.array([False])) == 1 and sign_flip(np.ones(1), np.zeros(1)) == 1
    assert np.isnan(paired_error(np.ones(1), np.zeros(1))) and np.isnan(minimum_detectable(float("nan"), 1))
    assert selectivity(np.array([True]), np.array([False]), np.zeros(1)).p == pytest.approx(0.5, abs=0.02)


def test_holm_is_statsmodels_and_the_closed_test():
    """A name's adjusted p is the worst Bonferroni p of all families that hold it; ties and ones included."""
    rng = np.random.default_rng(4)
    for size in (1, 2, 5):
        p = {f"m{i}": float(v) for i, v in enumerate(np.round(rng.random(size) ** 3, 2))}
        found = holm(p)
        expected = multipletests(list(p.values()), method="holm")[1]
        assert list(found) == list(p) and list(found.values()) == pytest.approx(list(expected), abs=1e-12)
        for name in p:
            families = [f for k in range(1, size + 1) for f in itertools.combinations(p, k) if name in f]
            assert found[name] == pytest.approx(max(min(1, len(f) * min(p[n] for n in f)) for f in families))


def test_holm_leaves_out_what_was_not_tested():
    """A nan is no member of the family; an empty family is one too."""
    found = holm({"a": 0.02, "b": float("nan"), "c": 0.04})
    assert found["a"] == found["c"] == 0.04 and np.isnan(found["b"]) and holm({}) == {}
    with pytest.raises(ValueError, match=r"outside 0\.\.1: \{'a': 1\.2\}"):
        holm({"a": 1.2})


@pytest.mark.parametrize("sharpness", [1.0, 3.0])
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_is_scikit_learns_curve(bins, sharpness):
    """Equal-mass bins of the confidence in the most likely concept; N is a multiple of the bins, so that all weigh the same."""
    reading, concept = calibrated()
    reading = softmax(sharpness * np.log(reading), axis=1)
    right = reading.argmax(1) == concept
    accuracy, confidence = calibration_curve(right, reading.max(1), n_bins=bins, strategy="quantile")
    expected = np.abs(accuracy - confidence).mean()
    assert expected_calibration_error(reading, concept, bins) == pytest.approx(expected, abs=1e-9)
    assert [b.accuracy for b in calibration_bins(reading, concept, bins)] == pytest.approx(accuracy.tolist(), abs=1e-9)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_calibration_error_of_calibrated_readings_is_the_stated_bias(sharpness):
    """Whether they are hardly or almost always sure; readings that are too sure have far more."""
    found, stated = [], []
    for seed in range(30):
        reading = softmax(sharpness * np.log(calibrated(seed=seed)[0]), axis=1)
        concept = (reading.cumsum(1) < np.random.default_rng(seed).random((len(reading), 1))).sum(1)
        confidence = reading.max(1)
        found.append(expected_calibration_error(reading, concept))
        stated.append(np.sqrt(15 / len(reading)) * np.mean(0.8 * np.sqrt(confidence * (1 - confidence))))
    assert np.mean(found) == pytest.approx(np.mean(stated), rel=0.25)


def test_readings_that_are_too_sure_are_found_out():
    """Three times the log odds of calibrated readings, against those."""
    found = [expected_calibration_error(*calibrated(seed=s)) for s in range(30)]
    reading, concept = calibrated()
    assert expected_calibration_error(softmax(3 * np.log(reading), axis=1), concept) > 4 * np.mean(found)


def test_calibration_error_does_not_depend_on_the_order_of_ties():
    """A constant reading is one bin, and its error is plain; items right first or right last."""
    right = np.arange(90) < 60
    reading = np.tile([0.7, 0.3], (90, 1))
    for concept in (np.where(right, 0, 1), np.where(right, 0, 1)[::-1]):
        assert expected_calibration_error(reading, concept) == pytest.approx(0.7 - 2 / 3)


def test_scores_of_a_reader_that_is_always_sure_and_right_or_wrong():
    """The two ends of both scales, and a single item."""
    concept = np.arange(30) % 3
    sure = np.eye(3)[concept]
    assert expected_calibration_error(sure, concept) == brier_score(sure, concept) == 0
    wrong = (concept + 1) % 3
    assert expected_calibration_error(sure, wrong) == 1 and brier_score(sure, wrong) == 2
    assert expected_calibration_error(sure[:1], concept[:1]) == 0


@pytest.mark.parametrize("concepts", [2, 3, 10])
def test_brier_is_scikit_learns(concepts):
    """Summed over concepts, not halved."""
    reading, concept = calibrated(400, concepts)
    expected = brier_score_loss(concept, reading, labels=list(range(concepts)), scale_by_half=False)
    assert brier_score(reading, concept) == pytest.approx(expected, abs=1e-12)


def test_selectivity_tells_a_real_task_from_random_ones():
    """The value is the difference of accuracies; p is small for a real task and even where the real task is one more control."""
    rng, clip = np.random.default_rng(5), np.repeat(np.arange(60), 4)
    control = rng.random((5, 240)) < 0.5
    found = selectivity(rng.random(240) < 0.8, control, clip)
    assert found.value == pytest.approx(0.8 - 0.5, abs=0.07) and found.p == 1 / 10_001
    null = [selectivity(*np.split(rng.random((3, 240)) < 0.5, [1]), clip, replicates=200, seed=s).p for s in range(300)]
    assert np.mean(np.array(null) <= 0.05) <= 0.09 and np.mean(null) == pytest.approx(0.5, abs=0.06)


def test_selectivity_with_one_control_is_the_one_sided_sign_flip():
    """Swapping two tasks in a clip is flipping the sign of their difference."""
    rng, clip = np.random.default_rng(6), np.arange(90) // 3
    real, control = rng.random(90) < 0.62, rng.random(90) < 0.5
    assert real.mean() > control.mean()
    one_sided = selectivity(real, control, clip).p
    assert sign_flip(real.astype(float) - control, clip) == pytest.approx(2 * one_sided, abs=0.02)


def test_balance_weights_every_cell_the_same():
    """Sums under them are means of cell means; one item in a cell carries all of it."""
    cell, values = np.array(["a", "a", "b", "a"]), np.array([1.0, 0.0, 1.0, 0.0])
    weight = balance(cell)
    assert weight.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 2, 1 / 6]) and weight @ values == pytest.approx((1 / 3 + 1) / 2)


@pytest.mark.parametrize("cells", [1, 4])
def test_paired_error_is_statsmodels_cluster_robust_error(cells):
    """Without the added 1, and with the correction M / (M - 1) in place of M / (M + 1)."""
    rng = np.random.default_rng(7)
    clip, cell = np.arange(240) % 50, rng.integers(cells, size=240)
    difference = rng.choice([-1.0, 0.0, 1.0], size=240) + rng.normal(size=50)[clip]
    dummies = np.eye(cells)[cell]
    model = sm.OLS(difference, dummies).fit(cov_type="cluster", cov_kwds={"groups": clip, "use_correction": False})
    over_cells = np.full(cells, 1 / cells)
    expected = over_cells @ np.asarray(model.cov_params()) @ over_cells  # sum of squares of the clips' totals
    assert paired_error(difference, clip, cell) ** 2 == pytest.approx((50**2 * expected + 1) / 51 / 50, rel=1e-9)


def test_differences_all_alike_are_not_certain_in_few_clips():
    """Always better by the same: the error falls as 1 / M, not to zero."""
    errors = [paired_error(np.ones(m), np.arange(m)) for m in (5, 50, 500)]
    assert errors == pytest.approx([np.sqrt(1 / (m + 1) / m) for m in (5, 50, 500)])
    assert minimum_detectable(errors[0], 5) > 0.5 > 0.1 > minimum_detectable(errors[2], 500)


@pytest.mark.parametrize("clips", [20, 200, 2000])
def test_minimum_detectable_is_statsmodels_power_of_the_paired_t_test(clips):
    """That one uses the noncentral t, which the sum of two quantiles approaches."""
    deviation = 0.5
    expected = deviation * TTestPower().solve_power(nobs=clips, power=0.8, alpha=0.05)
    assert minimum_detectable(deviation / np.sqrt(clips), clips) == pytest.approx(expected, rel=0.25 / clips)


def test_planning_turns_the_minimum_round():
    """Four times the clips find half the difference, and the fewest clips for it are these."""
    assert minimum_detectable(0.03, 200, planned=800) == pytest.approx(minimum_detectable(0.03, 200) / 2, rel=0.01)
    needed = clips_needed(0.03, 200, 0.05)
    assert minimum_detectable(0.03, 200, planned=needed) <= 0.05 < minimum_detectable(0.03, 200, planned=needed - 1)
    with pytest.raises(ValueError, match="no number of clips"):
        clips_needed(float("nan"), 1, 0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mcnemar(np.ones(3), np.ones(4)), r"arrays of \[3, 4\] items"),
        (lambda: mcnemar(np.ones(0), np.ones(0)), "at least one"),
        (lambda: mcnemar(np.array([1, np.nan]), np.ones(2)), "1 of the values are nan"),
        (lambda: sign_flip(np.ones(3), np.arange(2)), r"arrays of \[3, 2\] items"),
        (lambda: sign_flip(np.array([0.5, np.nan]), np.arange(2)), "nan"),
        (lambda: selectivity(np.ones(3), np.ones((2, 3)), np.arange(4)), "items"),
        (lambda: paired_error(np.array([np.nan, 1.0]), np.arange(2)), "nan"),
        (lambda: brier_score(np.full((2, 3), np.nan), np.zeros(2, int)), "must be probabilities"),
        (lambda: brier_score(np.ones((2, 3)), np.zeros(2, int)), "must be probabilities"),
        (lambda: brier_score(np.ones((2, 1)), np.zeros(3, int)), "2 readings of 3 concepts"),
        (lambda: expected_calibration_error(np.ones((2, 1)), np.zeros(2, int), bins=0), "0 bins"),
    ],
)
def test_what_cannot_be_computed_is_refused(call, message):
    """A nan is never ranked, dropped or counted in silence."""
    with pytest.raises(ValueError, match=message):
        call()
