"""The item set of the embedded world: repeatable, disjoint, balanced, and opaque to a reader of text."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gapclose.data.digits import generate as world
from gapclose.data.digits import questions
from gapclose.data.jsonl import read_items

SMALL = {"fit": 24, "train": 24, "val": 40, "test": 40}


@pytest.fixture(scope="module")
def drawn():
    return world.draw(seed=0)


def digest(directory: Path) -> dict[str, str]:
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path):
    made = world.write(tmp_path / "a", seed=3, clips=SMALL)
    world.write(tmp_path / "b", seed=3, clips=SMALL)
    world.write(tmp_path / "c", seed=4, clips=SMALL)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert digest(tmp_path / "a")["items.jsonl"] != digest(tmp_path / "c")["items.jsonl"]
    back = read_items(tmp_path / "a")
    assert back.fingerprint() == made.fingerprint()
    assert all((back.root / path).is_file() for item in back for _, path in item.media)


def test_splits_share_neither_clips_nor_scans_nor_foreign_voices(drawn):
    clips, items = drawn
    assert Counter(c.split for c in clips) == world.CLIPS
    assert len({c.scan for c in clips}) == len(clips)
    voices = {split: {c.utterance.voice for c in clips if c.split == split} for split in world.CLIPS}
    for left, right in (("fit", "val"), ("fit", "test"), ("train", "val"), ("train", "test"), ("val", "test")):
        assert not voices[left] & voices[right]
    assert all(c.utterance.group != "base" for c in clips)
    split_of = {c.name: c.split for c in clips}
    assert all(split_of[i.clip] == i.split for i in items)


def test_what_is_shown_tells_nothing_about_what_is_said(drawn):
    clips, _ = drawn
    agree = np.mean([c.truth("vision") == c.truth("audio") for c in clips])
    assert abs(agree - 0.1) < 3 * (0.1 * 0.9 / len(clips)) ** 0.5


def test_modality_and_premise_are_crossed_and_balanced(drawn):
    _, items = drawn
    for purpose in ("gap", "transfer"):
        for split in world.CLIPS:
            cells = Counter((i.modality, i.tags["premise"]) for i in items if i.purpose == purpose and i.split == split)
            assert len(set(cells.values())) <= 1 and len(cells) in (0, 4), (split, purpose, cells)
    kinds = {split: {i.tags["question"] for i in items if i.split == split} for split in world.CLIPS}
    assert questions.TRANSFER not in kinds["fit"] | kinds["train"]
    assert questions.TRANSFER in kinds["val"] & kinds["test"]
    phrasings = {split: {i.tags.get("phrasing") for i in items if i.split == split} for split in world.CLIPS}
    assert questions.HELD_OUT_PHRASING not in phrasings["fit"] | phrasings["train"]
    assert questions.HELD_OUT_PHRASING in phrasings["val"] & phrasings["test"]


def test_a_twin_is_the_same_question_with_another_digit(drawn):
    _, items = drawn
    by_id = {i.id: i for i in items}
    for item in items:
        if "twin" not in item.tags:
            continue
        twin = by_id[item.tags["twin"]]
        assert twin.tags["twin"] == item.id and twin.clip == item.clip and twin.modality == item.modality
        assert {twin.tags["premise"], item.tags["premise"]} == {"true", "false"}
        assert twin.text.replace(twin.tags["claim"], "#") == item.text.replace(item.tags["claim"], "#")
        assert twin.text != item.text


def test_gold_options_express_what_the_premise_deserves(drawn):
    _, items = drawn
    for item in items:
        false = item.tags.get("premise") == "false"
        assert item.concept == (f"false_{item.modality}" if false else "standard"), item.id
        if item.purpose != "retain":
            assert {o.concept for o in item.options} == set(questions.CONCEPTS)


def test_in_test_every_digit_is_claimed_truly_and_falsely_equally_often(drawn):
    _, items = drawn
    for purpose in ("gap", "transfer", "retain"):
        claims = Counter(
            (i.modality, i.tags["claim"], i.tags["premise"])
            for i in items
            if i.purpose == purpose and i.split == "test" and "claim" in i.tags
        )
        assert all(claims[m, d, "true"] == n for (m, d, p), n in claims.items() if p == "false")


def test_text_alone_is_at_chance(drawn):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline

    _, items = drawn
    split = {s: [i for i in items if i.split == s and i.purpose == "gap"] for s in ("fit", "test")}
    truth = {s: np.array([i.concept != "standard" for i in chosen]) for s, chosen in split.items()}
    model = make_pipeline(TfidfVectorizer(token_pattern=r"\w+", ngram_range=(1, 2)), LogisticRegression(max_iter=1000))
    model.fit([i.text for i in split["fit"]], truth["fit"])
    score = model.predict_proba([i.text for i in split["test"]])[:, 1]

    clips = np.array([i.clip for i in split["test"]])
    rows = [np.flatnonzero(clips == c) for c in np.unique(clips)]
    rng, resampled = np.random.default_rng(0), []
    for _ in range(200):
        chosen = np.concatenate([rows[k] for k in rng.integers(len(rows), size=len(rows))])
        resampled.append(roc_auc_score(truth["test"][chosen], score[chosen]))
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert low <= 0.5 <= high, (low, high)
    assert high - low < 0.12


def test_too_many_or_too_few_clips_are_refused():
    with pytest.raises(ValueError, match="only 997 are kept"):
        world.draw(clips={"fit": 2000})
    with pytest.raises(ValueError, match="ask for more clips"):
        world.draw(clips={"test": 2})


def test_without_sound_there_are_the_same_questions_about_the_same_images(tmp_path):
    """No sound, no file of it, no option or concept about it; claims, gold options and twins are those of the whole world."""
    whole, images = world.write(tmp_path / "whole", clips=SMALL), world.write(tmp_path / "images", clips=SMALL, sound=False)
    assert read_items(tmp_path / "images").items == images.items and not list((tmp_path / "images").rglob("*.wav"))
    assert images.concepts == ("standard", "false_vision") and images.alarm == ("false_vision",)
    of_vision = {i.id: i for i in whole if i.modality == "vision"}
    assert [i.id for i in images] == list(of_vision)
    for item in images:
        before = of_vision[item.id]
        assert item.text == before.text and item.tags == before.tags and [k for k, _ in item.media] == ["image"]
        assert item.options[item.gold] == before.options[before.gold] and "unheard" not in [o.text for o in item.options]
