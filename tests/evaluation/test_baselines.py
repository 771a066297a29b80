"""Inference-time baselines on planted scores and readings: formulas, known best operating points, budgets, and no look at the test."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from gapclose.evaluation.baselines.compare import BUDGETS, compare, methods, pareto
from gapclose.evaluation.baselines.operating_point import Method, Rates, Scored, Seen, alarms, choose, front, rates, unchanged
from gapclose.evaluation.baselines.pgla import GRID, WIDE, Gate, adjust, pgla, pgla_by_text, rejection_bias, settings
from gapclose.evaluation.baselines.probe_answer import answer_by_probe, answer_by_text, answer_scores
from gapclose.evaluation.baselines.shift import best_shift, shift, shift_each, thresholds
from gapclose.evaluation.controls.features import Chosen
from gapclose.evaluation.controls.text import TEXT_MAKERS, text_out_of_fold
from gapclose.metrics.bootstrap import ClipBootstrap
from gapclose.metrics.labels import Labels
from gapclose.probes.cross_validation import grouped_folds
from gapclose.probes.posterior import factors, jeffrey

CONCEPTS, ALARM = ("standard", "false_vision", "false_audio"), ("false_vision", "false_audio")
WIDTH = 10


def world(clips: int, seed: int, *, known: float = 2.5, lean: float = 1.5, says: float = 0.0) -> tuple[Seen, Labels]:
    """Four items a clip; options are two contents, unseen, unheard; the model never rejects unless its scores are moved.

    Args:
        known: distance of the residual's (and so the reading's) evidence between true and false premises, in standard deviations.
        lean: nats by which content is ahead on average. says: nats by which a rejection gains where it is right.
    """
    rng = np.random.default_rng(seed)
    modality, false = np.tile(["vision", "vision", "audio", "audio"], clips), np.tile([False, True], 2 * clips)
    concept = np.where(false, np.where(modality == "vision", 1, 2), 0)
    content = rng.integers(2, size=len(false))
    evidence = rng.normal(size=len(false)) + known * (false - 0.5)
    residual = rng.normal(size=(len(false), WIDTH))
    residual[:, 0], residual[:, 1] = evidence, modality == "vision"
    scores = rng.normal(scale=0.3, size=(len(false), 4))
    scores[np.arange(len(false)), content] += lean
    scores[:, :2] += 1.5
    mine = np.where(modality == "vision", 2, 3)
    scores[np.arange(len(false)), mine] += 1.5 + says * false
    belief = expit(known * evidence)
    reading = np.stack([1 - belief, belief * (modality == "vision"), belief * (modality == "audio")], axis=1)
    empty = rng.random(len(false))
    text = np.stack([1 - empty, empty * (modality == "vision"), empty * (modality == "audio")], axis=1)
    table = np.tile([0, 0, 1, 2], (len(false), 1))
    labels = Labels(
        clip=np.repeat([f"{seed}-{c}" for c in range(clips)], 4), modality=modality, concept=concept,
        gold=np.where(false, mine, content), option_concept=table, concepts=CONCEPTS, alarm=ALARM,
    )  # fmt: skip
    return Seen(scores=scores, option_concept=table, residual=residual, reading=reading, text=text), labels


@pytest.fixture(scope="module")
def split():
    """Fit and test: what is seen, and the labels."""
    return *world(60, 1), *world(80, 2)


@pytest.fixture(scope="module")
def val():
    """Twenty clips more, to choose on."""
    return world(20, 3)


def on_fit(method: Method, fit: Seen, known: Labels, budgets) -> list[dict | None]:
    return choose(method.settings, method.fit, unchanged(fit), known, budgets)


# -- PGLA -----------------------------------------------------------------------------------------------------------------------------


def as_printed(
    scores: dict[str, float], p_mis: float, beta: float, *, gamma: float, p: float, alpha: float, s: float, delta: float
) -> dict:
    """Equations 1 and 2 of the paper, one item and one option at a time."""
    g = p_mis**p
    gap = max(scores[o] for o in "ABCD") - max(scores["E"], scores["F"])
    boost = 1 / (1 + math.exp(-gamma * (g - alpha))) * (s * gap + delta)
    return {**scores, "E": scores["E"] + boost - beta / 2, "F": scores["F"] + boost + beta / 2}


def test_pgla_is_the_published_formula_at_all_162_settings():
    """Against a transcription for one item; beta from standard items, in the paper's own terms."""
    rng = np.random.default_rng(0)
    scores, p_mis, table = rng.normal(scale=4, size=(7, 6)), rng.random(7), np.tile([0, 0, 0, 0, 1, 2], (7, 1))
    beta = float(np.mean(scores[:, 4] - scores[:, 5]))
    bias = rejection_bias(scores, table, [1, 2])
    assert bias == pytest.approx({1: beta / 2, 2: -beta / 2})
    points = settings()
    assert len(points) == 162 and points[0] == {k: v[0] for k, v in GRID.items()} and len(settings(WIDE)) == 1512
    assert all(set(GRID[k]) <= set(WIDE[k]) for k in GRID)
    found = adjust(scores, table, p_mis, bias, points)
    assert found.shape == (162, 7, 6)
    for k, point in enumerate(points):
        for n in range(7):
            wanted = as_printed(dict(zip("ABCDEF", scores[n], strict=True)), p_mis[n], beta, **point)
            np.testing.assert_allclose(found[k, n], list(wanted.values()))


def test_pgla_does_not_depend_on_what_all_options_have_in_common():
    """Log-probabilities differ from logits by a constant an item."""
    rng = np.random.default_rng(0)
    scores, p_mis, table = rng.normal(size=(5, 4)), rng.random(5), np.tile([0, 0, 1, 2], (5, 1))
    moved = scores + 10 * rng.normal(size=(5, 1))
    one, other = (adjust(s, table, p_mis, rejection_bias(s, table, [1, 2]), settings()) for s in (scores, moved))
    np.testing.assert_allclose(other - moved, one - scores, atol=1e-9)


def test_one_rejection_or_three_have_a_bias_from_their_mean():
    """One has none; items without one of them, and options beyond the end, are left out."""
    scores = np.array([[1.0, 2.0, 5.0, 8.0], [0.0, 4.0, 4.0, -np.inf]])
    table = np.array([[0, 1, 2, 3], [0, 1, 2, -1]])
    assert rejection_bias(scores, table, [1]) == {1: 0.0}
    assert rejection_bias(scores, table, [1, 2, 3]) == pytest.approx({1: (-3 + 0) / 2, 2: 0.0, 3: 3.0})
    assert rejection_bias(scores[:0], table[:0], [1, 2]) == {1: 0.0, 2: 0.0}
    found = adjust(scores, table, np.array([0.5, 0.5]), {1: 0.0, 2: 0.0, 3: 0.0}, settings()[:2])
    assert (found[:, 1, 3] == -np.inf).all() and np.isfinite(found[:, 0]).all()


def test_items_without_content_or_without_a_rejection_stay_as_they_are():
    """There is no distance between the two."""
    scores = np.array([[1.0, 2.0], [1.0, 2.0]])
    found = adjust(scores, np.array([[0, 0], [1, 2]]), np.ones(2), {1: 0.4, 2: -0.4}, settings())
    np.testing.assert_array_equal(found, np.tile(scores, (162, 1, 1)))


def test_the_gate_reads_planted_evidence_and_repeats_itself(split):
    """As good as the evidence allows, without touching the global random state."""
    fit, known, items, labels = split
    gate = Gate(fit.residual, known.concept > 0, 0)
    p_mis = gate(items.residual)
    assert p_mis.shape == (320,) and ((p_mis > 0.5) == (labels.concept > 0)).mean() > 0.8
    np.testing.assert_array_equal(p_mis, Gate(fit.residual, known.concept > 0, 0)(items.residual))


def test_pgla_out_of_fold_is_by_a_gate_and_a_bias_without_the_clip(split):
    """Its scores of a held-out fold are those of a PGLA fitted on the other folds."""
    fit, known, *_ = split
    method, wide = pgla(fit, known, folds=3, seed=0)
    train, held = grouped_folds(known.concept, known.clip, 3, 0)[1]
    standard = train[known.standard[train]]
    p_mis = Gate(fit.residual[train], known.concept[train] > 0, 0)(fit.residual[held])
    bias = rejection_bias(fit.scores[standard], fit.option_concept[standard], [1, 2])
    wanted = adjust(fit.scores[held], fit.option_concept[held], p_mis, bias, settings()[:3])
    np.testing.assert_allclose(method.fit(settings()[:3])[:, held], wanted)
    np.testing.assert_array_equal(wide.fit(settings()[:3]), method.fit(settings()[:3]))


# -- choices --------------------------------------------------------------------------------------------------------------------------


def permuted(labels: Labels) -> Labels:
    """Every item with the label of another."""
    return replace(labels, concept=labels.concept[::-1], gold=labels.gold[::-1])


def test_val_chooses_and_test_does_not(split, val):
    """Other labels of val change what is chosen, other labels of test only how it is judged, other test items not even the settings."""
    fit, known, items, labels = split
    other, true = world(30, 9, known=0.0)
    cases = ((val, items, labels), (val, items, permuted(labels)), (val, other, true), ((val[0], permuted(val[1])), items, labels))
    found = [compare(fit, known, *test, ClipBootstrap(test[1].clip, 20, 0), val=of, folds=3, seed=0) for of, *test in cases]
    points, fronts = ([[[row["setting"] for row in m[part]] for m in f["methods"]] for f in found] for part in ("points", "front"))
    assert points[0] == points[1] == points[2] and fronts[0] == fronts[1] == fronts[2]
    # many settings of the published grid do the same here, and of equals the gentlest is taken under either labels
    same = [m["name"] for m, a, b in zip(found[0]["methods"], points[0], points[3], strict=True) if a == b]
    assert set(same) <= {"pgla"} and fronts[0] != fronts[3]
    judged = [f["methods"][0]["points"][0]["balanced"] for f in found]
    assert judged[0] != judged[1]
    assert {(f["chosen_on"], f["n_choice"]) for f in found} == {("val", 80)}


def test_nothing_is_fitted_on_val(split, val):
    """With other items to choose on, every method answers test items as before; shifts, which fit nothing, have other settings to try."""
    fit, known, items, _ = split
    ours, others = ({m.name: m for m in methods(fit, known, seen, folds=3, seed=0)} for seen in (val[0], world(20, 4)[0]))
    for name, method in ours.items():
        assert (method.settings == others[name].settings) is (name not in ("shift", "shift_each"))
        tried = method.settings[-3:]
        np.testing.assert_array_equal(method.answers(items)(tried), others[name].answers(items)(tried))


def test_a_set_without_val_chooses_on_fit_out_of_fold(split):
    """What is chosen, and the rates that it was chosen by, are those of the scores without an item's own clip."""
    fit, known, items, labels = split
    found = compare(fit, known, items, labels, ClipBootstrap(labels.clip, 20, 0), val=None, folds=3, seed=0)
    assert (found["chosen_on"], found["n_choice"]) == ("fit", 240)
    for of, method in zip(found["methods"], methods(fit, known, fit, folds=3, seed=0), strict=True):
        assert [p["setting"] for p in of["points"]] == on_fit(method, fit, known, BUDGETS)
        held_out = rates(method.fit, [p["setting"] for p in of["points"] if p["setting"]], known)
        assert [p["choice"]["standard_accuracy"] for p in of["points"] if p["setting"]] == held_out.standard.tolist()


@pytest.mark.parametrize("budget", [0.0, 0.01, 0.03, 0.1])
def test_the_budget_is_kept_on_fit_out_of_fold(split, budget):
    """Whatever is chosen loses no more there, and gains balanced accuracy; a larger budget never does worse."""
    fit, known, *_ = split
    base = rates(unchanged(fit), [{}], known)
    for method in methods(fit, known, fit, folds=3, seed=0):
        name, (setting,) = method.name, on_fit(method, fit, known, [budget])
        if setting is None:
            continue
        found = rates(method.fit, [setting], known)
        assert base.standard[0] - found.standard[0] <= budget + 1e-9, name
        assert found.balanced[0] > base.balanced[0], name
        more = rates(method.fit, [s for s in on_fit(method, fit, known, [1.0, None]) if s], known)
        assert (more.balanced >= found.balanced[0]).all(), name


def test_a_budget_that_nothing_keeps_leaves_the_base_model(split):
    """A method that is always wrong."""
    fit, known, *_ = split
    assert choose([{}], lambda s: -unchanged(fit)(s), unchanged(fit), known, [0.5, None]) == [None, {}]


def test_rates_by_hand():
    """Two modalities, four cells; nan where there is nothing to count."""
    labels = Labels(
        clip=np.arange(5), modality=np.array(["v", "v", "v", "a", "a"]), concept=np.array([0, 0, 1, 0, 2]),
        gold=np.array([0, 0, 1, 0, 2]), option_concept=np.tile([0, 1, 2], (5, 1)), concepts=CONCEPTS, alarm=ALARM,
    )  # fmt: skip
    scores = np.eye(3)[[0, 1, 2, 0, 2]]
    found = rates(lambda s: np.stack([scores] * len(s)), [{}, {}], labels)
    np.testing.assert_allclose(found, [[(0.5 + 0 + 1 + 1) / 4] * 2, [2 / 3] * 2, [1] * 2])
    part = labels.take(labels.standard)
    assert np.isnan(rates(lambda s: scores[None, labels.standard], [{}], part).rejection).all()


def test_the_front_is_what_nothing_beats():
    """Highest standard accuracy first, one of equals."""
    found = Rates(np.zeros(6), np.array([0.9, 1.0, 0.8, 0.9, 0.7, 1.0]), np.array([0.5, 0.1, 0.4, 0.5, 0.9, 0.0]))
    assert front(found) == [1, 0, 4]


# -- shifts ---------------------------------------------------------------------------------------------------------------------------


def test_a_shift_reaches_the_best_threshold_and_changes_no_ranking():
    """Rejections gain 1.5 nats where they are right and are 1.5 nats behind: half way between is best, as a dense search confirms."""
    fit, known = world(150, 3, says=1.5)
    items, labels = world(150, 4, says=1.5)
    method = shift(fit, known, fit)
    (setting,) = on_fit(method, fit, known, [None])
    assert setting is not None and method.settings[0] == {"shift": 0.0}
    dense = [{"shift": float(v)} for v in np.linspace(-2, 5, 1401)]
    assert rates(method.fit, [setting], known).balanced[0] == pytest.approx(rates(method.fit, dense, known).balanced.max(), abs=1e-3)
    here = method.answers(items)
    best, mine = rates(here, dense, labels).balanced.max(), rates(here, [setting], labels).balanced[0]
    assert mine > best - 0.02 and best > rates(unchanged(items), [{}], labels).balanced[0] + 0.1
    found = compare(fit, known, items, labels, ClipBootstrap(labels.clip, 50, 0), val=None, folds=3, seed=0)
    point = next(m for m in found["methods"] if m["name"] == "shift")["points"][0]
    assert point["auroc"] == found["base"]["auroc"] and point["gain"]["auroc"]["value"] == 0


def test_a_shift_for_each_rejection_finds_a_bias_of_one():
    """One of the two is 3 nats too low, which no common shift fixes; it never does worse on fit than a common one."""
    (fit, known), (items, labels) = world(100, 5, says=1.5), world(100, 6, says=1.5)
    lame = np.array([0, 0, 0, -3.0])
    fit, items = (replace(seen, scores=seen.scores + lame) for seen in (fit, items))
    common, each = shift(fit, known, fit), shift_each(fit, known, fit)
    assert set(each.settings[0].values()) == {0.0} and set(each.settings[0]) == set(ALARM)
    for budget in (0.0, 0.03, None):
        ones, others = (on_fit(m, fit, known, [budget])[0] for m in (common, each))
        if ones is not None:
            assert others is not None
            assert rates(each.fit, [others], known).balanced[0] >= rates(common.fit, [ones], known).balanced[0]
    (ones,), (others,) = (on_fit(m, fit, known, [None]) for m in (common, each))
    gained = rates(each.answers(items), [others], labels).balanced[0] - rates(common.answers(items), [ones], labels).balanced[0]
    assert gained > 0.05


def test_thresholds_lie_between_margins():
    """One on either side; infinite margins, of items without a rejection, count for nothing; thinned by rank."""
    np.testing.assert_allclose(thresholds(np.array([3.0, 1.0, np.inf, 1.0]), 10), [0, 2, 4])
    assert len(thresholds(np.arange(1000.0), 31)) == 31
    np.testing.assert_array_equal(thresholds(np.array([np.inf]), 10), [0])


# -- answerers ------------------------------------------------------------------------------------------------------------------------


def test_the_probe_answers_by_the_highest_target(split):
    """At a prior factor of one the option is that of Jeffrey's rule, its concept that of the reading, its AUROC the reading's."""
    fit, known, items, labels = split
    method = answer_by_probe(fit, known)
    assert method.settings[0] == {"prior_factor": 1.0} and len(method.settings) == len(set(factors())) == 401
    target = jeffrey(items.reading, items.scores, items.option_concept)
    (scores,) = method.answers(items)([{"prior_factor": 1.0}])
    np.testing.assert_array_equal(scores.argmax(1), target.argmax(1))
    np.testing.assert_allclose(np.exp(scores), target, atol=1e-9)
    concept = labels.option_concept[np.arange(len(scores)), scores.argmax(1)]
    sure = items.reading.max(1) > 0.75  # two contents share the belief in a true premise, so a doubtful one may lose its option
    np.testing.assert_array_equal(concept[sure], items.reading.argmax(1)[sure])
    found = compare(fit, known, items, labels, ClipBootstrap(labels.clip, 50, 0), val=None, folds=3, seed=0)
    point = next(m for m in found["methods"] if m["name"] == "probe")["points"][0]
    evidence = np.log(items.reading[:, 1:].sum(1)) - np.log(items.reading[:, 0])
    assert point["auroc"]["value"] == pytest.approx(ClipBootstrap(labels.clip, 2, 0).auroc(evidence, labels.concept > 0)[0])


def test_a_concept_without_an_option_leaves_the_next_most_probable():
    """A reading that is certain of what cannot be said is no error here."""
    seen = Seen(
        scores=np.array([[0.0, 1.0, -np.inf]]), option_concept=np.array([[0, 1, -1]]), residual=np.zeros((1, 1)),
        reading=np.array([[0.0, 0.0, 1.0]]), text=np.array([[0.0, 0.0, 1.0]]),
    )  # fmt: skip
    (found,) = answer_scores(seen.reading, seen, np.array([False, True, True]), [{"prior_factor": 1.0}])
    assert found[0, 2] == -np.inf and np.exp(found[0, :2]).sum() == pytest.approx(1)


def test_the_text_decides_the_concept_whatever_the_model_says_within_it(split):
    """A model that wavers between two contents where the premise is false gives nothing away; the content is the model's own choice."""
    fit, known, items, labels = split
    wavering = items.scores.copy()
    wavering[labels.concept > 0, :2] = wavering[labels.concept > 0, :2].mean(1, keepdims=True)
    setting = [{"prior_factor": 1.0}]
    for scores in (items.scores, wavering):
        seen = replace(items, scores=scores)
        (found,) = answer_by_text(fit, known).answers(seen)(setting)
        said = labels.option_concept[np.arange(len(found)), found.argmax(1)]
        np.testing.assert_array_equal(said, items.text.argmax(1))
        np.testing.assert_array_equal(found.argmax(1)[said == 0], scores[said == 0, :2].argmax(1))
        np.testing.assert_allclose(np.exp(found[:, :2]).sum(1), items.text[:, 0], atol=1e-9)  # its AUROC is the reading's, too
    (by_probe,) = answer_by_probe(fit, known).answers(replace(items, reading=items.text, scores=wavering))(setting)
    assert (by_probe.argmax(1) != found.argmax(1)).any()  # as a target has it, a wavering model does decide


def test_text_that_tells_nothing_answers_at_chance(split):
    """Alone and as a gate, at every budget: balanced accuracy within chance, where the probe is far above."""
    fit, known, items, labels = split
    for method in (answer_by_text(fit, known), pgla_by_text(fit, known, folds=3, seed=0)):
        for setting in on_fit(method, fit, known, BUDGETS):
            if setting is not None:
                assert rates(method.answers(items), [setting], labels).balanced[0] == pytest.approx(0.5, abs=0.06)
    probe = answer_by_probe(fit, known)
    assert rates(probe.answers(items), [s for s in on_fit(probe, fit, known, [None]) if s], labels).balanced[0] > 0.8


def test_the_text_is_read_out_of_fold(monkeypatch):
    """Words, too, are weighted without the items that are read; a word that only one item has teaches nothing, a word that tells does."""
    seen: list[int] = []
    words = TEXT_MAKERS["words"]

    def spying():
        maker = words()
        monkeypatch.setattr(maker, "fit", lambda texts: seen.append(len(texts)) or type(maker).fit(maker, texts))
        return maker

    monkeypatch.setitem(TEXT_MAKERS, "words", spying)
    y, clips = np.tile([0, 1], 40), np.repeat(np.arange(40), 2)
    own = [f"item{n}" for n in range(80)]
    told = [f"item{n} {'good' if k else 'bad'}" for n, k in enumerate(y)]
    chosen = Chosen(np.empty(0), "words", 10.0)
    read = [text_out_of_fold(texts, y, clips, chosen, folds=4, seed=0) for texts in (own, told)]
    np.testing.assert_allclose(read[0][:, 0], 0.5, atol=0.1)
    assert (read[1].argmax(1) == y).all() and read[1].shape == (80, 2) and seen == [60] * 8


# -- the whole ------------------------------------------------------------------------------------------------------------------------


def test_the_comparison_is_json_with_paired_differences(split, val):
    """Every method and budget; a row's gain is its figure minus the base's, and JSON holds no nan."""
    fit, known, items, labels = split
    found = compare(fit, known, items, labels, ClipBootstrap(labels.clip, 100, 0), val=val, folds=3, seed=0)
    json.dumps(found, allow_nan=False)
    assert [m["name"] for m in found["methods"]] == ["pgla", "pgla_wide", "shift", "shift_each", "pgla_text", "text", "probe"]
    for method in found["methods"]:
        assert [p["budget"] for p in method["points"]] == list(BUDGETS) and method["front"]
        for p in method["points"]:
            for name, gain in p["gain"].items():
                assert gain["value"] == pytest.approx(p[name]["value"] - found["base"][name]["value"])
        standard = [row["choice"]["standard_accuracy"] for row in method["front"]]
        rejected = [row["choice"]["rejection"] for row in method["front"]]
        assert standard == sorted(standard, reverse=True) and rejected == sorted(rejected)


def test_a_front_has_each_setting_with_its_own_rates(split):
    """On both sides, at most fifty, from one end to the other."""
    fit, known, items, labels = split
    for method in methods(fit, known, fit, folds=3, seed=0):
        here = method.answers(items)
        rows = pareto(method.settings, method.fit, known, here, labels)
        whole = front(rates(method.fit, method.settings, known))
        assert len(rows) == min(50, len(whole))
        assert [rows[k]["setting"] for k in (0, -1)] == [dict(method.settings[whole[k]]) for k in (0, -1)]
        for row in (rows[0], rows[-1]):
            for side, scores, of in (("choice", method.fit, known), ("test", here, labels)):
                found = rates(scores, [row["setting"]], of)
                assert list(row[side].values()) == [found.balanced[0], found.standard[0], found.rejection[0]]


def test_a_front_on_items_without_alarms_has_no_rejection(split):
    """None, not nan."""
    fit, known, items, labels = split
    keep = labels.standard
    calm = Seen(**{name: getattr(items, name)[keep] for name in ("scores", "option_concept", "residual", "reading", "text")})
    method = shift(fit, known, fit)
    rows = pareto(method.settings, method.fit, known, method.answers(calm), labels.take(keep))
    assert {row["test"]["rejection"] for row in rows} == {None} and all(row["test"]["standard_accuracy"] is not None for row in rows)


def test_one_alarm_concept_has_one_shift_and_no_bias():
    """Tumour or not: everything works, and a shift for each would be the same again."""
    fit, known = world(40, 7)
    items, labels = world(40, 8)

    def merged(seen: Seen, of: Labels) -> tuple[Seen, Labels]:
        table, rows = np.minimum(seen.option_concept, 1), [r[:, :2] + [0, 1] * r[:, 2:] for r in (seen.reading, seen.text)]
        reading, text = rows
        labels = replace(of, concept=np.minimum(of.concept, 1), option_concept=table, concepts=("normal", "tumour"), alarm=("tumour",))
        return replace(seen, option_concept=table, reading=reading, text=text), labels

    (fit, known), (items, labels) = merged(fit, known), merged(items, labels)
    found = compare(fit, known, items, labels, ClipBootstrap(labels.clip, 20, 0), val=None, folds=3, seed=0)
    assert [m["name"] for m in found["methods"]] == ["pgla", "pgla_wide", "shift", "pgla_text", "text", "probe"]
    assert rejection_bias(fit.scores, fit.option_concept, alarms(known)) == {1: 0.0}


@pytest.mark.parametrize("alarm", [(), CONCEPTS])
def test_concepts_of_one_kind_are_refused(split, alarm):
    """Without alarms, or with nothing else, there is nothing to move."""
    fit, known, *_ = split
    with pytest.raises(ValueError, match=r"needs some concepts of either kind \(key `alarm` of set.json\)"):
        list(methods(fit, replace(known, alarm=alarm), fit, folds=3, seed=0))


def test_too_few_clips_for_the_folds_are_refused(split):
    """By the number of clips."""
    fit, known, *_ = split
    with pytest.raises(ValueError, match="60 clips cannot make 61 folds"):
        pgla(fit, known, folds=61, seed=0)


def test_an_adapted_model_is_shifted_within_the_budget_or_not_used():
    """The best shift of what it knows; none where it has lost more content than the budget, or where no shift is better than the base."""
    n = 100
    false = np.arange(n) % 2 == 1
    table = np.tile([0, 0, 1], (n, 1))
    labels = Labels(
        concepts=("standard", "false_vision"), alarm=("false_vision",), concept=false.astype(int), gold=np.where(false, 2, 0),
        clip=np.arange(n), modality=np.array(["vision"] * n), option_concept=table,
    )  # fmt: skip
    base = Scored(scores=np.tile([0.0, -2.0, -9.0], (n, 1)), option_concept=table)
    timid = base.scores + np.where(false[:, None], [0, 0, 6.0], 0)  # ranks every false premise above every true one, and says none
    setting = best_shift(Scored(scores=timid, option_concept=table), base, labels, 0.0)
    assert setting is not None and 3 < setting["shift"] < 9
    forgetful = timid.copy()
    forgetful[0, :2] = -2.0, 0.0  # one of 50 content answers is lost
    model = Scored(scores=forgetful, option_concept=table)
    assert best_shift(model, base, labels, 0.01) is None and best_shift(model, base, labels, 0.03) is not None
    blind = Scored(scores=base.scores, option_concept=table)
    assert best_shift(blind, base, labels, 0.03) is None
