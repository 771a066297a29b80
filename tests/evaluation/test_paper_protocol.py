"""The source paper's own figures: equal to a plain computation with scikit-learn, and skipped with a reason where they cannot be had."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gapclose.evaluation.config import ControlsConfig
from gapclose.evaluation.controls.residualize import text_directions
from gapclose.evaluation.controls.scoring import ControlScorer
from gapclose.evaluation.protocols.compare import FIGURES, set_beside
from gapclose.evaluation.protocols.imavb import Protocol, cross_validate, folds, standardised, without_text, words
from gapclose.metrics.bootstrap import ClipBootstrap
from gapclose.metrics.labels import Action, Labels

WIDTH, LAYERS = 10, (1, 2, 3)


class World:
    """Clips with four items each, like the paper's; layer 2 tells what is misleading, as much as ``signal`` says."""

    def __init__(self, clips: int = 40, signal: float = 4.0, seed: int = 0, names: tuple[str, ...] = ("ear", "eye")) -> None:
        rng = np.random.default_rng(seed)
        modality = np.repeat(np.tile(names, clips), 2)
        concept = np.tile([0, 1], len(modality) // 2) * (1 + (modality == names[-1]))
        n = len(concept)
        self.labels = Labels(
            clip=np.repeat([f"clip-{c}" for c in range(clips)], 2 * len(names)), modality=modality, concept=concept,
            gold=np.where(concept == 0, rng.integers(2, size=n), concept + 1), option_concept=np.tile([0, 0, 1, 2], (n, 1)),
            concepts=("fine", "bad_ear", "bad_eye"), alarm=("bad_ear", "bad_eye"),
        )  # fmt: skip
        states = {layer: rng.normal(size=(n, WIDTH)) for layer in LAYERS}
        states[2][:, 0] += signal * (concept > 0)
        states[2][:, 1] = rng.integers(3, size=n)  # the wording
        self.states = {layer: z.astype(np.float32) for layer, z in states.items()}
        self.texts = [f"{('what', 'where', 'who')[int(k)]} is in it" for k in states[2][:, 1]]
        self.said = np.where(rng.random(n) < 0.8, self.labels.gold, -1)
        self.y = (concept > 0).astype(int)

    def protocol(self, keep: np.ndarray | None = None) -> Protocol:
        labels = self.labels if keep is None else self.labels.take(keep)
        return Protocol(labels, ClipBootstrap(labels.clip, 100, 0))

    def of(self, modality: str) -> np.ndarray:
        return self.labels.modality == modality

    def beside(self, **other) -> dict:
        n = len(self.y)
        reading = np.eye(3)[self.labels.concept]
        action = Action(chosen=np.maximum(self.said, 0), scores=np.zeros((n, 4)))
        given = {"texts": self.texts, "said": self.said, "residual_of": self.states.__getitem__, "layers": LAYERS} | other
        return set_beside(ControlScorer(self.labels, reading, 100, 0), action, [], **given)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def plain(model, x, y: np.ndarray, clips: np.ndarray) -> float:
    """Mean of the folds' accuracies, by nothing but scikit-learn."""
    parts = StratifiedGroupKFold(n_splits=4, shuffle=True, random_state=42).split(x, y, groups=clips)
    return float(np.mean([model.fit(x[train], y[train]).score(x[held], y[held]) for train, held in parts]))


def logistic() -> LogisticRegression:
    return LogisticRegression(C=1.0, solver="lbfgs", max_iter=1000, random_state=42)


def value(found: dict, name: str, scope: str) -> float:
    return next(r["paper"]["value"] for f in found["figures"] if f["name"] == name for r in f["rows"] if r["scope"] == scope)


def test_every_figure_equals_a_plain_computation(world):
    """Peak layer, probes, text and the four cells; the majority class of a modality's probe has 66.7 %."""
    found, y, clips = world.beside(), world.y, world.labels.clip
    probe = make_pipeline(StandardScaler(), logistic())
    by_layer = {layer: plain(probe, world.states[layer], y, clips) for layer in LAYERS}
    assert {row["layer"]: row["accuracy"]["value"] for row in found["layers"]} == pytest.approx(by_layer)
    assert found["peak_layer"] == 2 and value(found, "global", "all") == pytest.approx(by_layer[2])
    means = {"standard": [], "rejection": []}
    for m in ("ear", "eye"):
        mine, wide = world.of(m), world.of(m) | (y == 0)
        probed = plain(probe, world.states[2][wide], y[wide], clips[wide])
        assert value(found, "probe", m) == pytest.approx(probed)
        assert value(found, "own", m) == pytest.approx(plain(probe, world.states[2][mine], y[mine], clips[mine]))
        words_of = make_pipeline(TfidfVectorizer(max_features=5000), logistic())
        assert value(found, "text", m) == pytest.approx(plain(words_of, np.array(world.texts)[mine], y[mine], clips[mine]), abs=1e-9)
        for name, kind in (("standard", 0), ("rejection", 1)):
            right = (world.said == world.labels.gold)[mine & (y == kind)].mean()
            assert value(found, name, m) == pytest.approx(right)
            means[name].append(right)
        assert value(found, "gap", m) == pytest.approx(probed - means["rejection"][-1])
    assert value(found, "balanced", "all") == pytest.approx((np.mean(means["standard"]) + np.mean(means["rejection"])) / 2)
    rows = {(f["name"], r["scope"]): r for f in found["figures"] for r in f["rows"]}
    assert {rows["probe", m]["majority"] for m in ("ear", "eye")} == {2 / 3} and rows["own", "eye"]["majority"] == 0.5
    assert rows["gap", "eye"]["majority"] is rows["rejection", "eye"]["majority"] is None
    assert all(r["skipped"] is None and r["paper"]["lower"] <= r["paper"]["value"] <= r["paper"]["upper"] for r in rows.values())
    assert [f["name"] for f in found["figures"]] == [name for name in FIGURES if name != "encoder"]


@pytest.mark.parametrize("encoder", [False, True], ids=["words", "encoder"])
def test_residuals_are_freed_of_text_inside_every_fold(world, encoder):
    """As a plain ridge regression, its SVD and the projection give it, fitted on the fold's own training items."""
    encoded = np.random.default_rng(1).normal(size=(len(world.y), 4)) + world.states[2][:, :1] if encoder else None
    found = world.beside(encoded=encoded)
    assert found["residualised_against"] == ("sentence encoder" if encoder else "TF-IDF")
    for m in ("ear", "eye"):
        mine, right = world.of(m), []
        z, y, clips, texts = world.states[2][mine].astype(float), world.y[mine], world.labels.clip[mine], np.array(world.texts)[mine]
        for train, held in StratifiedGroupKFold(4, shuffle=True, random_state=42).split(z, y, clips):
            scaler = StandardScaler().fit(z[train])
            h, g = scaler.transform(z[train]), scaler.transform(z[held])
            t = encoded[mine][train] if encoder else TfidfVectorizer(max_features=5000).fit_transform(texts[train]).toarray()
            weight = Ridge(alpha=1.0, fit_intercept=False).fit(h, StandardScaler().fit_transform(t)).coef_
            _, sizes, rows = np.linalg.svd(weight, full_matrices=False)
            out = rows[sizes > 1e-5 * sizes.max()].T
            left, judged = h - h @ out @ out.T, g - g @ out @ out.T
            right.append(make_pipeline(StandardScaler(), logistic()).fit(left, y[train]).score(judged, y[held]))
        assert value(found, "residualised", m) == pytest.approx(np.mean(right))
    if encoder:
        mine = world.of("eye")
        alone = plain(make_pipeline(StandardScaler(), logistic()), encoded[mine], world.y[mine], world.labels.clip[mine])
        assert value(found, "encoder", "eye") == pytest.approx(alone)


@pytest.mark.parametrize("width", [6, 30], ids=["more items than directions", "fewer"])
def test_directions_are_those_of_a_ridge_regression(width):
    """Whichever of the two equal systems is solved, and with more text features than items too."""
    rng = np.random.default_rng(0)
    h = StandardScaler().fit_transform(rng.normal(size=(12, width)))
    for features in (3, 20):
        text = rng.normal(size=(12, features))
        _, sizes, rows = np.linalg.svd(Ridge(alpha=1.0, fit_intercept=False).fit(h, text).coef_, full_matrices=False)
        plain_ones, found = rows[sizes > 1e-5 * sizes.max()], text_directions(h, text)
        np.testing.assert_allclose(found @ found.T, plain_ones.T @ plain_ones, atol=1e-8)


def test_what_is_planted_is_found_and_what_is_not_stays_near_the_majority(world):
    """A strong signal reads above 0.9; without one, the modality's probe earns no more than always saying standard."""
    assert min(value(world.beside(), "probe", m) for m in ("ear", "eye")) > 0.9
    nothing = World(signal=0.0, seed=1).beside()
    for m in ("ear", "eye"):
        assert abs(value(nothing, "own", m) - 0.5) < 0.15 and value(nothing, "probe", m) < 2 / 3 + 0.08


def test_no_clip_is_on_both_sides_of_a_fold(world):
    """Every item is held out once, beside the other items of its clip."""
    clips, held = world.labels.clip, []
    for train, out in folds(world.y, clips):
        assert not set(clips[train]) & set(clips[out])
        held += out.tolist()
    assert sorted(held) == list(range(len(clips)))


def test_held_out_labels_do_not_reach_their_own_fold(world):
    """Nothing that is fitted sees the fold that it is judged on: texts and residuals of held-out items may be anything."""
    keep = np.ones(len(world.y), dtype=bool)
    train, held = folds(world.y, world.labels.clip)[0]
    other, texts = world.states[2].copy(), np.array(world.texts, dtype=object)
    other[held], texts[held] = 1e3, "never seen before"
    for make in (lambda z, t: standardised(z), lambda z, t: words(t), lambda z, t: without_text(z, words(t))):
        before, after = make(world.states[2], world.texts)(train, held)[0], make(other, texts)(train, held)[0]
        np.testing.assert_array_equal(before, after)
    assert set(cross_validate(standardised(world.states[2]), keep, world.y > 0, world.labels.clip).fold) == {0, 1, 2, 3}


def reasons(found: dict) -> dict[tuple[str, str], str]:
    return {(f["name"], r["scope"]): r["skipped"] for f in found["figures"] for r in f["rows"] if r["skipped"]}


def test_items_without_the_papers_structure_are_skipped_with_a_reason(world):
    """No alarm at all, one modality, no misleading items of one, too few clips, no words: never a crash, and never an empty reason."""
    quiet = World()
    quiet.labels = quiet.labels.take(quiet.y == 0)
    quiet.y, quiet.said = quiet.y[quiet.y == 0], quiet.said[quiet.y == 0]
    assert quiet.beside()["skipped"].startswith("no item has an alarm") and quiet.beside()["figures"] == []

    lone = World(names=("eye",)).beside()
    assert reasons(lone) == {} and value(lone, "probe", "eye") == value(lone, "own", "eye")

    half = World()
    half.labels.concept[half.of("ear")] = 0
    half.y = (half.labels.concept > 0).astype(int)
    told = reasons(half.beside())
    assert told["rejection", "ear"] == "it has no misleading items" and "misleading items are of 0 clips" in told["probe", "ear"]
    assert told["gap", "ear"] == "it takes the figure 'probe', which was skipped" and not any(scope == "eye" for _, scope in told)

    few = World(clips=3).beside()
    assert few["peak_layer"] is None and few["layers"] == [] and value(few, "standard", "ear") >= 0
    skipped = {(name, scope) for name in ("probe", "gap", "own", "residualised", "text") for scope in ("ear", "eye")}
    assert set(reasons(few)) == {("global", "all")} | skipped and "takes the peak layer" in reasons(few)["own", "ear"]

    wordless = reasons(world.beside(texts=["7"] * len(world.y)))
    assert "empty vocabulary" in wordless["text", "ear"] and "empty vocabulary" in wordless["residualised", "eye"]
    telling = reasons(world.beside(encoded=np.random.default_rng(0).normal(size=(len(world.y), 60))))
    assert "the 60 text features predict everything" in telling["residualised", "ear"]
    for found in (lone, few, half.beside()):
        json.dumps(found, allow_nan=False)


def test_layers_are_read_one_at_a_time(world):
    """Each layer once, and the peak layer once more."""
    asked = []
    world.beside(residual_of=lambda layer: asked.append(layer) or world.states[layer])
    assert asked == [1, 2, 3, 2]


def test_the_switch_takes_a_known_protocol_only():
    """The message names the value and what there is."""
    assert ControlsConfig().protocol is None and ControlsConfig(protocol="imavb").protocol == "imavb"
    with pytest.raises(ValueError, match=r"controls.protocol is 'IMAVB'; choose one of \['imavb'\], or null for none"):
        ControlsConfig(protocol="IMAVB")
