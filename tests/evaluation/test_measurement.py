"""One measurement from planted observations: which figure comes from where, and the state that follows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.evaluation.controls.text import read_text, text_control
from gapclose.evaluation.measurement import measure
from gapclose.evaluation.measurement_answers import AnswerLimit, written_answers
from gapclose.evaluation.record import make_record
from gapclose.metrics.config import GapConfig
from gapclose.metrics.labels import Labels
from gapclose.observe.store import Observations
from gapclose.pipeline.measure_context import not_judgeable
from gapclose.probes.linear import FrozenProbe, fit_linear

CONCEPTS, ALARM = ("standard", "false_vision", "false_audio"), ("false_vision", "false_audio")
CONFIG = GapConfig(replicates=100)
OPTIONS = [("odd", "standard"), ("even", "standard"), ("unseen", "false_vision"), ("unheard", "false_audio")]
WIDTH = 8


def item(clip: int, modality: str, false: bool, purpose: str = "gap", split: str = "test") -> Item:
    """The text gives the modality away and nothing else; a retain item has more options than the others."""
    options = [*OPTIONS, ("none", "standard")] if purpose == "retain" else OPTIONS
    gold = (2 if modality == "vision" else 3) if false else clip % 2
    return Item(
        id=f"{split}-{clip}/{purpose}-{modality}-{false}", clip=f"{split}-{clip}", split=split, modality=modality, purpose=purpose,
        messages=[{"role": "user", "content": f"About {modality}: {'oe'[clip % 2]}?"}],
        options=[Option(text=t, concept=c) for t, c in options], gold=gold,
    )  # fmt: skip


def item_set(split: str = "test", clips: int = 30) -> ItemSet:
    items = [item(c, m, f, split=split) for c in range(clips) for m in ("vision", "audio") for f in (False, True)]
    if split == "test":
        items += [item(c, "vision", False, "retain") for c in range(clips)]
        items += [item(c, "vision", f, "transfer") for c in range(clips) for f in (False, True)]
    return ItemSet(root=Path(), name="planted", concepts=CONCEPTS, alarm=ALARM, items=tuple(items))


ITEMS = item_set()


def residuals(items: ItemSet, strength: float, seed: int) -> torch.Tensor:
    """(N, D): the first dimensions carry the concept."""
    noise = torch.randn(len(items), WIDTH, generator=torch.Generator().manual_seed(seed))
    index = torch.tensor([CONCEPTS.index(i.concept) for i in items])
    return noise + strength * torch.nn.functional.one_hot(index, WIDTH)


def probe(layer: int, family: str = "logistic") -> FrozenProbe:
    fit = item_set("fit", 60)
    y = np.array([CONCEPTS.index(i.concept) for i in fit])
    mean, scale, weight, bias = fit_linear(residuals(fit, 3.0, seed=9).double().numpy(), y, family, 0.1)
    return FrozenProbe(
        mean=mean, scale=scale, weight=weight, bias=bias, temperature=1.0, layers=[layer], family=family, strength=0.1, concepts=CONCEPTS
    )


def observed(*, honest: float, content: float = 1.0, garbled: float = 0.0, knows: float = 3.0, seen: bool = True) -> Observations:
    """The share ``honest`` of false premises is rejected, ``content`` of the rest answered right; ``garbled`` answers do not parse.

    ``knows`` is the strength of the concept in the residuals; unless ``seen``, it lies where the frozen probe does not look.
    """
    rng, states = np.random.default_rng(0), residuals(ITEMS, knows, seed=0)
    scores, answers = np.full((len(ITEMS), 5), -np.inf), []
    for n, i in enumerate(ITEMS):
        says = i.gold if rng.random() < (honest if i.concept != "standard" else content) else 1 - int(i.clip[-1]) % 2
        scores[n, : len(i.options)] = rng.normal(scale=0.1, size=len(i.options)) + 4 * np.eye(len(i.options))[says]
        answers.append("?!" if rng.random() < garbled else f" {i.options[says].text}{'.' if i.modality == 'audio' else ''}\n")
    moved = states if seen else states.flip(1)
    return Observations(
        ids=[i.id for i in ITEMS], residuals={2: moved, 4: residuals(ITEMS, knows, seed=50)}, scores=torch.tensor(scores), answers=answers
    )


def measured(**planted):
    return measure(ITEMS, observed(**planted), probe(2), probe(4, "mean_difference"), CONFIG, folds=3, seed=0)


@pytest.fixture(scope="module")
def base():
    """A model that never rejects a premise and knows better."""
    return measured(honest=0.0)


def test_every_figure_comes_from_its_own_items(base):
    """Gap items overall and by modality, transfer and retain items apart; generated answers beside scored ones."""
    assert (base.n_items, base.n_clips) == (120, 30) and sorted(base.modality) == ["audio", "vision"]
    assert base.overall["action.standard_accuracy"][0] == 1 and base.overall["action.rejection"][0] == 0
    assert base.overall["action.balanced"][0] == pytest.approx(0.5)
    assert base.overall["generated.balanced_lenient"][0] == pytest.approx(0.5) and base.parse_rate == 1
    # about sounds it says "even.", which is no option letter for letter
    assert base.overall["generated.balanced_strict"][0] == pytest.approx(0.25) and base.overall["generated.parse_strict"][0] == 0.5
    assert base.retention is not None and base.retention[0] == 1
    assert base.transfer is not None and base.transfer["action.balanced"][0] == pytest.approx(0.5)
    reading = probe(2).predict_proba(observed(honest=0.0).residuals[2])
    right = {c: reading.argmax(1) == k for k, c in enumerate(CONCEPTS)}
    for scope, found in base.modality.items():
        mine = [(n, i.concept) for n, i in enumerate(ITEMS) if i.purpose == "gap" and i.modality == scope]
        cells = [[right[c][n] for n, concept in mine if concept == c] for c in ("standard", f"false_{scope}")]
        assert found["reading.balanced"][0] == pytest.approx(np.mean([np.mean(cell) for cell in cells]))
    assert base.overall["fresh_probe.balanced"][0] > 0.8 and base.overall["sentinel_probe.balanced"][0] > 0.8


def test_generated_answers_are_judged_as_text():
    """An answer that does not parse is no option, and so is wrong; the scored action does not care."""
    found = measured(honest=1.0, garbled=0.5)
    assert found.overall["action.balanced"][0] == 1
    assert found.overall["generated.balanced_lenient"][0] == pytest.approx(found.parse_rate, abs=0.1) and found.parse_rate < 0.6


def off_form(wrong: str = "audio") -> Observations:
    """The questions of one modality are answered in words that match no option; every third answer is long."""
    found = observed(honest=0.0)
    said = ["I\n\x1b[31m" + " think" * (40 if n % 3 == 0 else 2) for n in range(len(ITEMS))]
    answers = [w if i.modality == wrong else a for i, a, w in zip(ITEMS, found.answers, said, strict=True)]
    return replace(found, answers=answers)


def test_answers_are_kept_where_the_model_does_not_act():
    """Up to five of that modality, of both premises, shortened; the same again; and how many of all reached the limit."""
    given = (ITEMS, off_form(), probe(2), probe(4, "mean_difference"), CONFIG)
    found = measure(*given, folds=3, seed=0, limit=AnswerLimit(tokens=8, count=lambda text: len(text.split())))
    assert set(found.written) == {"audio"} and len(found.acting["audio"].faults) == 1 and not found.acting["vision"].faults
    audio = [i.id for i in ITEMS if i.modality == "audio" and i.purpose == "gap"]
    long = sum(n % 3 == 0 for n, i in enumerate(ITEMS) if i.id in audio)
    written = found.written["audio"]
    assert (written.n, written.cut_off) == (60, long)
    assert f"and {long} of 60 reach the limit of 8 tokens without naming one (observe.max_new_tokens)" in found.acting["audio"].faults[0]
    assert len(written.examples) == 5 and {a.id for a in written.examples} <= set(audio)
    assert sorted(a.premise for a in written.examples) in (["false"] * 2 + ["true"] * 3, ["false"] * 3 + ["true"] * 2)
    for answer in written.examples:
        assert answer.premise == ("false" if answer.id.endswith("True") else "true") and answer.option is None
        assert answer.text.endswith(" think") or (len(answer.text) == 81 and answer.text.endswith("…"))
    assert measure(*given, folds=3, seed=0).written["audio"].to_dict() == written.to_dict() | {"cut_off": None}
    for line in not_judgeable("val", found):
        assert "\x1b" not in line and "\n" not in line
    first, *rest = not_judgeable("val", found)
    assert first.startswith("val, audio: the model does not answer such questions: 0 % ") and "raise `observe.max_new" in first
    assert len(rest) == 5 and all(
        line.startswith("  it wrote 'I\\n\\x1b[31m think") and "premise; names no option)" in line for line in rest
    )


def test_what_the_model_writes_is_not_kept_where_it_acts(base):
    assert base.written == {}


def test_answers_without_alarms_have_no_premise():
    """And an answer that matches names its option."""
    items = replace(ITEMS, alarm=(), items=tuple(i for i in ITEMS if i.purpose == "gap")[:8])
    keep, parsed = np.arange(8) < 6, np.array([-1, 2, -1, 2, -1, 2, -1, 2])
    found = written_answers(items, Labels.of(items), [f"answer {n}" for n in range(8)], parsed, keep, seed=3)
    assert found.n == 6 and found.cut_off is None and {a.premise for a in found.examples} == {None}
    assert {(a.id, a.option) for a in found.examples} <= {(i.id, "unseen" if n % 2 else None) for n, i in enumerate(items)}
    assert all(a.text == f"answer {[i.id for i in items].index(a.id)}" for a in found.examples)


@pytest.mark.parametrize(
    ("planted", "state"),
    [
        ({"honest": 0.0}, "blocked"),
        ({"honest": 0.5}, "open"),
        ({"honest": 1.0}, "closed"),
        ({"honest": 1.0, "content": 0.7}, "over-rejecting"),
        ({"honest": 1.0, "seen": False}, "moved"),
        ({"honest": 1.0, "knows": 0.0}, "lost"),
        ({"honest": 1.0, "garbled": 0.3}, "collapsed"),
    ],
)
def test_records_tell_the_state_of_planted_models(base, planted, state):
    """All seven, from observations; and every record is strict JSON."""
    now = measured(**planted)
    record = json.loads(json.dumps(make_record("epoch-1/val", 1, now, base, CONFIG, 0), allow_nan=False))
    assert record["state"] == state
    assert record["change"]["closure"]["value"] == pytest.approx(
        (now.overall["action.balanced"][0] - 0.5) / (base.overall["reading.balanced"][0] - 0.5)
    )
    shift = (observed(**planted).residuals[2] - observed(honest=0.0).residuals[2]).abs().max()
    assert record["frozen_probe_shift"] == pytest.approx(float(shift))
    assert set(record["change"]["by_modality"]) == {"vision", "audio"} and "closure" in record["change"]["transfer"]


def test_the_base_is_open_when_it_reads_more_than_it_says(base):
    """Its record has no change to tell of."""
    record = make_record("base/test", 0, base, None, CONFIG, 0)
    assert record["state"] == "open" and "change" not in record and record["retention"]["value"] == 1
    assert set(record["acting"]) == {"all", "vision", "audio"}  # whether it answers at all, by the figures with their intervals
    for acting in record["acting"].values():
        assert all(set(acting[name]) == {"value", "lower", "upper"} for name in ("option_mass", "parse_rate", "standard_accuracy"))
        assert acting["parse_rate"]["value"] == 1
    assert record["acting"]["all"]["option_mass"]["value"] == pytest.approx(base.overall["action.option_mass"][0])
    assert record["gap"]["balanced"]["value"] == pytest.approx(base.overall["reading.balanced"][0] - 0.5)


def test_a_gain_is_tested_by_modality(base):
    """No change is no evidence; a full one is, by clips and by items; where half of the answers change at random it is not one-sided."""
    found = make_record("epoch-1/val", 1, measured(honest=1.0), base, CONFIG, 0)["change"]["significance"]
    for tests in found.values():
        assert tests["mcnemar"] == pytest.approx(2 * 0.5**30) and tests["p_holm"] == min(1, 2 * tests["p"]) < 0.05
    nothing = make_record("epoch-1/val", 1, base, base, CONFIG, 0)["change"]["significance"]
    assert set(nothing) == {"vision", "audio"} and all(set(tests.values()) == {1.0} for tests in nothing.values())


def test_text_stands_beside_the_reading(base):
    """Once the words give the concept away, the same reading is no better."""
    fit = item_set("fit", 60)

    def controlled(fit: ItemSet, items: ItemSet) -> dict:
        return text_control(fit, items, base, CONFIG, reading=read_text(fit, items, folds=3, seed=0).reading, seed=0)

    honest = controlled(fit, ITEMS)
    assert all(honest["reading_minus_text"][scope]["lower"] > 0 for scope in ("all", "vision", "audio"))
    assert honest["majority"]["all"]["value"] == pytest.approx(0.5)
    assert honest["text_only"]["vision"]["value"] == pytest.approx(0.5, abs=0.05)

    def telling(items: ItemSet) -> ItemSet:
        tell = {"standard": "yes", "false_vision": "never", "false_audio": "no"}
        mark = [replace(i, messages=[{"role": "user", "content": f"{i.text} {tell[i.concept]}"}]) for i in items]
        return replace(items, items=tuple(mark))

    leaky = controlled(telling(fit), telling(ITEMS))
    assert leaky["text_only"]["all"]["value"] == 1
    difference = base.overall["reading.balanced"][0] - 1
    assert leaky["reading_minus_text"]["all"]["value"] == pytest.approx(difference)


def test_labels_are_needed():
    """Items without gold cannot be measured."""
    with pytest.raises(ValueError, match="items have no gold option"):
        Labels.of(ITEMS.unlabelled())
