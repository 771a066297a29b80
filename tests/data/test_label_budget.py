"""Fewer, wrong or missing labels: only fit's, whole clips, drawn by the seed, told when nothing is left."""

import numpy as np
import pytest
from PIL import Image

from gapclose.data.config import LabellingConfig
from gapclose.data.digits import generate as world
from gapclose.data.label_budget import relabel
from gapclose.pipeline.cli import main


def fit(items):
    return items.select(split="fit", purpose="gap").items


def rest(items):
    return [i for i in items if i.split != "fit"]


def test_nothing_changes_by_default(digits):
    assert relabel(digits, LabellingConfig(), 0) == digits


def test_a_budget_keeps_whole_clips_and_nests(digits):
    """Never more than asked for; the larger budget has the smaller one's clips; another seed has others."""
    found = {n: relabel(digits, LabellingConfig(budget=n), 0) for n in (20, 43)}
    clips = {n: {i.clip for i in fit(s)} for n, s in found.items()}
    assert [len(fit(s)) for s in found.values()] == [20, 40] and clips[20] < clips[43]
    assert {i.clip for i in fit(relabel(digits, LabellingConfig(budget=20), 1))} != clips[20]
    assert all(rest(s) == rest(digits) for s in found.values())
    assert fit(relabel(digits, LabellingConfig(budget=10**6), 0)) == fit(digits)


def test_noise_changes_that_share_of_the_golds(digits):
    found = relabel(digits, LabellingConfig(noise=0.25), 0)
    changed = [a.id for a, b in zip(fit(digits), fit(found), strict=True) if a.gold != b.gold]
    assert len(changed) == len(fit(digits)) // 4 and rest(found) == rest(digits)
    assert all(0 <= i.gold < len(i.options) for i in fit(found))


def test_items_with_a_tag_lose_their_place(digits):
    found = relabel(digits, LabellingConfig(without="question=parity"), 0)
    assert {i.tags["question"] for i in fit(found)} == {"size", "alphabet"} and rest(found) == rest(digits)
    assert any(i.tags.get("question") == "parity" for i in found.select(split="train", purpose="gap"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 0}, "budget is 0"),
        ({"noise": 1.0}, r"noise is 1\.0"),
        ({"without": "parity"}, "write a tag and its value"),
        ({"without": "question=colour"}, r"has that tag; there are \['ask=0'"),
        ({"budget": 3}, "the first clip that is drawn"),
    ],
)
def test_what_leaves_nothing_is_refused(digits, change, message):
    with pytest.raises(ValueError, match=message):
        relabel(digits, LabellingConfig(**change), 0)


def test_too_few_labels_for_the_folds_are_found_before_a_model_loads(tiny_config, tmp_path, capsys):
    """One clip is no two folds."""
    assert main(["measure", "--config", str(tiny_config), "--run_dir", str(tmp_path), "--labelling.budget", "4"]) == 2
    assert "with the labels that `labelling` leaves" in capsys.readouterr().err


def test_degraded_clips_are_noise_of_the_same_size(tmp_path):
    """The same questions and answers, tagged; the other clips are byte for byte as they were."""
    clips = {"fit": 12, "val": 24}
    plain, lost = (world.write(tmp_path / name, clips=clips, degraded=share) for name, share in (("plain", 0.0), ("lost", 0.5)))
    assert [(i.id, i.gold, i.text) for i in plain] == [(i.id, i.gold, i.text) for i in lost]
    gone = {i.clip for i in lost if i.tags.get("degraded") == "yes"}
    assert len({c for c in gone if c.startswith("fit")}) == 6 and len(gone) == 18
    for clip in {i.clip for i in lost}:
        for suffix in (".png", ".wav"):
            a, b = (tmp_path / name / "media" / f"{clip}{suffix}" for name in ("plain", "lost"))
            assert (a.read_bytes() != b.read_bytes()) == (clip in gone) and a.stat().st_size > 0
        one, other = (np.asarray(Image.open(tmp_path / name / "media" / f"{clip}.png")) for name in ("plain", "lost"))
        assert sorted(one.ravel()) == sorted(other.ravel())


def test_a_tag_is_named_in_whatever_form_its_table_has_it(digits):
    """Tags have one form; 3.0, as a column of floats shows it, is 3."""
    claims = {name: relabel(digits, LabellingConfig(without=f"claim={name}"), 0) for name in ("3", "3.0", " 3 ")}
    assert all(s.items == claims["3"].items for s in claims.values()) and len(claims["3"]) < len(digits)
