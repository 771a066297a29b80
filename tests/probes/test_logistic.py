"""The batched solver against scikit-learn at a tight tolerance, in the cases where a solver goes wrong."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from gapclose.probes import logistic as solver
from gapclose.probes.logistic import NotConverged, held_out, solve
from gapclose.probes.logistic_problems import Problems, TwoClasses, make_problems
from gapclose.probes.standardize import standardise

DTYPES = [torch.float32, torch.float64]
STRENGTHS = [1e-6, 1e-3, 0.1, 10.0, 1e4]
REACHED = {torch.float32: STRENGTHS[:-1], torch.float64: STRENGTHS}  # at C = 1e4 rounding hides the gradient of what does not separate


def data(n: int, width: int, classes: int, signal: float = 1.0, rare: bool = False, seed: int = 0):
    """Residuals (N, D) far from zero and on very unequal scales; classes (N,), every one among the first three quarters."""
    rng = np.random.default_rng(seed)
    y = np.minimum(rng.geometric(0.6, n) - 1, classes - 1) if rare else np.arange(n) % classes
    y[: 2 * classes] = np.arange(2 * classes) % classes
    z = rng.normal(size=(n, width)) + signal * rng.normal(size=(classes, width))[y] / np.sqrt(max(width / 10, 1))
    return (z * np.exp(rng.normal(size=width)) * 30 + 1000 * rng.normal(size=width)).astype(np.float32), y


def parts(n: int) -> np.ndarray:
    """Two folds (2, N): the first three quarters, and everything."""
    return np.stack([np.arange(n) < 3 * n // 4, np.ones(n, bool)])


def reference(z, y, train, strength):
    """Probabilities (N, C) of all items."""
    scaler = StandardScaler().fit(z[train].astype(np.float64))
    model = LogisticRegression(C=strength, tol=1e-10, max_iter=20_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at C = 1e4 its line search gives up close to the optimum
        model.fit(scaler.transform(z[train].astype(np.float64)), y[train])
    return model.predict_proba(scaler.transform(z.astype(np.float64)))


CASES = {
    "more items than width": data(120, 10, 3),
    "more width than items": data(48, 100, 3),
    "separable": data(100, 12, 2, signal=8.0),
    "ten classes": data(200, 20, 10),
    "rare classes": data(160, 40, 4, rare=True),
    "pure noise in two classes": data(120, 90, 2, signal=0.0),
    "eight items": data(8, 5, 2),
    "one feature": data(40, 1, 2),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_every_fold_and_strength_predicts_what_scikit_learn_predicts(name, dtype):
    """To a thousandth in every probability, on held-out items too; and the bound on the error is met."""
    z, y = CASES[name]
    train = parts(len(y))
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotConverged)
        fit = solve(torch.tensor(z, dtype=dtype), torch.tensor(y), torch.tensor(train), REACHED[dtype])
    assert fit.logits.dtype == dtype and bool(fit.converged.all()) and float(fit.gap.max()) <= solver.TOLERANCE[dtype]
    for f in range(2):
        for s, strength in enumerate(REACHED[dtype]):
            found = fit.logits[f, s].double().softmax(-1).numpy()
            np.testing.assert_allclose(found, reference(z, y, train[f], strength), atol=1e-3, err_msg=f"fold {f}, C {strength}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_features_that_never_vary_get_no_weight(dtype):
    """Constant everywhere, or only in a fold's training part, and far from zero."""
    z, y = data(120, 8, 3)
    z[:, 0], z[:90, 1] = 3000.123, 77.7
    fit = solve(torch.tensor(z, dtype=dtype), torch.tensor(y), torch.tensor(parts(120)), [0.1])
    assert (fit.weight[:, 0, :, 0] == 0).all() and (fit.weight[0, 0, :, 1] == 0).all() and (fit.weight[1, 0, :, 1] != 0).all()
    assert (fit.scale[:, 0] == 1).all() and bool(fit.converged.all())
    for f, part in enumerate(parts(120)):
        np.testing.assert_allclose(fit.logits[f, 0].double().softmax(-1), reference(z, y, part, 0.1), atol=1e-3)


def test_residuals_that_carry_nothing_leave_the_class_shares():
    """All constant: no weights, and the training part's own proportions."""
    y = torch.tensor([0, 0, 0, 1, 1, 2])
    fit = solve(torch.full((6, 4), 5.0), y, torch.ones(1, 6, dtype=torch.bool), [1.0])
    assert (fit.weight == 0).all() and bool(fit.converged.all())
    np.testing.assert_allclose(fit.logits[0, 0, 0].softmax(-1), [1 / 2, 1 / 3, 1 / 6], atol=1e-6)


def test_logits_are_those_of_the_weights_on_the_folds_own_scale():
    """Mean and deviation of the training part; rows of the weights sum to zero over classes."""
    z, y = data(120, 10, 3)
    train = parts(120)
    fit = solve(torch.tensor(z, dtype=torch.float64), torch.tensor(y), torch.tensor(train), [0.01, 1.0])
    for f in range(2):
        np.testing.assert_allclose(fit.mean[f], z[train[f]].astype(np.float64).mean(0), rtol=1e-9)
        np.testing.assert_allclose(fit.scale[f], z[train[f]].astype(np.float64).std(0), rtol=1e-9)
        logits = ((z - fit.mean[f].numpy()) / fit.scale[f].numpy()) @ fit.weight[f, 1].T.numpy() + fit.bias[f, 1].numpy()
        np.testing.assert_allclose(fit.logits[f, 1], logits, atol=1e-8)
    np.testing.assert_allclose(fit.weight.sum(2), 0, atol=1e-12)


def test_the_gap_bounds_the_error_of_the_weights():
    """Loose solutions against a tight one: |W - W*| <= gap |W|."""
    z, y = (torch.tensor(a) for a in data(120, 30, 3))
    train = torch.tensor(parts(120))
    exact = solve(z.double(), y, train, [0.01, 1.0], tolerance=1e-11)
    for tolerance in (0.3, 1e-2, 1e-4):
        fit = solve(z.double(), y, train, [0.01, 1.0], tolerance=tolerance)
        error = (fit.weight - exact.weight).flatten(2).norm(dim=2)
        assert (error <= 1.01 * fit.gap * fit.weight.flatten(2).norm(dim=2)).all() and (fit.steps <= exact.steps).all()


def test_a_problem_does_not_depend_on_the_others_in_the_batch():
    """Alone or among other folds and strengths, up to the tolerance."""
    z, y = (torch.tensor(a) for a in data(80, 120, 3))
    train = torch.tensor(parts(80))
    together = solve(z.double(), y, train, STRENGTHS)
    alone = solve(z.double(), y, train[:1], STRENGTHS[2:3])
    torch.testing.assert_close(together.logits[0, 2], alone.logits[0, 0], atol=1e-6, rtol=0)


def test_a_problem_that_ran_out_of_steps_is_told():
    """By a warning with the worst C, and problem by problem."""
    z, y = (torch.tensor(a) for a in data(120, 60, 3))
    with pytest.warns(NotConverged, match=r"of 4 logistic regressions stopped short of tolerance 0.0001; the worst, C = 100"):
        fit = solve(z, y, torch.tensor(parts(120)), [1e-5, 100.0], max_steps=4)
    assert fit.converged[:, 0].all() and not fit.converged[:, 1].any() and (fit.gap[:, 1] > 1e-4).all()


@pytest.mark.filterwarnings("ignore::gapclose.probes.logistic.NotConverged")  # float64 ends at 1e-8, a little more or less
def test_what_float32_cannot_reach_is_told():
    """One feature, not separable, C = 1e6: the gradient is lost in rounding."""
    z, y = (torch.tensor(a) for a in data(400, 1, 2, signal=0.3))
    with pytest.warns(NotConverged, match="use float64"):
        solve(z, y, torch.tensor(parts(len(y))), [1e6], max_steps=30)
    assert float(solve(z.double(), y, torch.tensor(parts(len(y))), [1e6]).gap.max()) < 1e-6


def test_half_precision_is_computed_in_float32():
    z, y = (torch.tensor(a) for a in data(60, 10, 2))
    fit = solve(z.bfloat16(), y, torch.tensor(parts(60)), [0.1])
    assert fit.weight.dtype == torch.float32
    assert torch.equal(fit.logits, solve(z.bfloat16().float(), y, torch.tensor(parts(60)), [0.1]).logits)


def folds_of(n: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.flatnonzero(np.arange(n) % 3 != f), np.flatnonzero(np.arange(n) % 3 == f)) for f in range(3)]


def test_held_out_logits_come_from_the_fold_that_did_not_train_on_the_item():
    z, y = data(90, 20, 2, seed=3)
    y = np.random.default_rng(0).permutation(y)
    found = held_out(torch.tensor(z), torch.tensor(y), folds_of(90), [0.01, 1.0])
    for train, test in folds_of(90):
        for s, strength in enumerate([0.01, 1.0]):
            expected = reference(z, y, np.isin(np.arange(90), train), strength)[test]
            np.testing.assert_allclose(found[s, test].softmax(-1), expected, atol=1e-3)


def test_two_classes_with_one_logit_have_the_softmax_of_two():
    """Residuals and curvatures, where the general problems are made for two classes."""
    z, y = (torch.tensor(a) for a in data(60, 8, 2))
    y = y.roll(1) * (torch.arange(60) % 5 > 0)
    onehot = torch.nn.functional.one_hot(y, 2).T.double()
    contrasts = torch.tensor([[0.5], [-0.5]], dtype=torch.float64).sqrt().nan_to_num(nan=-(0.5**0.5))
    train = torch.ones(2, 60, dtype=torch.float64)
    train[0, :20] = 0
    given = (standardise(z.double(), train), torch.tensor([0, 1]), torch.tensor([0.1, 1.0], dtype=torch.float64), onehot, contrasts)
    softmax, sigmoid = Problems(*given), make_problems(*given)
    assert type(sigmoid) is TwoClasses
    logits, step = torch.randn(2, 2, 1, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    (p, r), (wrong, same) = softmax.residual(logits), sigmoid.residual(logits)
    torch.testing.assert_close(same, r)
    torch.testing.assert_close(wrong, (p * (1 - onehot)).sum(1))
    torch.testing.assert_close(sigmoid.curvature(wrong), softmax.curvature(p))
    torch.testing.assert_close(sigmoid.bend(wrong, sigmoid.turn(step)), softmax.bend(p, softmax.turn(step)))


def test_a_fit_of_two_classes_has_the_weights_of_scikit_learn(monkeypatch):
    """By one logit: its weight is the difference of the rows. The softmax of two solves the same problem."""
    z, y = data(90, 12, 2, signal=0.7, seed=1)
    y = np.where(np.arange(90) % 5 == 0, 1 - y, y)
    given = (torch.tensor(z).double(), torch.tensor(y), torch.tensor(parts(90)), [0.01, 1.0])
    made = []
    monkeypatch.setattr(solver, "make_problems", lambda *a: made.append(make_problems(*a)) or made[-1])
    one = solve(*given, tolerance=1e-10)
    monkeypatch.setattr(solver, "make_problems", Problems)
    two = solve(*given, tolerance=1e-10)
    assert [type(p) for p in made] == [TwoClasses] and one.weight.shape == (2, 2, 2, 12)
    torch.testing.assert_close(one.weight, two.weight, rtol=0, atol=1e-8)
    torch.testing.assert_close(one.logits, two.logits, rtol=0, atol=1e-8)
    for f, train in enumerate(parts(90)):
        scaler = StandardScaler().fit(z[train].astype(np.float64))
        for s, strength in enumerate(given[3]):
            model = LogisticRegression(C=strength, tol=1e-12, max_iter=20_000).fit(scaler.transform(z[train].astype(np.float64)), y[train])
            np.testing.assert_allclose(one.weight[f, s, 1] - one.weight[f, s, 0], model.coef_[0], atol=1e-5)
            np.testing.assert_allclose(one.bias[f, s, 1] - one.bias[f, s, 0], model.intercept_[0], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])}, r"items per fold and class: \[\[3, 3, 0\]"),
        ({"y": torch.zeros(8, dtype=torch.long)}, "at least two classes"),
        ({"strengths": [1.0, 0.0]}, "must be positive"),
        ({"z": torch.full((8, 5), torch.inf)}, "not finite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message):
    z, y = (torch.tensor(a) for a in CASES["eight items"])
    arguments = {"z": z, "y": y, "train": torch.tensor(parts(8)), "strengths": [1.0]} | change
    with pytest.raises(ValueError, match=message):
        solve(**arguments)
