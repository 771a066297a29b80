"""Verdicts: every word by its rule and at its edges, and the arrays that lead to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax

from gapclose.metrics.bootstrap import Interval
from gapclose.metrics.config import GapConfig
from gapclose.metrics.judgeable import ActionQuality
from gapclose.metrics.labels import Labels
from gapclose.metrics.power import balance
from gapclose.metrics.significance import sign_flip
from gapclose.metrics.verdict import VERDICTS, decide
from gapclose.metrics.verdict_evidence import Untrained, VerdictEvidence, collect_evidence

CONFIG = GapConfig(replicates=300)
CONCEPTS, ALARM = ("standard", "false_vision", "false_audio"), ("false_vision", "false_audio")
PROOF = VerdictEvidence(
    n_clips=400,
    rarest=300,
    auroc=Interval(0.85, 0.8, 0.9),
    auroc_error=0.02,
    reading=Interval(0.8, 0.75, 0.85),
    control="text",
    control_accuracy=Interval(0.6, 0.55, 0.65),
    difference=Interval(0.2, 0.15, 0.25),
    p=0.001,
    mcnemar=0.001,
    error=0.025,
)
CHANCE, NO_BETTER, WORSE = Interval(0.52, 0.47, 0.57), Interval(0.02, -0.03, 0.07), Interval(-0.2, -0.3, -0.1)
NAN = float("nan")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, "real"),
        ({"difference": NO_BETTER, "p": 0.4}, "explained by text"),
        ({"difference": NO_BETTER, "p": 0.4, "error": 0.05}, "too few clips"),
        ({"difference": WORSE, "p": 0.001, "error": 0.05}, "explained by text"),
        ({"p": 0.06}, "too few clips"),
        ({"difference": Interval(0.06, -0.01, 0.11), "p": 0.09}, "too few clips"),
        ({"auroc": Interval(0.55, 0.49, 0.61)}, "too few clips"),
        ({"auroc": CHANCE}, "not readable"),
        ({"auroc": CHANCE, "difference": NO_BETTER, "p": 0.4}, "not readable"),
        ({"auroc": Interval(0.3, 0.25, 0.35)}, "not readable"),
        ({"auroc": CHANCE, "auroc_error": 0.05}, "too few clips"),
        ({"auroc": Interval(0.9, NAN, NAN), "auroc_error": NAN, "error": NAN, "n_clips": 1, "p": 1.0, "rarest": 1}, "too few clips"),
        ({"auroc": Interval(NAN, NAN, NAN), "auroc_error": NAN, "p": NAN, "rarest": 0}, "too few clips"),
        ({"rarest": 5}, "too few clips"),
        ({"rarest": 6}, "real"),
    ],
)
def test_every_verdict_by_its_rule(change, word):
    """And every sentence holds the modality, the number of clips and the estimate it rests on."""
    proof = replace(PROOF, **change)
    found = decide({"vision": proof}, CONFIG)["vision"]
    assert found.word == word and word in VERDICTS and found.proof is proof
    assert found.why.startswith("vision: AUROC") and f"{proof.auroc.value:.3f}" in found.why and f"{proof.n_clips} clips" in found.why
    if word in ("real", "explained by text"):
        assert f"{proof.difference.value:.3f} [{proof.difference.lower:.3f}, {proof.difference.upper:.3f}]" in found.why


def test_p_values_are_corrected_over_the_modalities():
    """0.03 alone is enough, and not beside a second one."""
    weak = replace(PROOF, p=0.03)
    assert decide({"vision": weak}, CONFIG)["vision"].word == "real"
    both = decide({"vision": weak, "audio": replace(PROOF, p=0.04)}, CONFIG)
    assert [v.word for v in both.values()] == ["too few clips"] * 2 and both["vision"].p == both["audio"].p == 0.06
    assert "p = 0.06 corrected for 2 modalities" in both["vision"].why
    beside_strong = decide({"vision": weak, "audio": replace(PROOF, p=0.001)}, CONFIG)
    assert [v.word for v in beside_strong.values()] == ["real", "real"]
    untested = decide({"vision": weak, "audio": replace(PROOF, p=NAN, rarest=0, auroc=Interval(NAN, NAN, NAN), auroc_error=NAN)}, CONFIG)
    assert untested["vision"].word == "real" and untested["vision"].p == 0.03


def test_the_threshold_is_the_configs_and_the_sentence_says_how_many_clips_it_takes():
    """A coarser one accepts what a finer one calls too few."""
    nothing = replace(PROOF, difference=NO_BETTER, p=0.4)  # 400 clips at an error of 0.025 find 0.07
    assert decide({"v": nothing}, GapConfig(detectable=0.08))["v"].word == "explained by text"
    few = decide({"v": nothing}, GapConfig(detectable=0.05))["v"]
    assert few.word == "too few clips" and "find a difference of 0.070 or more; one of 0.050 (gap.detectable) takes about 78" in few.why
    unread = decide({"v": replace(nothing, auroc=CHANCE, auroc_error=0.04)}, CONFIG)["v"]
    assert unread.word == "too few clips" and "find a difference of 0.112 or more; one of 0.100" in unread.why
    with pytest.raises(ValueError, match=r"gap\.detectable is 0"):
        GapConfig(detectable=0)


def labels(clips: int = 60, seed: int = 0) -> Labels:
    """Four items a clip: two modalities, the premise true or false."""
    modality, false = np.tile(["vision", "vision", "audio", "audio"], clips), np.tile([False, True], 2 * clips)
    concept = np.where(false, np.where(modality == "vision", 1, 2), 0)
    return Labels(
        clip=np.repeat(np.arange(clips), 4), modality=modality, concept=concept, gold=np.where(false, concept + 1, 0),
        option_concept=np.tile([0, 0, 1, 2], (4 * clips, 1)), concepts=CONCEPTS, alarm=ALARM,
    )  # fmt: skip


def reading(known: Labels, strength: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(len(known.clip), 3))
    return softmax(noise + strength * np.eye(3)[known.concept], axis=1)


def test_the_proof_is_the_paired_comparison_with_the_best_control_of_that_modality():
    """Text is the best control for vision, the majority for audio; figures by hand."""
    known = labels()
    read = reading(known, 2.0, 1)
    text = reading(known, 1.0, 2)
    text[known.modality == "audio"] = np.eye(3)[(known.concept[known.modality == "audio"] + 1) % 3]
    found = collect_evidence(known, read, {"text": text, "majority": np.tile([0.5, 0.25, 0.25], (240, 1))}, CONFIG, seed=0)
    assert list(found) == ["audio", "vision"] and found["vision"].control == "text" and found["audio"].control == "majority"
    keep = known.modality == "vision"
    right, other = (r[keep].argmax(1) == known.concept[keep] for r in (read, text))
    cells = known.concept[keep]
    means = [np.mean([r[cells == c].mean() for c in (0, 1)]) for r in (right, other)]
    assert found["vision"].difference.value == pytest.approx(means[0] - means[1]) and found["vision"].n_clips == 60
    weighted = (right.astype(float) - other) * balance(cells)
    assert found["vision"].p == sign_flip(weighted, known.clip[keep], replicates=300) and weighted.sum() == pytest.approx(
        means[0] - means[1]
    )


@pytest.mark.parametrize("clips", [1, 2, 5])
def test_a_perfect_reading_of_a_handful_of_clips_is_too_few_clips(clips):
    """However wrong the control: no word stronger than that."""
    known = labels(clips)
    right, wrong = np.eye(3)[known.concept], np.eye(3)[(known.concept + 1) % 3]
    verdicts = decide(collect_evidence(known, right, {"text": wrong}, CONFIG, seed=0), CONFIG)
    assert {v.word for v in verdicts.values()} == {"too few clips"}


@pytest.mark.parametrize(("clips", "word"), [(10, "too few clips"), (400, "not readable")])
def test_a_constant_reading_is_not_readable_once_there_are_clips_to_say_so(clips, word):
    """Its AUROC is one half in every replicate, which is no certainty when clips are few."""
    known = labels(clips)
    constant = np.tile([0.5, 0.25, 0.25], (4 * clips, 1))
    verdicts = decide(collect_evidence(known, constant, {"text": constant}, CONFIG, seed=0), CONFIG)
    assert {v.word for v in verdicts.values()} == {word}


def test_perfect_text_explains_a_perfect_reading():
    """No difference in any item, in plenty of clips."""
    known = labels(400)
    right = np.eye(3)[known.concept]
    assert {v.word for v in decide(collect_evidence(known, right, {"text": right}, CONFIG, seed=0), CONFIG).values()} == {
        "explained by text"
    }


def test_a_modality_of_one_concept_has_no_verdict_but_too_few():
    """Standard items alone cannot show that anything is told apart; a cell with one item can be computed, and shows nothing."""
    known = labels()
    keep = (known.modality == "vision") | (known.concept == 0)
    part = known.take(keep)
    verdicts = decide(collect_evidence(part, reading(part, 3.0, 1), {"text": reading(part, 0.0, 2)}, CONFIG, seed=0), CONFIG)
    assert verdicts["audio"].word == "too few clips" and np.isnan(verdicts["audio"].p) and verdicts["vision"].word == "real"
    keep[np.flatnonzero(known.concept == 2)[0]] = True
    single = known.take(keep)
    verdicts = decide(collect_evidence(single, reading(single, 3.0, 1), {"text": reading(single, 0.0, 2)}, CONFIG, seed=0), CONFIG)
    assert verdicts["audio"].word == "too few clips" and "its rarest concept occurs in 1 of them" in verdicts["audio"].why


def test_what_cannot_be_compared_is_refused():
    """No control, and readings of other items."""
    known = labels()
    with pytest.raises(ValueError, match="no control to compare"):
        collect_evidence(known, reading(known, 1.0, 1), {}, CONFIG, seed=0)
    with pytest.raises(ValueError, match=r"\{'text': \(3, 3\)\}; they must be \(240, 3\): items x concepts"):
        collect_evidence(known, reading(known, 1.0, 1), {"text": np.ones((3, 3)) / 3}, CONFIG, seed=0)


RANDOM = Untrained(
    kind="random_decoder", draws=3, accuracy=Interval(0.55, 0.5, 0.6), chance=0.5, difference=Interval(0.25, 0.2, 0.3), p=0.002
)


@pytest.mark.parametrize(
    ("change", "random", "word"),
    [
        ({}, {}, "real"),
        ({}, {"difference": NO_BETTER, "p": 0.4, "accuracy": Interval(0.78, 0.7, 0.86)}, "readable without training"),
        ({}, {"difference": NO_BETTER, "p": 0.4, "accuracy": CHANCE}, "too few clips"),  # nothing is shown of the networks either
        ({}, {"p": 0.06}, "too few clips"),
        ({"difference": WORSE}, {"difference": NO_BETTER, "p": 0.4, "accuracy": Interval(0.78, 0.7, 0.86)}, "explained by text"),
        ({"auroc": CHANCE}, {"accuracy": Interval(0.78, 0.7, 0.86)}, "not readable"),
        ({"rarest": 3}, {}, "too few clips"),
    ],
)
def test_a_reading_must_beat_networks_that_learned_nothing(change, random, word):
    """Both differences must be shown, and the p that counts is the larger one."""
    proof = replace(PROOF, **change, untrained=replace(RANDOM, **random))
    found = decide({"vision": proof}, CONFIG)["vision"]
    assert found.word == word and found.p == max(proof.p, proof.untrained.p)
    if word in ("real", "readable without training"):
        assert (
            "networks with random weights (random_decoder, 3 draws)" in found.why and f"{proof.untrained.accuracy.value:.3f}" in found.why
        )
    advised = "More networks (controls.random_draws) narrow" in found.why
    assert advised == (word == "too few clips" and proof.untrained.difference.lower <= 0)


def test_no_verdict_on_a_model_that_does_not_act():
    """Whatever is read: there is no action to compare with, and the sentence names what failed and where the answers are."""
    whole = Interval(1.0, 1.0, 1.0)
    acting = ActionQuality(
        option_mass=whole, parse_rate=whole, standard_accuracy=whole, least_standard=0.4, faults=("its options hold 0.3 %",)
    )
    found = decide({"vision": PROOF, "audio": PROOF}, CONFIG, acting={"vision": acting, "audio": replace(acting, faults=())})
    assert (
        found["vision"].word == "not judgeable"
        and "its options hold 0.3 %" in found["vision"].why
        and "The log shows some of its answers and what to change." in found["vision"].why
    )
    assert found["audio"].word == "real"


def with_accuracy(labels: Labels, share: float, rng: np.random.Generator) -> np.ndarray:
    """A reading (N, C) that is right on about ``share`` of the items."""
    wrong = (labels.concept + 1 + rng.integers(2, size=len(labels.concept))) % 3
    return np.eye(3)[np.where(rng.random(len(labels.concept)) < share, labels.concept, wrong)]


def one_modality(clips: int) -> Labels:
    """Four items a clip: standard, false_vision, standard, false_vision."""
    concept = np.tile([0, 1, 0, 1], clips)
    n = len(concept)
    return Labels(
        clip=np.repeat(np.arange(clips), 4).astype(str), modality=np.full(n, "vision"), concept=concept, gold=np.zeros(n, dtype=int),
        option_concept=np.tile([0, 1, 2], (n, 1)), concepts=CONCEPTS, alarm=ALARM,
    )  # fmt: skip


def test_the_spread_between_random_networks_counts():
    """A reading at .80 beats three draws at .60 each; not draws at .45, .60 and .75, of which one more might well reach .80."""
    labels, rng = one_modality(400), np.random.default_rng(0)
    reading, text = with_accuracy(labels, 0.8, rng), {"text": with_accuracy(labels, 0.5, rng)}
    narrow, wide = ({"random_decoder": [with_accuracy(labels, a, rng) for a in of]} for of in ((0.6, 0.6, 0.6), (0.45, 0.6, 0.75)))
    found = {
        name: collect_evidence(labels, reading, text, CONFIG, seed=0, untrained=of)["vision"]
        for name, of in (("narrow", narrow), ("wide", wide))
    }
    assert all(p.untrained.difference.value == pytest.approx(0.2, abs=0.03) for p in found.values())
    assert found["narrow"].untrained.difference.lower > 0.1 and found["narrow"].untrained.p < 0.02
    assert found["wide"].untrained.difference.lower < 0 and found["wide"].untrained.p > 0.1
    words = {name: decide({"vision": proof}, CONFIG)["vision"].word for name, proof in found.items()}
    # that such networks are read above chance rests on three draws as well: of the wide ones it is not shown
    assert found["narrow"].untrained.accuracy.lower > 0.5 > found["wide"].untrained.accuracy.lower
    assert words == {"narrow": "real", "wide": "too few clips"}


def test_a_reading_that_random_networks_give_as_well():
    """Their level is shown to be above chance, and the lead over them is not shown."""
    labels, rng = one_modality(400), np.random.default_rng(3)
    networks = {"random_decoder": [with_accuracy(labels, a, rng) for a in (0.74, 0.76, 0.78)]}
    text = {"text": with_accuracy(labels, 0.5, rng)}
    proof = collect_evidence(labels, with_accuracy(labels, 0.77, rng), text, CONFIG, seed=0, untrained=networks)
    assert decide(proof, CONFIG)["vision"].word == "readable without training"


def test_one_more_random_network_seldom_beats_the_others():
    """The reading is exchangeable with the draws: it is called real in at most 5 % of cases, up to the chance of 300 of them."""
    labels, rng, real = one_modality(60), np.random.default_rng(1), 0
    config = GapConfig(replicates=200)
    for _ in range(300):
        levels = rng.normal(0.7, 0.08, size=4).clip(0.4, 1)
        draws = [with_accuracy(labels, a, rng) for a in levels]
        proof = collect_evidence(
            labels, draws[0], {"text": with_accuracy(labels, 0.34, rng)}, config, seed=0, untrained={"random_decoder": draws[1:]}
        )
        real += decide(proof, config)["vision"].word == "real"
    assert real <= 22  # 5 % of 300, and two standard errors


def test_the_kind_of_network_that_is_read_best_counts():
    """Which favours the networks."""
    labels, rng = one_modality(100), np.random.default_rng(2)
    kinds = {kind: [with_accuracy(labels, a, rng) for _ in range(2)] for kind, a in (("random_everything", 0.5), ("random_decoder", 0.7))}
    proof = collect_evidence(
        labels, with_accuracy(labels, 0.9, rng), {"text": with_accuracy(labels, 0.5, rng)}, CONFIG, seed=0, untrained=kinds
    )["vision"]
    assert proof.untrained.kind == "random_decoder" and proof.untrained.draws == 2 and proof.untrained.chance == 0.5
    with pytest.raises(ValueError, match="random_decoder, draw 1"):
        collect_evidence(labels, with_accuracy(labels, 0.9, rng), {"text": kinds["random_decoder"][0]}, CONFIG, seed=0,
              untrained={"random_decoder": [kinds["random_decoder"][0], np.ones((3, 3))]})  # fmt: skip
