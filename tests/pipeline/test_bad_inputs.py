"""Every kind of bad input goes through the command: one message with place and remedy, no traceback, nothing passed over.

The kinds are those of the tables that the readers' own tests keep; what only shows when a whole set meets a model is added here.
"""

import json
import shutil

import numpy as np
import pytest
import soundfile
import test_config
import test_items
import test_media
import test_video as test_films
from PIL import Image
from transformers import AutoTokenizer

from gapclose.data.question_text import letters_prompt
from gapclose.pipeline.cli import main

pytestmark = pytest.mark.usefixtures("no_outline")

CONTENT, LIE = test_items.ODD, test_items.LIE


def whole_set(directory) -> list[dict]:
    """The rows of a set that is right: four clips a split and concept, each with a picture and a sound; the first one's bear the split's name."""
    rows = []
    for n, split in enumerate(("fit", "val", "test", "train"), start=1):
        for m, (clip, gold) in enumerate((c, g) for c in range(4) for g in ("odd", "unseen")):
            name = f"{split}-{clip}-{gold}" if m else split
            Image.new("RGB", (32, 32), (50 * n, 20 * m, 9)).save(directory / f"{name}.png")
            soundfile.write(directory / f"{name}.wav", np.full(800, 0.1 * n + 0.01 * m, dtype="float32"), 16_000)
            content = [
                {"type": "image", "path": f"{name}.png"},
                {"type": "audio", "path": f"{name}.wav"},
                {"type": "text", "text": "Is it odd?"},
            ]
            rows.append(test_items.row(f"{split}-{clip}-{gold}", split=split, gold=gold, messages=[{"role": "user", "content": content}]))
    return rows


def change(rows: list[dict], where, **changes) -> list[dict]:
    return [r | changes if where(r) else r for r in rows]


SPLITS = {  # fault -> what becomes of the rows, and what is said
    "no fit": (lambda rows: [r for r in rows if r["split"] != "fit"], ["split 'fit' has no items with purpose 'gap'", "add some"]),
    "no test": (lambda rows: [r for r in rows if r["split"] != "test"], ["split 'test' has no items with purpose 'gap'"]),
    "no val": (lambda rows: [r for r in rows if r["split"] != "val"], ["split 'val' has no items with purpose 'gap'"]),
    "train that only keeps": (
        lambda rows: change(rows, lambda r: r["split"] == "train", purpose="retain"),
        ["split 'train' has no items with purpose 'gap'"],
    ),
    "test without labels": (
        lambda rows: change(rows, lambda r: r["split"] == "test", gold=None),
        ["split 'test' needs labels, but 8 items have no gold option, e.g. ['test-0-odd'", "label them or move them to split 'train'"],
    ),
    "one fit item without a label": (lambda rows: change(rows, lambda r: r["id"] == "fit-0-odd", gold=None), ["1 items have no gold option, e.g. ['fit-0-odd']"]),
    "a concept that fit lacks": (
        lambda rows: change(rows, lambda r: r["split"] == "fit", gold="odd"),
        ["split 'fit' has no item whose gold expresses 'false'; no probe can learn"],
    ),
    "too few clips for the folds": (
        lambda rows: [r for r in rows if r["id"] != "fit-3-unseen"],
        ["split 'fit' has items whose gold expresses 'false' about 3 clips, too few for 4 folds", "lower probe.folds"],
    ),
    "all about one clip": (
        lambda rows: change(rows, lambda r: r["split"] == "fit", clip="x"),
        ["about 1 clips, too few for 4 folds of clips; add clips"],
    ),
    "nothing to keep": (lambda rows: [r for r in rows if r.get("purpose") != "retain"], ["no items with purpose 'retain'", "set train.retain to 0"]),
}  # fmt: skip

SHARED = {  # fault -> the media of one more item about another clip, in test; and what is said
    "the same file in two splits": ("fit.png", ["the same media file is in several splits: fit (item 'fit-0-odd': fit.png), test (item 'b': fit.png)"]),
    "a copy in two splits": ("copy.png", ["fit (item 'fit-0-odd': fit.png), test (item 'b': copy.png)", "give all that ask about it one clip and one split"]),
}  # fmt: skip

LONG = "an answer that goes on for much longer than any model is asked to"
OPTIONS = {
    "longer than what is generated": ({"options": [CONTENT, LIE | {"text": LONG}], "gold": "odd"}, [f"option {LONG!r} has", "observe.max_new_tokens"]),
    "one begins another": (
        {"options": [CONTENT | {"text": "b"}, LIE | {"text": "b c"}], "gold": "b"},
        ["option 'b' is how option 'b c' begins, token by token", "change one of them"],
    ),
}  # fmt: skip


def refused(capsys, *arguments) -> str:
    """What the command prints when it refuses."""
    assert main(["validate", *map(str, arguments)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("error: ") == 1 and "Traceback" not in message
    return message


@pytest.fixture
def whole(tmp_path, tiny_checkpoint):
    """A set that is right, and the arguments that say so."""
    rows = whole_set(tmp_path)
    rows.append(test_items.row("keep", split="train", purpose="retain", messages=rows[-1]["messages"]))
    return rows, tmp_path, ["--data.path", tmp_path, "--model.path", tiny_checkpoint]


def test_the_set_that_the_faults_are_put_into_is_right(whole, capsys):
    rows, directory, arguments = whole
    test_items.put(directory, *rows)
    assert main(["validate", *map(str, arguments)]) == 0
    assert "no problems found" in capsys.readouterr().out


@pytest.mark.parametrize("fault", [f"item: {f}" for f in test_items.ITEM_FAULTS] + [f"set: {f}" for f in test_items.SET_FAULTS])
def test_faulty_items(whole, capsys, fault):
    kind, _, name = fault.partition(": ")
    rows, directory, arguments = whole
    if kind == "item":
        changes, says = test_items.ITEM_FAULTS[name]
        says = [f"{directory / 'items.jsonl'}:{len(rows) + 1}: item 'b'", *says]
        lines = [*rows, test_items.row("b", **changes)]
    else:
        lines, says = test_items.SET_FAULTS[name]
    test_items.put(directory, *lines)
    message = refused(capsys, *arguments)
    assert all(part in message for part in says), message
    assert kind == "set" or message.startswith("error: 1 problem with")


@pytest.mark.parametrize("fault", test_items.HEADER_FAULTS)
def test_faulty_headers(whole, capsys, fault):
    rows, directory, arguments = whole
    header, says = test_items.HEADER_FAULTS[fault]
    test_items.put(directory, *rows, header=header)
    message = refused(capsys, *arguments)
    assert all(part in message for part in says), message


@pytest.mark.parametrize("fault", [f"media: {f}" for f in test_media.FAULTS] + [f"film: {f}" for f in test_films.FAULTS])
def test_faulty_media(whole, capsys, fault):
    rows, directory, arguments = whole
    source, _, name = fault.partition(": ")
    if source == "media":
        make, says = test_media.FAULTS[name]
        kind, path = test_media.kind_of(name), name
    else:
        kind, make, says = test_films.FAULTS[name]
        path = "film.mp4"
    if make:
        make(directory / path)
    content = [{"type": kind, "path": path}, {"type": "text", "text": "Odd?"}]
    test_items.put(directory, *rows, test_items.row("b", messages=[{"role": "user", "content": content}]))
    message = refused(capsys, *arguments)
    assert message.startswith("error: 1 problem with") and f"{directory / path}: item 'b': " in message
    assert all(part in message for part in says), message


@pytest.mark.parametrize("fault", SPLITS)
def test_faulty_splits(whole, capsys, fault):
    rows, directory, arguments = whole
    alter, says = SPLITS[fault]
    test_items.put(directory, *alter(rows))
    message = refused(capsys, *arguments, "--probe.folds", 4)
    assert all(part in message for part in says), message


@pytest.mark.parametrize("fault", SHARED)
def test_media_that_a_test_shares_with_what_is_fitted(whole, capsys, fault):
    rows, directory, arguments = whole
    path, says = SHARED[fault]
    shutil.copy(directory / "fit.png", directory / "copy.png")
    content = [{"type": "image", "path": path}, {"type": "text", "text": "Is it odd?"}]
    test_items.put(directory, *rows, test_items.row("b", split="test", messages=[{"role": "user", "content": content}]))
    message = refused(capsys, *arguments)
    assert message.startswith("error: 1 problem with") and all(part in message for part in says), message


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(("one", "other"), [("fit", "test"), ("fit", "train"), ("train", "test")])
def test_a_question_without_media_that_two_splits_ask(whole, capsys, one, other, shuffled):
    """Word for word: the probe would be asked to read what it was fitted on, whatever order its options get."""
    rows, directory, arguments = whole
    listed = {"messages": [{"role": "user", "content": letters_prompt("Is it odd?", ["odd", "unseen"])}], "stem": "Is it odd?"}
    listed |= {"options": [{"text": "A", "concept": "standard", "meaning": "odd"}, {"text": "B", "concept": "false", "meaning": "unseen"}]}
    many = [test_items.row(f"{one}-text", split=one, **listed | {"gold": "A"})]
    many += [test_items.row(f"{other}-text-{n}", split=other, clip=f"{other}-text", **listed | {"gold": "A"}) for n in range(5)]
    test_items.put(directory, *rows, *many)
    message = refused(capsys, *arguments, "--data.shuffle_options", str(shuffled).lower())
    says = (
        f"the same question without media is in several splits: {one} (item '{one}-text'), {other} (item '{other}-text-0'); give all that"
    )
    assert message.startswith("error: 1 problem with") and says in message, message


def test_a_question_without_media_may_be_asked_again_in_its_split(whole, capsys):
    """Or with other options elsewhere; and by every item there is, as a file may be carried by every item."""
    rows, directory, arguments = whole
    again = [test_items.row(f"say-{n}", split="train", purpose="retain") for n in range(2)]
    other = test_items.row("other", split="test", options=[CONTENT, LIE | {"text": "not seen"}])
    test_items.put(directory, *rows, *again, other)
    assert main(["validate", *map(str, arguments)]) == 0, capsys.readouterr().err
    test_items.put(directory, *(r | {"messages": [{"role": "user", "content": "Odd?"}]} for r in rows))
    assert main(["validate", *map(str, arguments)]) == 0, capsys.readouterr().err


def test_media_that_tell_nothing_about_a_test_may_be_shared(whole, capsys):
    """A copy in train of one of the things that are in fit, beside another sound, and a picture that every item shows."""
    rows, directory, arguments = whole
    shutil.copy(directory / "fit.png", directory / "train.png")
    Image.new("RGB", (32, 32)).save(directory / "legend.png")
    legend = [{"type": "image", "path": "legend.png"}]
    shown = [r | {"messages": [{"role": "user", "content": legend + r["messages"][0]["content"]}]} for r in rows]
    test_items.put(directory, *shown)
    assert main(["validate", *map(str, arguments)]) == 0, capsys.readouterr().err


def test_copies_of_all_that_is_shown_and_played_in_fit_are_no_training_set(whole, capsys):
    """The probe would read the very items that it was fitted on; a picture that every item shows makes no difference."""
    rows, directory, arguments = whole
    for suffix in ("png", "wav"):
        shutil.copy(directory / f"fit.{suffix}", directory / f"train.{suffix}")
    Image.new("RGB", (32, 32)).save(directory / "legend.png")
    legend = [{"type": "image", "path": "legend.png"}]
    for before in ([], legend):
        test_items.put(directory, *(r | {"messages": [{"role": "user", "content": before + r["messages"][0]["content"]}]} for r in rows))
        message = refused(capsys, *arguments)
        says = [
            "the same media are in fit and in train",
            "item 'fit-0-odd': ",
            "fit.png, fit.wav",
            "train.png, train.wav",
            "one clip and one split",
        ]
        assert message.startswith("error: 1 problem with") and all(part in message for part in says), message


def renamed(rows: list[dict], split: str, directory) -> list[dict]:
    """The rows, with all that the first of a split shows and plays given to its next two, under another name for one of them."""
    first = next(r for r in rows if r["split"] == split)
    shutil.copy(directory / f"{split}.png", directory / "copy.png")
    text = json.dumps(first["messages"])
    return change(
        change(rows, lambda r: r["id"] == f"{split}-0-unseen", messages=first["messages"]),
        lambda r: r["id"] == f"{split}-1-odd",
        messages=json.loads(text.replace(f"{split}.png", "copy.png")),
    )


@pytest.mark.parametrize("split", ["fit", "val", "test"])
def test_one_clip_under_many_names_is_refused_where_clips_count(whole, capsys, split):
    """Folds, intervals and verdicts would take three questions about one clip for three clips."""
    rows, directory, arguments = whole
    test_items.put(directory, *renamed(rows, split, directory))
    message = refused(capsys, *arguments)
    says = (
        f"split '{split}': of 8 clips, 3 show and play just what another one does, e.g. 'clip-{split}-0-odd' and 'clip-{split}-0-unseen' and "
        f"'clip-{split}-1-odd' (items '{split}-0-odd', '{split}-0-unseen', '{split}-1-odd': {split}.png, {split}.wav); folds, intervals and "
        "verdicts count clips, so give all questions about the same media one clip (in a table: name a column with columns: {clip: ...})"
    )
    assert message.startswith("error: 1 problem with") and says in message, message
    grouped = change(renamed(rows, split, directory), lambda r: r["split"] == split and r["id"][-5:] != "2-odd", clip=f"one-{split}")
    test_items.put(directory, *grouped)
    assert f"split '{split}': of" not in refused(capsys, *arguments, "--probe.folds", 4)  # too few clips are left, and no name too many


def test_one_clip_under_many_names_is_told_in_train(whole, capsys):
    """Nothing counts its clips; and what shares a picture or a sound alone is another clip everywhere."""
    rows, directory, arguments = whole
    test_items.put(directory, *renamed(rows, "train", directory))
    assert main(["validate", *map(str, arguments)]) == 0
    assert "split 'train': of 9 clips, 5 show and play just what another one does" in " ".join(capsys.readouterr().out.split())
    halves = [json.loads(json.dumps(r).replace("test-0-unseen.png", "test.png").replace("test-1-odd.wav", "test.wav")) for r in rows]
    test_items.put(directory, *halves)
    assert main(["validate", *map(str, arguments)]) == 0, capsys.readouterr().err


def test_one_question_without_media_under_many_names(whole, capsys):
    """Its words are all there is of it."""
    rows, directory, arguments = whole
    many = [test_items.row(f"text-{n}", split="test") for n in range(3)]
    test_items.put(directory, *rows, *many)
    message = refused(capsys, *arguments)
    assert "split 'test': of 11 clips, 3 show and play just what another one does, e.g. 'clip-text-0' and" in message
    assert "no media, and the same words); folds" in message


@pytest.mark.parametrize("fault", OPTIONS)
def test_options_that_a_model_cannot_tell_apart_or_say(whole, capsys, fault):
    rows, directory, arguments = whole
    changes, says = OPTIONS[fault]
    test_items.put(directory, *rows, test_items.row("b", **changes))
    message = refused(capsys, *arguments)
    assert "item 'b'" in message and all(part in message for part in says), message


def test_a_model_that_takes_no_such_media(whole, tiny_checkpoint, monkeypatch, capsys):
    """A tokenizer alone has no eyes and ears: nothing is dropped silently."""
    rows, directory, arguments = whole
    monkeypatch.setattr("gapclose.pipeline.items.load_processor", lambda config: AutoTokenizer.from_pretrained(tiny_checkpoint))
    test_items.put(directory, *rows)
    message = refused(capsys, *arguments)
    assert "item 'fit-0-odd': it has audio, and " in message and "takes text alone; remove it or choose a model that takes audio" in message


def test_a_question_with_a_special_token(whole, capsys):
    """A placeholder of an image that is none would end the run at its batch."""
    rows, directory, arguments = whole
    test_items.put(directory, *rows, test_items.row("b", messages=[{"role": "user", "content": "What is <|IMAGE|>?"}]))
    message = refused(capsys, *arguments)
    assert "item 'b': its question or options hold '<|IMAGE|>', a special token of the model" in message


@pytest.mark.parametrize("arguments", test_config.WRONG, ids=" ".join)
def test_faulty_configurations(capsys, arguments):
    message = refused(capsys, *arguments)
    assert all(part in message for part in test_config.WRONG[arguments]), message


def test_there_are_kinds_enough():
    """More than forty over items, media, splits, options and configuration; the readers' own tables go through the command as well."""
    tables = (
        test_items.ITEM_FAULTS,
        test_items.SET_FAULTS,
        test_items.HEADER_FAULTS,
        test_media.FAULTS,
        test_films.FAULTS,
        SPLITS,
        OPTIONS,
    )
    assert sum(map(len, tables)) + len(test_config.WRONG) >= 40


def test_the_message_is_json_free_of_surprises(whole, capsys):
    """Names with line breaks and quotes stay within their line."""
    rows, directory, arguments = whole
    test_items.put(directory, *rows, json.dumps(test_items.row("b\nc", gold="e\"v'en")))
    message = refused(capsys, *arguments)
    assert len(message.splitlines()) == 2 and "item 'b\\nc'" in message
