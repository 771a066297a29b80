"""What the wording gives away, as `gapclose validate` says it."""

from pathlib import Path

import numpy as np
import pytest

from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.evaluation.controls import text_leak as leak
from gapclose.pipeline.cli import main
from gapclose.pipeline.validate import print_leak


def asked(clip: int, modality: str, false: bool, text: str, split: str = "fit", gold: bool = True) -> Item:
    options = [Option(text="odd", concept="standard"), Option(text="wrong", concept="false")]
    messages = [{"role": "user", "content": text}]
    name = f"{clip}-{modality}-{false}"
    plain = {"clip": str(clip), "split": split, "modality": modality, "messages": messages, "options": options}
    return Item(id=name, gold=int(false) if gold else None, **plain)


def a_set(*items: Item) -> ItemSet:
    return ItemSet(root=Path(), name="few", concepts=("standard", "false"), alarm=("false",), items=items)


@pytest.fixture
def leaky() -> ItemSet:
    """What is seen is asked about in telling words, what is heard is not; in train it is the other way round, without anybody looking."""
    rng = np.random.default_rng(0)
    words = np.array(["red", "green", "blue", "seven", "dog", "house"])
    items = []
    for clip in range(60):
        for false in (False, True):
            plain = " ".join(rng.choice(words, 4))
            items.append(asked(clip, "vision", false, f"The {'zebra' if false else 'horse'} is {plain}.", "test" if clip % 2 else "fit"))
            items.append(asked(clip, "audio", false, f"The sound is {plain}.", "test" if clip % 2 else "fit"))
            items.append(asked(clip + 100, "audio", false, f"{'zebra' if false else 'horse'}", "train"))
    return a_set(*items)


def test_telling_words_are_found_by_modality(leaky, capsys):
    """Only there, with interval and chance, and a warning; labels of train are not looked at."""
    audio, vision = leak.text_leak(leaky, folds=4)
    assert (vision.modality, vision.n_items, vision.n_clips, vision.chance) == ("vision", 120, 60, 0.5)
    assert vision.balanced.value > 0.95 and vision.above
    assert audio.balanced.lower < 0.5 and not audio.above and audio.n_items == 120
    warnings = print_leak([audio, vision])
    assert len(warnings) == 1 and warnings[0].startswith("the text alone gives the right concept of vision away: ")
    shown = capsys.readouterr().out
    assert "vision" in shown and "0.500" in shown
    assert leak.text_leak(leaky, folds=4) == [audio, vision]


def test_large_sets_are_looked_at_in_part(leaky, monkeypatch):
    """Whole clips, as many as are asked for."""
    monkeypatch.setattr(leak, "MOST", 50)
    found = leak.text_leak(leaky, folds=2)
    assert sum(of.n_items for of in found) == 52 and {of.n_clips for of in found} == {13}


def test_where_nothing_can_be_told(capsys):
    """No labels, no words, one concept, one clip: nothing is printed."""
    unlabelled = [asked(n, "vision", False, "Odd?", gold=False) for n in range(9)]
    silent = [asked(n, "vision", bool(n % 2), "?") for n in range(9)]
    alike = [asked(n, "vision", False, "Odd?") for n in range(9)]
    one = [asked(0, "vision", f, "Odd?") for f in (False, True)]
    assert [leak.text_leak(a_set(*items), folds=4) for items in ([], unlabelled, silent, alike, one)] == [[]] * 5
    assert print_leak([]) == [] and capsys.readouterr().out == ""


@pytest.mark.usefixtures("no_outline")
def test_validate_prints_it_before_a_model_loads(digits_directory, tiny_checkpoint, capsys, monkeypatch):
    """The embedded world's text tells nothing of the verdict: no warning."""
    monkeypatch.setattr("gapclose.models.loading.load_model", lambda *_: pytest.fail("a model was loaded"))
    assert main(["validate", "--data.path", str(digits_directory), "--model.path", str(tiny_checkpoint)]) == 0
    shown = capsys.readouterr().out
    assert "what the text alone gives away" in shown and "warning: the text alone" not in shown
