"""Probes against scikit-learn, on planted layers, and with an eye on leaks between folds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler

from gapclose.metrics.labels import evidence_for
from gapclose.probes import search as probe_search
from gapclose.probes.config import ProbeConfig
from gapclose.probes.cross_validation import fit_temperature, fresh_reading, grouped_folds, out_of_fold
from gapclose.probes.linear import FrozenProbe, fit_linear, linear_logits
from gapclose.probes.search import choose_probe, not_asked, not_asked_words, possible_concepts, score

CONCEPTS = ("standard", "false_vision", "false_audio")


def data(classes: int = 3, n: int = 240, width: int = 12, strength: float = 1.0, seed: int = 0):
    """Residuals (N, D) of which the first dimensions carry the class, on unequal scales; classes (N,); clips (N,) of four items."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % classes)
    z = rng.normal(size=(n, width))
    z[:, :classes] += strength * np.eye(classes)[y]
    return z * rng.uniform(0.1, 30, width) + rng.normal(size=width), y, np.repeat(np.arange(n // 4), 4)


def frozen(z, y, family, strength, temperature=1.0, layers=(3,)) -> FrozenProbe:
    mean, scale, weight, bias = fit_linear(z, y, family, strength)
    return FrozenProbe(
        mean=mean, scale=scale, weight=weight, bias=bias, temperature=temperature, layers=layers, family=family, strength=strength,
        concepts=CONCEPTS[: y.max() + 1],
    )  # fmt: skip


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    ("family", "strength", "reference"),
    [
        ("logistic", 0.05, LogisticRegression(C=0.05, tol=1e-8, max_iter=2000)),  # its default is off by 1e-4
        ("lda", 0.3, LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3)),
    ],
)
def test_a_frozen_probe_reads_what_scikit_learn_predicts(classes, family, strength, reference):
    """On residuals it was not fitted on, at temperature 1."""
    z, y, _ = data(classes)
    scaler = StandardScaler().fit(z[:160])
    expected = reference.fit(scaler.transform(z[:160]), y[:160]).predict_proba(scaler.transform(z[160:]))
    found = frozen(z[:160], y[:160], family, strength).predict_proba(torch.tensor(z[160:]))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("shrinkage", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize(
    ("items", "shares", "dtype"), [(150, (0.5, 0.5), np.float64), (20, (0.2, 0.8), np.float64), (90, (0.2, 0.3, 0.5), np.float32)]
)
def test_discriminant_analysis_is_scikit_learn_s(items, shares, dtype, shrinkage):
    """With fewer items than dimensions too, classes of unequal size, any names of classes, and a dimension that never varies."""
    rng = np.random.default_rng(items)
    names = np.repeat([3, 10, 17][: len(shares)], [round(items * share) for share in shares])
    z = (rng.normal(size=(items, 30)) @ rng.normal(size=(30, 30)) + 0.2 * names[:, None]).astype(dtype)
    z[:, 4] = 2
    found = linear_logits(z, fit_linear(z, names, "lda", shrinkage))
    scaled = StandardScaler().fit_transform(z.astype(np.float64))
    expected = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(scaled, names).predict_proba(scaled)
    np.testing.assert_allclose(softmax(found.astype(np.float64), axis=1), expected, atol=1e-8 if dtype == np.float64 else 2e-3)


@pytest.mark.parametrize("z", [np.ones((60, 40)), np.repeat(np.random.default_rng(0).normal(size=(2, 40)), 30, axis=0)])
@pytest.mark.parametrize("family", ["lda", "logistic", "mean_difference"])
def test_residuals_that_do_not_vary_within_classes_are_no_error(family, z):
    """Those of layer 0 are the same for all prompts that end in the same token."""
    y = np.repeat([0, 1], 30)
    logits = linear_logits(z, fit_linear(z, y, family, 0.1))
    assert np.isfinite(logits).all()
    if np.ptp(z) == 0:
        assert np.allclose(logits, logits[0])


def test_mean_difference_is_the_nearest_centroid_when_classes_are_equal():
    """In standardised space."""
    z, y, _ = data(3)
    scaler = StandardScaler().fit(z)
    expected = NearestCentroid().fit(scaler.transform(z), y).predict(scaler.transform(z))
    assert (frozen(z, y, "mean_difference", 1.0).predict_proba(torch.tensor(z)).argmax(1) == expected).mean() == 1


def test_a_dimension_that_never_varies_is_harmless():
    """Its scale would be zero."""
    z, y, _ = data(3)
    z[:, 5] = 7.0
    assert np.isfinite(frozen(z, y, "logistic", 0.1).predict_proba(torch.tensor(z))).all()


@pytest.mark.parametrize("family", ["logistic", "mean_difference", "lda"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_around_a_large_constant_is_no_reading(family, dtype):
    """One unit in the last place of float32, whatever type holds it, even where it follows the class: scale 1 and no weight, in all families."""
    z, y, _ = data(3)
    z[:, 5] = np.float32(3000.0) + y * np.spacing(np.float32(3000.0))
    z[:, 6] = 3000.0 + 0.1 * y  # small, and no rounding
    mean, scale, weight, _ = fit_linear(z.astype(dtype), y, family, 0.3)
    assert scale[5] == 1 and np.abs(weight[:, 5]).max() < 1e-9
    assert scale[6] < 1 and np.abs(weight[:, 6]).max() > 0.01
    assert abs(mean[5] - 3000) < 1e-3 and mean.dtype == scale.dtype == dtype


def test_temperature_divides_the_logits():
    """r = softmax((W z + b) / T)."""
    z, y, _ = data(3)
    one, four = (frozen(z, y, "logistic", 0.1, t).predict_proba(torch.tensor(z)) for t in (1.0, 4.0))
    np.testing.assert_allclose(four, softmax(np.log(one) / 4, axis=1), atol=1e-5)


def test_nothing_of_a_frozen_probe_can_be_trained_and_no_gradient_flows_through_it():
    """Neither to its buffers nor to its input."""
    z, y, _ = data(3)
    probe = frozen(z, y, "logistic", 0.1)
    residual = torch.tensor(z, requires_grad=True)
    assert not list(probe.parameters()) and not probe(residual).requires_grad
    assert not any(b.requires_grad for b in probe.buffers())


@pytest.mark.parametrize("layers", [(3,), (2, 3)])
def test_save_and_load_are_exact(tmp_path, layers):
    """Tensors, layers, family, strength, concepts; the evidence lies beside them. Files from before stacks know one layer."""
    z, y, _ = data(3)
    probe = frozen(z, y, "lda", 0.3, 1.7, layers)
    probe.save(tmp_path / "frozen", {"n_fit": 240})
    back = FrozenProbe.load(tmp_path / "frozen")
    assert {k: (v == back.state_dict()[k]).all().item() for k, v in probe.state_dict().items()} == dict.fromkeys(probe.state_dict(), True)
    assert (back.layer, back.layers, back.family, back.strength, back.concepts) == (3, layers, "lda", 0.3, CONCEPTS)
    assert torch.equal(back(torch.tensor(z)), probe(torch.tensor(z)))
    assert '"n_fit": 240' in (tmp_path / "frozen.json").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["frozen.json", "frozen.safetensors"]
    facts = json.loads((tmp_path / "frozen.json").read_text())
    (tmp_path / "frozen.json").write_text(json.dumps({k: v for k, v in facts.items() if k != "layers"}))
    assert FrozenProbe.load(tmp_path / "frozen").layers == (3,)


def test_half_precision_residuals_are_read_in_float32():
    """The probe never computes in the model's dtype."""
    z, y, _ = data(3)
    probe, half = frozen(z, y, "logistic", 0.1), torch.tensor(z).bfloat16()
    assert probe(half).dtype == torch.float32
    assert torch.equal(probe(half), probe(half.float()))


def test_folds_never_split_a_clip_and_cover_every_item_once():
    """Whatever the seed; and every fold trains on every concept."""
    _, y, clips = data(3)
    for seed in range(5):
        folds = grouped_folds(y, clips, 4, seed)
        assert sorted(np.concatenate([test for _, test in folds])) == list(range(len(y)))
        for train, test in folds:
            assert not set(clips[train]) & set(clips[test]) and len(np.unique(y[train])) == 3
    assert grouped_folds(y, clips, 4, 0)[0][1].tolist() != grouped_folds(y, clips, 4, 1)[0][1].tolist()


def test_out_of_fold_never_sees_the_clip_it_reads(monkeypatch):
    """Each clip is marked by a dimension of its own and carries a random label: only a leak could read it."""
    rng = np.random.default_rng(0)
    clips = np.repeat(np.arange(60), 4)
    label = np.r_[np.zeros(30, int), np.ones(30, int)]
    y = rng.permutation(label)[clips]
    z = np.eye(60)[clips] + 0.01 * rng.normal(size=(240, 60))
    seen: list[set] = []
    real = fit_linear

    def spy(part, *rest):
        seen.append(set(part.argmax(1).tolist()))
        return real(part, *rest)

    monkeypatch.setattr("gapclose.probes.cross_validation.fit_linear", spy)
    folds = grouped_folds(y, clips, 4, 0)
    logits = out_of_fold(z, y, folds, "logistic", 1.0)
    assert (real(z, y, "logistic", 1.0)[2] @ ((z - z.mean(0)) / z.std(0)).T).argmax(0) == pytest.approx(y)  # in sample: perfect
    assert (logits.argmax(1) == y).mean() < 0.65
    for (train, test), trained_on in zip(folds, seen, strict=True):
        assert trained_on == set(clips[train].tolist()) and not trained_on & set(clips[test].tolist())


@pytest.mark.parametrize("factor", [0.2, 1.0, 6.0])
def test_temperature_minimises_the_negative_log_likelihood(factor):
    """Against another optimiser; and logits that are ``factor`` times the true ones get back about that factor."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(4000, 3))
    y = np.array([rng.choice(3, p=p) for p in softmax(logits, axis=1)])
    logits = factor * logits

    def nll(x):
        return -log_softmax(logits / np.exp(x[0]), axis=1)[np.arange(4000), y].mean()

    best = minimize(nll, [0.3], method="Nelder-Mead")
    found = fit_temperature(logits, y)
    assert nll([np.log(found)]) <= best.fun + 1e-7 and found == pytest.approx(factor, rel=0.1)


def planted(*telling: int, strength: float = 2.5, n: int = 240):
    """Of five layers only the ``telling`` ones carry the class well, each with noise of its own; the others carry it poorly."""
    residuals = {}
    for candidate in range(1, 6):
        z, y, clips = data(3, n, strength=strength if candidate in telling else 0.3, seed=10 + candidate)
        residuals[candidate] = torch.tensor(z[np.argsort(y, kind="stable")], dtype=torch.float32)
    return residuals, np.sort(y), np.random.default_rng(0).permutation(clips)


@pytest.mark.parametrize("layer", [2, 4])
def test_the_planted_layer_is_chosen_and_its_likelihood_is_out_of_fold(layer):
    """The table holds every combination; the reading is that of the chosen row."""
    residuals, y, clips = planted(layer)
    config = ProbeConfig(families=["logistic", "mean_difference"], c=[0.01, 0.1], folds=3)
    choice = choose_probe(residuals, y, clips, CONCEPTS, config, layers=[1, 2, 3, 4], seed=0)
    assert choice.probe.layer == layer and len(choice.table) == 4 * 3
    best = max(choice.table, key=lambda r: r["log_likelihood"])
    assert (best["layer"], best["family"], best["strength"]) == (layer, choice.probe.family, choice.probe.strength)
    assert np.log(choice.reading[np.arange(len(y)), y]).mean() == pytest.approx(best["log_likelihood"])
    np.testing.assert_allclose(choice.reading.sum(1), 1)
    z = residuals[layer].double().numpy()
    logits = out_of_fold(z, y, grouped_folds(y, clips, 3, 0), best["family"], best["strength"])
    np.testing.assert_allclose(choice.reading, softmax(logits / best["temperature"], axis=1), atol=1e-9)
    in_sample = np.log(choice.probe.predict_proba(residuals[layer])[np.arange(len(y)), y]).mean()
    assert in_sample > best["log_likelihood"]


def held_out_likelihood(choice, residuals, y):
    """Mean log-likelihood in nats."""
    return np.log(choice.probe.predict_proba(choice.probe.features(residuals))[np.arange(len(y)), y]).mean()


def test_a_wrong_label_makes_no_question_of_a_concept():
    """Two modalities with a concept of their own each: a few labels of the other one's leave them what they are; a rare concept stays."""
    y, modality = np.array([0, 1] * 20 + [0, 2] * 20), np.repeat(["seen", "heard"], 40)
    clean = possible_concepts(y, modality, 3)
    assert clean[:40].all(0).tolist() == [True, True, False] and clean[40:].all(0).tolist() == [True, False, True]
    wrong = y.copy()
    wrong[[1, 3, 41, 43]] = [2, 2, 1, 1]
    assert (possible_concepts(wrong, modality, 3) == clean).all()
    logits = np.where(clean, np.eye(3)[wrong] * 4, 9.0)  # what tells the modality alone, and nothing of the wrong ones, is not rewarded
    assert score(logits, wrong, clean)["given_modality"] > -0.1
    assert possible_concepts(np.array([0] * 97 + [1] * 3), np.repeat("seen", 100), 2).all()


def test_a_modality_where_a_concept_is_rare_counts():
    """10 % *no* in one modality and 60 % in the other: the layer that reads it in both is chosen, not one that is blind to the first."""
    rng, names = np.random.default_rng(0), ["yes", "no"]
    modality = np.repeat(["vision", "audio"], 150)
    y = (rng.random(300) < np.where(modality == "vision", 0.1, 0.6)).astype(int)
    assert possible_concepts(y, modality, 2).all() and not not_asked(y, modality, names)
    known = (2 * y - 1)[:, None] * np.eye(1, 6)
    sees = np.where((modality == "vision")[:, None], 4.0, 1.0) * known + rng.normal(size=(300, 6))
    blind = np.where((modality == "vision")[:, None], 0.0, 2.0) * known + rng.normal(size=(300, 6))
    config = ProbeConfig(families=["logistic"], c=[0.1], folds=3)
    residuals = {1: torch.tensor(blind), 2: torch.tensor(sees)}
    choice = choose_probe(residuals, y, np.arange(300), names, config, layers=[1, 2], modality=modality, seed=0)
    assert choice.probe.layers == (2,) and choice.not_asked == {}
    audio_alone = np.stack([np.ones(300, dtype=bool), modality == "audio"], axis=1)  # as if nobody asked about *no* in vision
    folds = grouped_folds(y, np.arange(300), 3, 0)
    by_audio = [score(out_of_fold(z.double().numpy(), y, folds, "logistic", 0.1), y, audio_alone) for z in residuals.values()]
    assert by_audio[0]["given_modality"] > by_audio[1]["given_modality"] + 0.02


def test_a_third_concept_counts_where_it_is_asked_about():
    """One in ten of the labels there is no mistake, even where another modality has most of it; what is rare everywhere stays."""
    y = np.repeat([0, 1, 2, 0, 1, 2], [100, 80, 20, 40, 40, 120])
    assert possible_concepts(y, np.repeat(["vision", "audio"], 200), 3).all()
    rare = np.repeat([0, 1, 2, 0, 1, 2], [100, 95, 5, 100, 95, 5])
    assert possible_concepts(rare, np.repeat(["vision", "audio"], 200), 3).all()


@pytest.mark.parametrize("clips", [50, 250])
def test_a_fifth_of_wrong_labels_asks_no_question(clips):
    """As labelling.noise makes them, another of five options: *unheard* among questions of the picture stays out and is told of."""
    lost = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        modality, truth = (
            np.tile(["vision", "vision", "audio", "audio"], clips),
            np.tile([0, 3, 0, 4], clips),
        )  # of three contents, the first
        wrong = rng.permutation(4 * clips) < round(0.2 * 4 * clips)
        option = np.where(wrong, (truth + rng.integers(1, 5, 4 * clips)) % 5, truth)
        y = np.array([0, 0, 0, 1, 2])[option]
        possible, found = possible_concepts(y, modality, 3), not_asked(y, modality, CONCEPTS)
        lost += possible[modality == "vision", 2].any() or possible[modality == "audio", 1].any()
        assert possible[modality == "vision", :2].all() and possible[modality == "audio", ::2].all()
        left = int((y[modality == "vision"] == 2).sum())
        if left and not possible[0, 2]:
            assert found["vision"] == {CONCEPTS[2]: left} and f"vision: {CONCEPTS[2]} ({left} items)" in not_asked_words(found)
    assert lost <= 2


def test_a_modality_with_one_concept_has_that_one():
    """And one with two has both, however rare the second."""
    y, modality = np.array([0] * 30 + [0] * 29 + [1] + [1, 2] * 20), np.repeat(["one", "two", "rest"], [30, 30, 40])
    found = possible_concepts(y, modality, 3)
    assert found[0].tolist() == [True, False, False] and found[30].tolist() == [True, True, False]
    assert found[60].tolist() == [False, True, True] and not_asked_words({}) == ""


def test_a_certain_probe_keeps_the_digits_of_its_doubt():
    """The reading in double precision: what is left to the other concept falls on where float32 rounds it to nothing."""
    probe = FrozenProbe(
        mean=np.zeros(1), scale=np.ones(1), weight=np.array([[-1.0], [1.0]]), bias=np.zeros(2), temperature=1.0, layers=[1], family="lda",
        strength=0.1, concepts=["a", "b"],
    )  # fmt: skip
    z = torch.linspace(-30, 30, 61)[:, None]
    log, read = probe.predict_log_proba(z), probe.predict_proba(z)
    np.testing.assert_allclose(log[:, 1] - log[:, 0], 2 * z[:, 0].double().numpy())
    np.testing.assert_allclose(evidence_for(read, [1]), 2 * z[:, 0].double().numpy(), atol=1e-9)
    np.testing.assert_allclose(log, probe(z).double().numpy(), atol=1e-4)
    assert probe.predict_proba(z[:0]).shape == (0, 2)


def test_layers_that_each_hold_half_of_the_evidence_are_read_side_by_side():
    """Together they read clips that were never seen better than either; a third, which tells little, is left out."""
    everything, labels, names = planted(2, 4, strength=1.2, n=480)
    fit = np.isin(names, np.random.default_rng(0).permutation(np.unique(names))[:60])
    residuals, y, clips = {layer: z[fit] for layer, z in everything.items()}, labels[fit], names[fit]
    new = ({layer: z[~fit] for layer, z in everything.items()}, labels[~fit])
    config = ProbeConfig(families=["logistic", "mean_difference"], c=[0.01, 0.1], folds=3, stack=3)
    choice = choose_probe(residuals, y, clips, CONCEPTS, config, layers=[1, 2, 3, 4], seed=0)
    assert (choice.probe.layers, choice.probe.layer, choice.probe.weight.shape) == ((2, 4), 4, (3, 24))
    assert len(choice.table) == 4 * 3 + 2 * 3 and [row["layers"] for row in choice.table[::3]][4] == [2, 4]
    assert {2, 4} < set(choice.table[-1]["layers"]) and all(row["layer"] == row["layers"][-1] for row in choice.table)
    z = torch.cat([residuals[2], residuals[4]], dim=1)
    assert torch.equal(choice.probe.features(residuals), z)
    best = max(choice.table, key=lambda row: row["log_likelihood"])
    logits = out_of_fold(z.double().numpy(), y, grouped_folds(y, clips, 3, 0), best["family"], best["strength"])
    np.testing.assert_allclose(choice.reading, softmax(logits / best["temperature"], axis=1), atol=1e-9)
    for layer in (2, 4):
        alone = choose_probe(residuals, y, clips, CONCEPTS, config, layers=[layer], seed=0)
        assert alone.probe.layers == (layer,) and held_out_likelihood(choice, *new) > held_out_likelihood(alone, *new) + 0.05


def test_one_layer_that_has_it_all_is_read_alone_and_bit_for_bit_as_without_stacks():
    """Stacks are tried after the single layers and change nothing of them."""
    residuals, y, clips = planted(2)
    found = {}
    for stack in (1, 3):
        config = ProbeConfig(families=["logistic", "lda"], c=[0.01, 0.1], shrinkage=[0.5], folds=3, stack=stack)
        found[stack] = choose_probe(residuals, y, clips, CONCEPTS, config, layers=[1, 2, 3, 4], seed=0)
    assert found[1].probe.layers == found[3].probe.layers == (2,)
    assert found[3].table[: 4 * 3] == found[1].table and len(found[3].table) == 6 * 3
    assert (found[1].reading == found[3].reading).all()
    assert all(torch.equal(a, b) for a, b in zip(found[1].probe.buffers(), found[3].probe.buffers(), strict=True))


@pytest.mark.parametrize(("least", "where"), [(1, "meta"), (10**6, "cpu")])
def test_large_layers_are_searched_on_the_device(least, where, monkeypatch):
    """Each by itself; small ones and the other families stay on the CPU, and so does the last fit."""
    residuals, y, clips = planted(2)
    seen, real = [], probe_search.held_out

    def spy(z, *args, **options):
        seen.append((z.device.type, len(z)))
        return real(residuals[len(seen)], *args, **options)

    monkeypatch.setattr(probe_search, "held_out", spy)
    monkeypatch.setattr(probe_search, "LARGE", least)
    config, device = ProbeConfig(families=["logistic", "mean_difference"], c=[0.1], folds=3), torch.device("meta")
    choice = choose_probe(residuals, y, clips, CONCEPTS, config, layers=[1, 2, 3], device=device, seed=0)
    assert seen == [(where, len(y))] * 3 and choice.probe.layer == 2
    assert all(b.device.type == "cpu" for b in choice.probe.buffers())


def test_a_device_without_memory_leaves_the_search_to_the_cpu(monkeypatch, capsys):
    """Said in one line, and not tried again for every layer."""
    residuals, y, clips = planted(2)
    seen, real = [], probe_search.held_out

    def full(z, *args, **options):
        seen.append(z.device.type)
        if z.device.type == "meta":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(z, *args, **options)

    monkeypatch.setattr(probe_search, "held_out", full)
    monkeypatch.setattr(probe_search, "LARGE", 1)
    config, how = ProbeConfig(families=["logistic"], c=[0.1], folds=3), {"layers": [1, 2, 3], "seed": 0}
    found = choose_probe(residuals, y, clips, CONCEPTS, config, device=torch.device("meta"), **how)
    assert seen == ["meta", "cpu", "cpu", "cpu"]
    assert capsys.readouterr().out.count("probe.device: meta has too little free memory") == 1
    assert found.table == choose_probe(residuals, y, clips, CONCEPTS, config, **how).table


@pytest.mark.parametrize(
    ("model", "device", "where"), [("cuda:1", "auto", "cuda:1"), ("cuda", "cpu", None), ("mps", "auto", None), ("cpu", "auto", None)]
)
def test_the_search_leaves_the_cpu_for_cuda_alone(model, device, where):
    from gapclose.pipeline.measure_context import search_device

    assert search_device(ProbeConfig(device=device), torch.device(model)) == (where and torch.device(where))


def test_stacks_are_tried_in_the_folds_of_the_single_layers(monkeypatch):
    """The same for every layer, stack, family and strength, and none splits a clip."""
    residuals, y, clips = planted(2, 4, strength=1.2)
    used = []
    for name in ("held_out", "out_of_fold"):
        real = getattr(probe_search, name)
        monkeypatch.setattr(
            probe_search, name, lambda z, y, folds, *a, real=real, **k: used.append((z.shape[1], folds)) or real(z, y, folds, *a, **k)
        )
    config = ProbeConfig(families=["logistic", "mean_difference"], c=[0.1], folds=3, stack=3)
    choose_probe(residuals, y, clips, CONCEPTS, config, layers=[1, 2, 3, 4], seed=0)
    assert [width for width, _ in used] == [12] * 8 + [24] * 2 + [36] * 2 + [24]
    assert all(folds is used[0][1] for _, folds in used)
    assert not any(set(clips[train]) & set(clips[test]) for train, test in used[0][1])


def test_random_labels_are_read_at_chance():
    """The skeptic's check of the whole search, stacks and all: nothing in it may know the labels of the clip it reads."""
    residuals, y, clips = planted(2)
    # one label a clip: what a memorising probe would exploit
    y = np.random.default_rng(5).permutation(np.arange(len(np.unique(clips))) % 3)[clips]
    choice = choose_probe(residuals, y, clips, CONCEPTS, ProbeConfig(c=[0.01], shrinkage=[0.5], stack=3), layers=[1, 2, 3], seed=0)
    assert max(r["accuracy"] for r in choice.table) < 0.45
    assert max(r["log_likelihood"] for r in choice.table) < np.log(1 / 3) + 0.02


def test_the_same_seed_chooses_the_same_and_the_seed_matters():
    """Down to the last bit of every buffer."""
    residuals, y, clips = planted(2)

    def run(seed):
        config = ProbeConfig(families=["logistic"], c=[0.1], folds=3)
        return choose_probe(residuals, y, clips, CONCEPTS, config, layers=[1, 2], seed=seed)

    first, again, other = run(0), run(0), run(1)
    assert (first.reading == again.reading).all() and first.table == again.table
    assert all(torch.equal(a, b) for a, b in zip(first.probe.buffers(), again.probe.buffers(), strict=True))
    assert (first.reading != other.reading).any()


def test_a_fresh_probe_follows_a_change_of_basis_that_the_frozen_one_cannot():
    """Knowledge that moved: the fresh reading holds."""
    z, y, clips = data(3, strength=2.5)
    probe = frozen(z, y, "logistic", 0.1)
    turned = torch.tensor(z[:, ::-1].copy())
    fresh = fresh_reading(probe, turned, y, clips, 4, 0)
    assert (fresh.argmax(1) == y).mean() > 0.85 > 0.6 > (probe.predict_proba(turned).argmax(1) == y).mean()
    lost = fresh_reading(probe, torch.randn(z.shape, generator=torch.Generator().manual_seed(0)), y, clips, 4, 0)
    assert (lost.argmax(1) == y).mean() < 0.45


@pytest.mark.parametrize(
    ("layers", "above", "n_layers", "expected"),
    [(None, 2, 5, [1, 2, 3]), ([3, 1, 3], 2, 5, [1, 3]), (None, 1, 2, [1]), ([4], 2, 5, "1..3"), (None, 2, 2, "1..0")],
)
def test_candidate_layers_leave_room_above_them(layers, above, n_layers, expected):
    """Layers that do not exist or leave too few for LoRA are refused by number."""
    config = ProbeConfig(layers=layers, layers_above=above)
    if isinstance(expected, list):
        assert config.candidates(n_layers) == expected
    else:
        with pytest.raises(ValueError, match=f"this decoder has {n_layers} layers, and a probe may read layers {expected}"):
            config.candidates(n_layers)


def test_a_stack_of_more_layers_than_there_are_candidates_is_refused():
    """By the key, with the candidates."""
    assert ProbeConfig(layers=[1, 3], stack=2).candidates(5) == [1, 3]
    with pytest.raises(ValueError, match=r"probe\.stack is 3, and there are 2 candidate layers: \[1, 3\]"):
        ProbeConfig(layers=[1, 3], stack=3).candidates(5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"families": ["mlp"]}, "probe.families"),
        ({"families": []}, "probe.families"),
        ({"folds": 1}, "probe.folds"),
        ({"layers_above": 0}, "probe.layers_above"),
        ({"stack": 0}, "probe.stack is 0"),
        ({"c": [0.0]}, "probe.c"),
        ({"shrinkage": [1.5]}, "probe.shrinkage"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    """By name, when the configuration is read."""
    with pytest.raises(ValueError, match=message):
        ProbeConfig(**change)


def test_what_the_labels_lack_is_said():
    """An absent concept, too few clips, and a concept that lives in one clip only."""
    z, y, clips = data(2)
    residuals, config = {1: torch.tensor(z)}, ProbeConfig(families=["mean_difference"])
    with pytest.raises(ValueError, match=r"no labelled item expresses \['false_audio'\]"):
        choose_probe(residuals, y, clips, CONCEPTS, config, layers=[1], seed=0)
    with pytest.raises(ValueError, match="3 clips cannot make 4 folds"):
        choose_probe(residuals, y, clips % 3, CONCEPTS[:2], config, layers=[1], seed=0)
    with pytest.raises(ValueError, match="a concept occurs in too few"):
        choose_probe(residuals, (clips == 0).astype(int), clips, CONCEPTS[:2], config, layers=[1], seed=0)
