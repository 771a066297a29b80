"""The sets for pretrained models: text alone and places are at chance, twins differ in one detail, splits are kept apart."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gapclose.core.errors import ErrorCollector
from gapclose.data.config import DataConfig
from gapclose.data.digits.media_bank import NAMES
from gapclose.data.generated import general, people, places
from gapclose.data.item_set import ItemSet
from gapclose.data.splits import check_clips_apart, check_media_apart
from gapclose.evaluation.controls.text_leak import text_leak

CLIPS = {"fit": 60, "train": 10, "val": 30, "test": 60}
# *people* is cheap to draw. With few clips a text that tells nothing may look as if it did
MORE = {"fit": 60, "train": 10, "val": 60, "test": 200}


def drawn(name: str, seed: int, clips=CLIPS) -> ItemSet:
    items = people.draw(seed, clips) if name == "people" else places.draw(seed, clips)[1]
    return ItemSet(root=Path(), name=name, concepts=people.CONCEPTS, alarm=people.ALARM, items=items)


@pytest.mark.parametrize("purpose", ["gap", "transfer"])
@pytest.mark.parametrize("name", ["people", "places"])
def test_the_text_alone_is_at_chance(name, purpose):
    items = drawn(name, 0, MORE if name == "people" else CLIPS)
    asked = [replace(i, purpose="gap") for i in items if i.purpose == purpose]
    for leak in text_leak(items.holding(asked), folds=4):
        assert leak.n_clips >= (150 if purpose == "gap" else 120 if name == "people" else 20)
        assert not leak.above, leak


@pytest.mark.parametrize("modality", places.MODALITIES)
@pytest.mark.parametrize("purpose", ["gap", "transfer"])
def test_the_place_of_the_asked_number_tells_nothing(purpose, modality):
    """Whether its sentence is the first."""
    clips, items = places.draw(0, CLIPS)
    by_name, right = {c.name: c for c in clips}, []
    for item in items:
        if (item.purpose, item.modality) != (purpose, modality):
            continue
        clip, asked = by_name[item.clip], asked_number(item)
        right.append((asked == clip.numbers[clip.order[0]]) == (item.tags["premise"] == "true"))
    assert abs(np.mean(right) - 0.5) < 3 * 0.5 / np.sqrt(len(right) / 2), np.mean(right)


@pytest.mark.parametrize("name", ["people", "places"])
def test_nothing_in_train_is_answered_as_a_type_that_is_kept_out(name):
    """Not even a retention item, which would teach the model not to object to such answers."""
    held_out = {kind for kind, _ in people.TRANSFER} if name == "people" else set(places.TRANSFER)
    seen = [i.text for i in drawn(name, 0) if i.split in ("fit", "train")]
    asked = [i.text for i in drawn(name, 0) if i.purpose == "transfer"]
    for kind in held_out:
        assert not any(people.request(people.ANSWER[kind]) in text for text in seen)
        assert any(people.request(people.ANSWER[kind]) in text for text in asked)


def test_choices_of_places_are_drawn_evenly_and_apart():
    """The type about a modality, the retention item and the type that is kept out do not go together."""
    items = [i for i in drawn("places", 0, {"test": 400}) if not i.clip.startswith("general")]
    of = defaultdict(dict)
    for item in items:
        of[item.clip][item.purpose, item.modality] = item.tags["question"]
    where = Counter(kinds["gap", "vision"] for kinds in of.values())
    kept_out = Counter(next((purpose[1], kind) for purpose, kind in kinds.items() if purpose[0] == "transfer") for kinds in of.values())
    assert set(where.values()) == {200} and set(kept_out.values()) == {100}
    both = Counter((kinds["gap", "vision"], next(k for p, k in kinds.items() if p[0] == "retain")) for kinds in of.values())
    assert len(both) == 4 and min(both.values()) > 70, both


@pytest.mark.parametrize("name", ["people", "places"])
def test_a_set_is_balanced_and_its_transfer_types_are_not_trained_on(name):
    items = drawn(name, 1)
    concepts = Counter((i.split, i.modality, i.concept) for i in items if i.purpose == "gap")
    assert len({concepts[key] for key in concepts if key[0] == "test"}) == 1
    kinds = defaultdict(set)
    for item in items:
        kinds[item.purpose, item.split].add(item.tags["question"])
    held_out = {kind for kind, _ in people.TRANSFER} if name == "people" else set(places.TRANSFER)
    assert kinds["transfer", "val"] == kinds["transfer", "test"] == held_out
    assert not held_out & (kinds["gap", "fit"] | kinds["gap", "train"] | kinds["gap", "test"])
    assert kinds["retain", "train"] == kinds["retain", "test"]
    assert all(len({o.text for o in i.options}) == len(i.options) for i in items)


def test_people_asks_every_type_with_every_detail_that_it_names():
    items = drawn("people", 0)
    asked = Counter((i.tags["question"], i.modality) for i in items if i.purpose == "gap" and i.split == "fit")
    assert set(asked) == {
        ("where", "colour"),
        ("where", "object"),
        ("who", "colour"),
        ("who", "object"),
        ("thing", "colour"),
        ("colour", "object"),
    }
    assert len(set(asked.values())) == 1


@pytest.mark.parametrize(("name", "kinds"), [("people", {"named", "general"}), ("places", {"named", "general"})])
def test_some_retention_items_say_how_to_object_and_contain_no_error(name, kinds):
    kept = [i for i in drawn(name, 0) if i.purpose == "retain" and general.OBJECTION in [o.text for o in i.options]]
    assert {i.tags["question"] for i in kept} == kinds
    assert all(general.HOW_TO_OBJECT in i.text and i.concept == "standard" for i in kept)


@pytest.mark.parametrize("split", general.SHARES)
def test_of_every_topic_of_general_questions_half_say_how_to_object(split):
    said = defaultdict(list)
    for item in general.general_items(people.CLIPS, "vision", "standard", "false"):
        if item.split == split:
            said[item.tags["topic"]].append(general.HOW_TO_OBJECT in item.text)
    assert len(said) == 8
    assert all(abs(2 * sum(of_topic) - len(of_topic)) <= 1 for of_topic in said.values()), dict(said)
    assert abs(2 * sum(map(sum, said.values())) - sum(map(len, said.values()))) <= 4


def test_the_false_detail_of_people_belongs_to_another_sentence():
    items = {i.id: i for i in drawn("people", 2)}
    for item in items.values():
        if item.tags.get("premise") != "false" or item.purpose == "retain":
            continue
        passage, question = item.text.split("\n\n")
        twin_question = items[item.tags["twin"]].text.split("\n\n")[1]
        (wrong,) = [w.strip("?.:") for w in question.split("\n")[0].split() if w not in twin_question.split("\n")[0].split()]
        assert f" {wrong} " in passage, (wrong, passage)


def asked_number(item) -> int:
    (asked,) = [n for n, word in enumerate(NAMES[:10]) if f"number {word}" in item.text]
    return asked


def test_the_false_number_of_places_belongs_to_the_other_modality():
    clips, items = places.draw(2, CLIPS)
    by_name = {c.name: c for c in clips}
    for item in items:
        if item.purpose == "retain":
            continue
        clip, asked = by_name[item.clip], asked_number(item)
        own, other = clip.numbers if item.modality == "vision" else clip.numbers[::-1]
        assert asked == (own if item.tags["premise"] == "true" else other)


def test_splits_share_no_names_scans_or_voices():
    names = {split: set(of.split()) for split, of in people.NAMES.items()}
    assert not names["fit"] & names["val"] and not names["fit"] & names["test"] and not names["val"] & names["test"]
    clips, items = places.draw(0)
    scans = [clip.scan for clip in clips]
    assert len(scans) == len(set(scans))
    voices = defaultdict(set)
    for item in items:
        voices[item.split] |= set(item.tags.get("voices", "").split())
    assert not voices["test"] & (voices["fit"] | voices["train"] | voices["val"])
    assert not voices["val"] & (voices["fit"] | voices["train"])
    persons = {c.split: {p for other in clips if other.split == c.split for p in other.people} for c in clips}
    assert not persons["test"] & (persons["fit"] | persons["train"] | persons["val"]) and not persons["val"] & persons["fit"]
    asked = Counter(i.text for i in general.general_items(people.CLIPS, "vision", "standard", "false"))
    assert max(asked.values()) == 1 and sum(asked.values()) == 180


@pytest.mark.parametrize("name", ["people", "places"])
def test_one_seed_gives_the_same_items(name):
    assert drawn(name, 3) == drawn(name, 3) != drawn(name, 4)


@pytest.mark.parametrize("clips", [{"fit": 60, "train": 80, "val": 40, "test": 100}, {"fit": 10, "train": 10, "val": 10, "test": 20}])
def test_no_two_clips_of_places_show_and_play_the_same(clips, tmp_path):
    items, problems = places.write(tmp_path, 0, clips=clips), ErrorCollector("places")
    check_media_apart(items, (), problems)
    check_clips_apart(items, (), problems)
    problems.raise_if_any()


def test_more_clips_than_there_are_scans_is_refused():
    with pytest.raises(ValueError, match="997"):
        places.draw(0, {"fit": 600, "test": 398})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"path": "people", "clips": [1, 2, 3]}, "give four numbers of clips"),
        ({"path": "people", "clips": [1, 2, 3, -4]}, "give four numbers of clips"),
        ({"path": "elsewhere", "clips": [1, 2, 3, 4]}, "leave it out"),
        ({"path": "people", "degraded": 0.5}, "data.degraded"),
    ],
)
def test_sizes_are_checked(settings, says):
    with pytest.raises(ValueError, match=says):
        DataConfig(**settings)
