"""Planted truths: observations drawn from a world whose gap, leak, label noise and cluster correlation are known, measured as real ones are.

The world is signal detection in closed form. Whoever answers (reading, action, text) has evidence for "the premise is false" that is
normal with variance 1 and mean +-d'/2, and objects where it exceeds a criterion; a share of the variance belongs to the clip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from gapclose.gap import Action, GapConfig, Labels, closure, statistics
from gapclose.resample import Clips, Interval

CONCEPTS, ALARM = ("standard", "false_vision", "false_audio"), ("false_vision", "false_audio")
SOURCES = ("reading", "action", "later")


@dataclass(frozen=True, kw_only=True)
class World:
    """d' and criterion of everyone who answers; four items a clip: two modalities, the premise true or false."""

    clips: int = 200
    reading: float = 2.0
    action: tuple[float, float] = (1.0, 1.0)
    """d' and criterion of the base"""
    later: tuple[float, float] = (1.6, 0.2)
    """of the adapted model"""
    cluster: float = 0.5
    """correlation of evidence between items of a clip"""
    common: float = 0.5
    """correlation of evidence between those who answer"""
    noise: float = 0.0
    """share of items whose recorded concept is the other one of their modality"""

    def rates(self, who: str) -> tuple[float, float]:
        """True- and false-alarm rate, before label noise."""
        d, c = (self.reading, 0.0) if who == "reading" else getattr(self, who)
        return float(norm.cdf(d / 2 - c)), float(norm.cdf(-d / 2 - c))

    def balanced(self, who: str) -> float:
        """Noise eta turns an accuracy b into (1 - eta) b + eta (1 - b)."""
        hit, alarm = self.rates(who)
        return (1 - 2 * self.noise) * (hit + 1 - alarm) / 2 + self.noise

    @property
    def truth(self) -> dict[str, float]:
        """What the statistics estimate; detection figures for a world without noise."""
        gap = self.balanced("reading") - self.balanced("action")
        hit, alarm = self.rates("action")
        at_alarm = norm.cdf(self.reading + norm.ppf(alarm))
        area = {who: float(norm.cdf(d / np.sqrt(2))) for who, d in (("reading", self.reading), ("action", self.action[0]))}
        return {
            "action.balanced": self.balanced("action"),
            "reading.balanced": self.balanced("reading"),
            "gap.balanced": gap,
            "closure": (self.balanced("later") - self.balanced("action")) / gap,
            "action.auroc": area["action"],
            "gap.auroc": area["reading"] - area["action"],
            "gap.matched": float(at_alarm - hit),
            "action.dprime": self.action[0],
            "action.criterion": self.action[1],
        }


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One data set from a world."""

    labels: Labels
    reading: np.ndarray
    action: Action
    later: Action


def posterior(evidence: np.ndarray, modality: np.ndarray) -> np.ndarray:
    """Reading (N, 3) with these log odds for the false concept of the item's modality."""
    return np.stack([expit(-evidence), expit(evidence) * (modality == "vision"), expit(evidence) * (modality == "audio")], axis=1)


def act(evidence: np.ndarray, modality: np.ndarray) -> Action:
    """Option 0 is right content, 1 wrong content, 2 objects to vision, 3 to audio."""
    scores = np.full((len(evidence), 4), -20.0)
    scores[:, 0] = 0
    scores[np.arange(len(evidence)), np.where(modality == "vision", 2, 3)] = evidence
    return Action(chosen=scores.argmax(1), scores=scores)


def draw(world: World, rng: np.random.Generator) -> Draw:
    clip = np.repeat(np.arange(world.clips), 4)
    modality, false = np.tile(["vision", "vision", "audio", "audio"], world.clips), np.tile([False, True], 2 * world.clips)

    def grouped() -> np.ndarray:
        of_clip, of_item = rng.normal(size=world.clips), rng.normal(size=len(clip))
        return np.sqrt(world.cluster) * of_clip[clip] + np.sqrt(1 - world.cluster) * of_item

    everyone, side = np.sqrt(world.common) * grouped(), np.where(false, 1, -1)
    evidence = {}
    for who in SOURCES:
        d, c = (world.reading, 0.0) if who == "reading" else getattr(world, who)
        evidence[who] = side * (d / 2 + everyone + np.sqrt(1 - world.common) * grouped()) - c
    recorded = false ^ (rng.random(len(clip)) < world.noise)
    concept = np.where(recorded, np.where(modality == "vision", 1, 2), 0)
    labels = Labels(
        clip=clip, modality=modality, concept=concept, gold=np.where(recorded, concept + 1, 0),
        option_concept=np.tile([0, 0, 1, 2], (len(clip), 1)), concepts=CONCEPTS, alarm=ALARM,
    )  # fmt: skip
    return Draw(
        labels=labels,
        reading=posterior(evidence["reading"], modality),
        action=act(evidence["action"], modality),
        later=act(evidence["later"], modality),
    )


def measured(drawn: Draw, clips: Clips) -> dict[str, np.ndarray]:
    """Base and closure, through the functions that measure a model."""
    base = statistics(clips, drawn.labels, drawn.action, drawn.reading)
    return base | closure(base, statistics(clips, drawn.labels, drawn.later, drawn.reading))


def accuracies(drawn: Draw, clips: Clips) -> dict[str, np.ndarray]:
    """Those of :func:`measured` that rest on balanced accuracy, in a tenth of the time."""
    labels, nothing = drawn.labels, np.full(len(clips.weights), np.nan)
    right = {"action": drawn.action.concept(labels), "later": drawn.later.concept(labels), "reading": drawn.reading.argmax(1)}
    balanced = {who: clips.balanced(said == labels.concept, labels) for who, said in right.items()}

    def statistic(who: str) -> dict[str, np.ndarray]:
        found = {"action.balanced": balanced[who], "reading.balanced": balanced["reading"]}
        found |= {name: nothing for name in ("action.auroc", "reading.auroc", "action.standard_accuracy")}
        return found | {"gap.balanced": balanced["reading"] - balanced[who]}

    return statistic("action") | closure(statistic("action"), statistic("later"))


BY_ACCURACY = ("action.balanced", "reading.balanced", "gap.balanced", "closure")


def coverage(world: World, simulations: int, replicates: int, *, by_item: bool = False) -> dict[str, float]:
    """Share of data sets whose 95 % interval holds the truth."""
    truth, rng = world.truth, np.random.default_rng(0)
    held = dict.fromkeys(BY_ACCURACY, 0)
    for seed in range(simulations):
        drawn = draw(world, rng)
        found = accuracies(drawn, Clips(np.arange(4 * world.clips) if by_item else drawn.labels.clip, replicates, seed))
        for name in held:
            interval = Interval.of(found[name])
            held[name] += interval.lower <= truth[name] <= interval.upper
    return {name: count / simulations for name, count in held.items()}


WORLD = World(cluster=0.8, common=0.2)
"""Items of a clip agree strongly: what a bootstrap of items gets wrong"""


def test_a_large_draw_estimates_the_planted_truth():
    """Balanced accuracies, three gaps, closure, AUROC, d' and criterion, all from one data set of 40,000 clips."""
    world = replace(WORLD, clips=40_000)
    found = measured(draw(world, np.random.default_rng(0)), Clips(np.repeat(np.arange(40_000), 4), 2, 0))
    for name, value in world.truth.items():
        assert found[name][0] == pytest.approx(value, abs=0.015), name


def test_label_noise_shrinks_the_gap_by_a_known_factor_and_leaves_closure():
    """A share eta of wrong labels takes 1 - 2 eta of every accuracy above one half, so of every difference too."""
    rng, truth = np.random.default_rng(1), World().truth
    noisy = World(clips=40_000, noise=0.15)
    found = measured(draw(noisy, rng), Clips(np.repeat(np.arange(40_000), 4), 2, 0))
    assert noisy.truth["gap.balanced"] == pytest.approx(0.7 * truth["gap.balanced"])
    assert found["gap.balanced"][0] == pytest.approx(0.7 * truth["gap.balanced"], abs=0.005)
    assert found["closure"][0] == pytest.approx(truth["closure"], abs=0.03)


def test_intervals_hold_the_truth_and_those_of_an_item_bootstrap_do_not():
    """The quick version: 100 data sets leave a band of about +-6 points around 95 %."""
    small = replace(WORLD, clips=100)
    by_clip, by_item = coverage(small, 100, 150), coverage(small, 100, 150, by_item=True)
    for name in BY_ACCURACY:
        assert by_clip[name] >= 0.88, name
    assert by_item["reading.balanced"] < 0.85 and by_item["gap.balanced"] < 0.9 and by_item["closure"] < 0.9


def test_the_quick_figures_are_those_of_the_whole_measurement():
    """Simulations may use them."""
    drawn = draw(WORLD, np.random.default_rng(0))
    clips = Clips(drawn.labels.clip, 50, 0)
    quick, whole = accuracies(drawn, clips), measured(drawn, clips)
    for name in BY_ACCURACY:
        np.testing.assert_array_equal(quick[name], whole[name])


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_intervals_hold_the_truth_in_95_of_100_data_sets(noise):
    """1,000 data sets of 200 clips: 93 to 97 %, with and without label noise."""
    found = coverage(replace(WORLD, noise=noise), 1000, 500)
    for name in BY_ACCURACY:
        assert 0.93 <= found[name] <= 0.97, (name, found)


@pytest.mark.slow
def test_intervals_of_an_item_bootstrap_miss_the_truth_far_more_often():
    """The same world and clips, resampled as if items were independent."""
    found = coverage(WORLD, 300, 500, by_item=True)
    assert found["reading.balanced"] < 0.85 and found["gap.balanced"] < 0.9 and found["closure"] < 0.85, found
