"""The template for items of one's own: a set that every check takes, whose text tells nothing, and which a seed decides."""

import json
from pathlib import Path

import make_items
import pytest
from PIL import Image

from gapclose.data.jsonl import read_items
from gapclose.evaluation.controls.text_leak import text_leak
from gapclose.pipeline.cli import main

COUNTS = {"fit": 36, "train": 24, "val": 12, "test": 28}


def written(directory: Path, monkeypatch, *options: str) -> Path:
    monkeypatch.setattr("sys.argv", ["make_items.py", str(directory), *options])
    make_items.main()
    return directory


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_a_seed_decides_every_byte(tmp_path, monkeypatch):
    few = ("--clips", "4", "2", "2", "4")
    first, again, other = (
        written(tmp_path / n / "set", monkeypatch, *few, "--seed", seed) for n, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    assert files(first) == files(again) and len(files(first)) == 14
    assert files(first).keys() == files(other).keys() and files(first)["items.jsonl"] != files(other)["items.jsonl"]


def test_twins_differ_in_one_word_and_the_false_one_is_false(tmp_path, monkeypatch):
    items = read_items(written(tmp_path / "set", monkeypatch))
    assert {split: len({i.clip for i in items.select(split=split)}) for split in COUNTS} == COUNTS and len(items) == 264
    by_id = {item.id: item for item in items}
    assert {i.id for i in items if "twin" not in i.tags} == {i.id for i in items.select(purpose="retain")} and len(
        items.select(purpose="gap")
    ) == 200
    for item in items.select(purpose="gap"):
        twin = by_id[item.tags["twin"]]
        assert twin.clip == item.clip and by_id[twin.tags["twin"]] is item and {item.concept, twin.concept} == {"standard", "false"}
        assert {tuple(sorted(pair)) for pair in zip(item.text.split(), twin.text.split(), strict=True) if len({*pair}) > 1} == {
            ("left", "right")
        }
        assert all(option.text in item.text for option in item.options)


def test_the_picture_shows_what_the_true_question_says(tmp_path, monkeypatch):
    items = read_items(written(tmp_path / "set", monkeypatch))
    for item in items.select(purpose="gap"):
        if item.concept == "standard":
            picture, word = Image.open(items.root / item.media[0][1]), item.text.split(" that is ")[1].split()[0]
            middle = (round(make_items.SIDE * {"left": 0.27, "right": 0.73}[word]), make_items.SIDE // 2)
            assert picture.getpixel(middle) == make_items.COLOURS[item.options[item.gold].text]


@pytest.mark.parametrize("seed", range(3))
def test_the_text_alone_is_at_chance(tmp_path, monkeypatch, seed):
    items = read_items(written(tmp_path / "set", monkeypatch, "--seed", str(seed)))
    (leak,) = text_leak(items, folds=4)
    assert not leak.above and leak.n_clips == 76 and leak.chance == 0.5


def test_a_false_detail_with_a_word_of_its_own_is_found(tmp_path, monkeypatch):
    """The docstring of `questions` warns of it, and so does `validate`."""
    drawn = make_items.questions
    monkeypatch.setattr(make_items, "questions", lambda *of: [q | {"false": q["false"].replace("What", "Which")} for q in drawn(*of)])
    (leak,) = text_leak(read_items(written(tmp_path / "set", monkeypatch)), folds=4)
    assert leak.above


def test_validate_takes_it_for_the_shipped_model_without_a_warning(tmp_path, monkeypatch, capsys):
    directory = written(tmp_path / "set", monkeypatch)
    assert main(["validate", "--data.path", str(directory), "--model.path", "digits", "--run_dir", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr()
    assert "264 items" in printed.out and "warning" not in printed.out.lower() and "gives the right concept" not in printed.out


def test_it_is_short_and_needs_no_gapclose():
    source = Path(make_items.__file__).read_text()
    assert len(source.splitlines()) < 120 and "import gapclose" not in source and "from gapclose" not in source
    assert json.dumps(make_items.options("colour"))
