"""Does a model answer such questions: every threshold at its edge, and what guessing would reach."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from gapclose.metrics.config import GapConfig
from gapclose.metrics.judgeable import LENGTH, OPTION_MASS, PARSE_RATE, REMEDIES, SKILL, action_quality, advice, least_standard, option_mass
from gapclose.metrics.labels import Labels
from gapclose.pipeline.config import Config

CONFIG = GapConfig(replicates=100)
LABELS = Labels(
    clip=np.array(["a", "a", "b", "b"]), modality=np.full(4, "vision"), concept=np.array([0, 1, 0, 1]), gold=np.array([0, 4, 1, 4]),
    option_concept=np.array([[0, 0, 0, 0, 1, 2]] * 4), concepts=("standard", "false_vision", "false_audio"),
    alarm=("false_vision", "false_audio"),
)  # fmt: skip


def figures(mass: float = 0.9, parses: float = 1.0, standard: float = 0.8) -> dict[str, np.ndarray]:
    given = {"action.option_mass": mass, "generated.parse_lenient": parses, "action.standard_accuracy": standard}
    return {name: np.full(101, value) for name, value in given.items()}


@pytest.mark.parametrize(
    ("given", "failed"),
    [
        ({}, []),
        ({"mass": 0.1, "parses": 0.5, "standard": 0.4 + 1e-12}, []),
        ({"mass": 0.099}, ["gap.least_option_mass"]),
        ({"parses": 0.49}, ["gap.least_parse_rate"]),
        ({"standard": 0.399}, ["gap.least_standard_skill"]),
        ({"mass": 0.003, "parses": 0.0, "standard": 0.2}, ["gap.least_option_mass", "gap.least_parse_rate", "gap.least_standard_skill"]),
    ],
)
def test_every_threshold_at_its_edge(given, failed):
    """Four options that do not object: guessing gives .25, and a fifth of the way to certainty is .40."""
    found = action_quality(figures(**given), LABELS, CONFIG)
    assert found.least_standard == pytest.approx(0.4)
    assert len(found.faults) == len(failed) and all(key in fault for key, fault in zip(failed, found.faults, strict=True))
    assert json.loads(json.dumps(found.to_dict()))["faults"] == list(found.faults)


def test_the_fault_of_skill_gives_what_guessing_reaches_and_what_is_required():
    (fault,) = action_quality(figures(standard=0.3), LABELS, CONFIG).faults
    assert fault == (
        "where the premise is true, 30 % [30, 30] of the answers are right; guessing gives 25.0 %, and 40.0 % are required "
        "(gap.least_standard_skill)"
    )
    assert (
        "guessing gives 25.0 %, and 100.0 % are" in action_quality(figures(), LABELS, replace(CONFIG, least_standard_skill=1.0)).faults[0]
    )


def test_answers_that_are_cut_off_belong_to_the_parse_rate():
    """They are counted in its fault, and say nothing where most answers match."""
    (fault,) = action_quality(figures(parses=0.25), LABELS, CONFIG, cut_off=3, limit=8).faults
    assert fault.endswith("(gap.least_parse_rate), and 3 of 4 reach the limit of 8 tokens without naming one (observe.max_new_tokens)")
    assert "max_new_tokens" not in action_quality(figures(parses=0.25), LABELS, CONFIG, limit=8).faults[0]
    assert action_quality(figures(parses=0.75), LABELS, CONFIG, cut_off=1, limit=8).faults == ()


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        ({"mass": 0.01}, [OPTION_MASS]),
        ({"parses": 0.2}, [PARSE_RATE]),
        ({"parses": 0.2, "cut_off": 3}, [LENGTH]),
        ({"standard": 0.3}, [SKILL]),
        ({"mass": 0.01, "parses": 0.2, "cut_off": 3}, [OPTION_MASS, LENGTH]),
        ({"mass": 0.01, "standard": 0.3}, [OPTION_MASS]),  # of another form of answer the accuracy says little
    ],
)
def test_advice_follows_the_faults(given, keys):
    counted = {"cut_off": given.pop("cut_off", 0), "limit": 8}
    faults = action_quality(figures(**given), LABELS, CONFIG, **counted).faults
    assert advice([faults]) == " ".join([*(REMEDIES[key] for key in keys), "Then measure again."])
    assert advice([faults, faults]) == advice([(), faults]) == advice([faults])


def test_advice_of_several_scopes_and_of_none():
    mass, skill = (action_quality(figures(**of), LABELS, CONFIG).faults for of in ({"mass": 0.01}, {"standard": 0.3}))
    assert advice([mass, skill]) == f"{REMEDIES[OPTION_MASS]} {REMEDIES[SKILL]} Then measure again."
    assert advice([]) == advice([()]) == advice([("of another version",)]) == ""
    config = Config()
    for key in re.findall(r"`([a-z]+\.[a-z_]+)`", " ".join(REMEDIES.values())):
        assert hasattr(getattr(config, key.partition(".")[0]), key.partition(".")[2]), key


def test_where_standard_accuracy_tells_nothing():
    """With one option that does not object, always saying it is right; without alarms there is no standard side."""
    binary = replace(LABELS, option_concept=np.array([[0, 1]] * 4), gold=np.array([0, 1, 0, 1]))
    assert least_standard(binary, 0.2) is None and action_quality(figures(standard=0.0), binary, CONFIG).faults == ()
    assert least_standard(replace(LABELS, alarm=()), 0.2) is None
    assert least_standard(LABELS, 0.0) == pytest.approx(0.25) and least_standard(LABELS, 1.0) == pytest.approx(1.0)


def test_the_probability_that_the_options_hold():
    """What an item does not have counts for nothing, and sums that pass one by rounding are one."""
    scores = np.log(np.array([[0.5, 0.3, 0.1], [0.2, 0.2, 0.2], [0.5, 0.3, 0.2 + 1e-9]]))
    scores[1, 2] = -np.inf
    assert option_mass(scores) == pytest.approx([0.9, 0.4, 1.0]) and option_mass(scores).max() <= 1
