"""Item sets: what is read back, and what is said about a set that is wrong."""

import json
from dataclasses import replace

import pytest

from gapclose.core.errors import ErrorCollector
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.data.jsonl import line_of, read_items, write_items
from gapclose.data.splits import check_splits_filled

ODD, LIE = {"text": "odd", "concept": "standard"}, {"text": "unseen", "concept": "false"}
HEADER = {"name": "few", "concepts": ["standard", "false"], "alarm": ["false"]}


def row(ident: str, **changes) -> dict:
    """A line of items.jsonl that is right but for ``changes``."""
    plain = {"id": ident, "clip": f"clip-{ident}", "split": "fit", "modality": "vision", "options": [ODD, LIE], "gold": "odd"}
    return plain | {"messages": [{"role": "user", "content": "Odd?"}]} | changes


def put(directory, *lines, header=HEADER):
    """Write a set; a line is an object or raw text."""
    directory.mkdir(exist_ok=True)
    (directory / "set.json").write_text(header if isinstance(header, str) else json.dumps(header))
    (directory / "items.jsonl").write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return directory


def complaint(directory) -> str:
    """The message of the error that reading raises."""
    with pytest.raises(ValueError) as caught:
        read_items(directory)
    return str(caught.value)


ITEM_FAULTS = {
    "option without a concept": ({"options": [{"text": "odd"}, LIE]}, ["option 'odd' has no concept", "name one of ['standard', 'false']"]),
    "undeclared concept": ({"options": [{"text": "odd", "concept": "maybe"}, LIE]}, ["'odd' expresses 'maybe'", "set.json", "'standard'"]),
    "option without text": ({"options": [{"text": " ", "concept": "false"}, ODD]}, ["has no text"]),
    "gold not among the options": ({"gold": "even"}, ["gold 'even' is not among the options ['odd', 'unseen']", "letter for letter"]),
    "the same option twice": ({"options": [ODD, ODD]}, ["options ['odd', 'odd'] repeat a text"]),
    "an option and its padded twin": ({"options": [ODD, ODD | {"text": "odd "}]}, ["options ['odd', 'odd '] repeat a text"]),
    "one option": ({"options": [ODD]}, ["options is [", "at least two"]),
    "options of another type": ({"options": "odd"}, ["options is 'odd'"]),
    "no such split": ({"split": "dev"}, ["split 'dev' is not one of ['fit', 'train', 'val', 'test']"]),
    "no such purpose": ({"purpose": "fun"}, ["purpose 'fun' is not one of ['gap', 'transfer', 'retain']"]),
    "empty clip": ({"clip": ""}, ["clip is ''", "non-empty string"]),
    "modality of another type": ({"modality": 3}, ["modality is 3"]),
    "unknown key": ({"question": "parity"}, ["unknown keys ['question']", "`tags`"]),
    "tags of another type": ({"tags": ["a"]}, ["tags is ['a']", "object of strings"]),
    "no messages": ({"messages": []}, ["messages is []", "{role, content}"]),
    "message without content": ({"messages": [{"role": "user"}]}, ["needs `role` and `content`"]),
    "unknown role": ({"messages": [{"role": "human", "content": "Odd?"}]}, ["role 'human' is not one of ['system', 'user', 'assistant']"]),
    "nested tags": ({"tags": {"a": ["b"]}}, ["tags is {'a': ['b']}", "object of strings"]),
    "a tag that is kept for the loader": ({"tags": {"option_order": "1 0"}}, ["the tag 'option_order' is kept", "use another name"]),
    "a path that goes up": (
        {"messages": [{"role": "user", "content": [{"type": "image", "path": "../other/a.png"}]}]},
        ["image is '../other/a.png', which leaves", "move or link the file into it"],
    ),
    "a path from the root": (
        {"messages": [{"role": "user", "content": [{"type": "audio", "path": "/a.wav"}]}]},
        ["audio is '/a.wav', which leaves"],
    ),
    "a stem of another type": ({"stem": ["Odd?"]}, ["stem is ['Odd?']", "leave the key out"]),
    "a blank stem": ({"stem": " "}, ["stem is ' '", "the question without its options"]),
    "a meaning of another type": ({"options": [ODD | {"meaning": 3}, LIE]}, ["option 'odd' has the meaning 3", "leave the key out"]),
    "a blank meaning": ({"options": [ODD | {"meaning": ""}, LIE]}, ["option 'odd' has the meaning ''"]),
    "gold as an index": ({"gold": 0}, ["gold 0 is not among the options ['odd', 'unseen']", "copy one of them"]),
    "concept of another type": ({"options": [{"text": "odd", "concept": 3}, LIE]}, ["'odd' expresses 3", "set.json does not declare"]),
    "text without a text": ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, ["'text'", "`text` or `path`"]),
    "a part of another type": ({"messages": [{"role": "user", "content": ["Odd?"]}]}, ["content part 'Odd?' needs `type`"]),
    "unknown part": ({"messages": [{"role": "user", "content": [{"type": "smell", "path": "x"}]}]}, ["'smell'", "one of ['text', 'image'"]),
    "a part that says more": (
        {"messages": [{"role": "user", "content": [{"type": "image", "path": "a.png", "start": 3}]}]},
        ["content part {'type': 'image', 'path': 'a.png', 'start': 3} has the keys ['start']", "take them out"],
    ),
    "a message that says more": (
        {"messages": [{"role": "user", "content": "Odd?", "name": "me"}]},
        ["has the keys ['name'] beside `role`", "take them out"],
    ),
    "a clip that is a missing value": ({"clip": "nan"}, ["clip is 'nan'; it must be a non-empty string"]),
    "a modality of control characters": (
        {"modality": "a\x1b[31m"},
        ["modality is 'a\\x1b[31m', which holds control characters; remove them"],
    ),
    "a modality that is kept": ({"modality": "all"}, ["modality 'all' is kept for figures over every modality; use another name"]),
    "a tag without a value": ({"tags": {"speaker": None}}, ["the tag 'speaker' is null; give it a value, or leave it out"]),
    "an empty tag": ({"tags": {"speaker": " "}}, ["the tag 'speaker' is ' '; it must be a non-empty string"]),
    "a data URI": (
        {"messages": [{"role": "user", "content": [{"type": "image", "path": "data:image/png;base64," + "iVBO" * 2000}]}]},
        [
            "image is 'data:image/png;base64,iVBO",
            "... (8,022 characters), a data: URI, the file itself written as text; save it as a file and name that",
        ],
    ),
    "an address": (
        {"messages": [{"role": "user", "content": [{"type": "audio", "path": "s3://bucket/a.wav"}]}]},
        ["audio is 's3://bucket/a.wav', an address; fetch the file"],
    ),
    "image without a path": ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, ["'image'", "`text` or `path`"]),
}


@pytest.mark.parametrize("fault", ITEM_FAULTS)
def test_a_faulty_item_is_named_with_file_line_id_value_and_remedy(tmp_path, fault):
    """Every fault of one item gives one message that says where it is and what to do."""
    changes, says = ITEM_FAULTS[fault]
    message = complaint(put(tmp_path, row("a"), row("b", **changes)))
    assert message.startswith(f"1 problem with the item set {tmp_path}")
    for part in (f"{tmp_path / 'items.jsonl'}:2: item 'b'", *says):
        assert part in message, message


SET_FAULTS = {
    "not JSON": ([row("a"), '{"id": "b",'], ["items.jsonl:2: not JSON", "one JSON object per line"]),
    "not an object": ([row("a"), "[1]"], ["items.jsonl:2: holds list, not an object"]),
    "NaN": ([row("a"), row("b", gold=float("nan"))], ["items.jsonl:2: item 'b': holds NaN, which JSON does not know; write null"]),
    "half of a pair": ([row("a", modality="x\ud83d")], ["items.jsonl:1: item 'a': modality holds half of a surrogate pair ('\\ud83d' in"]),
    "half of a pair in the id": ([row("a\udc80")], ["items.jsonl:1: item 'a\\\\udc80': id holds half of a surrogate pair"]),
    "a number of 5,000 digits": (
        [row("a"), json.dumps(row("b")).replace('"clip-b"', "9" * 5000)],
        ["items.jsonl:2: item 'b': holds a whole number of more than 4,300 digits (9999", "write it in quotes"],
    ),
    "deep nesting": (
        [row("a"), '{"id": "b", "tags": ' + "[" * 50_000 + "]" * 50_000 + "}"],
        ["items.jsonl:2: item 'b': lists and objects are nested deeper"],
    ),
    "a key twice": (['{"id": "a", "id": "b"}'], ["items.jsonl:1: item 'a': the key 'id' stands twice in one object"]),
    "ids in two forms": ([row("1"), row(" 1.0 ", clip="x")], ["items.jsonl:2: item id '1' was already used on line 1"]),
    "duplicate id": ([row("a"), row("c"), row("a")], ["items.jsonl:3: item id 'a' was already used on line 1", "its own id"]),
    "a clip in two splits": (
        [row("a", clip="x"), row("b", clip="x", split="test")],
        ["clip 'x' is in several splits: fit (item 'a', line 1), test (item 'b', line 2)", "in one split"],
    ),
}


@pytest.mark.parametrize("fault", SET_FAULTS)
def test_a_faulty_set_is_named(tmp_path, fault):
    """Faults between lines name the lines."""
    lines, says = SET_FAULTS[fault]
    message = complaint(put(tmp_path, *lines))
    assert all(part in message for part in says), message


HEADER_FAULTS = {
    "not JSON": ("{", ["set.json: not JSON", "fix the syntax"]),
    "a list": ([], ["set.json: holds list"]),
    "one concept": ({"concepts": ["standard"]}, ["concepts ['standard'] must be two or more"]),
    "a string": ({"concepts": "standard"}, ["concepts is 'standard'", "list of names"]),
    "a key twice": ('{"concepts": [], "concepts": ["a", "b"]}', ["set.json: the key 'concepts' stands twice"]),
    "deep lists": ("[" * 50_000 + "]" * 50_000, ["set.json: lists and objects are nested deeper than"]),
    "a name of another type": (HEADER | {"name": ["few"]}, ["set.json: name is ['few']; write a text"]),
    "a blank concept": ({"concepts": ["standard", " "]}, ["concepts is ['standard', ' ']", "list of names"]),
    "objects": ({"concepts": [{"a": 1}, {"b": 2}]}, ["concepts is [{'a': 1}", "list of names"]),
    "foreign alarm": (HEADER | {"alarm": ["fals"]}, ["alarm concept 'fals' is not among the concepts ['standard', 'false']"]),
    "alarms only": (HEADER | {"alarm": ["standard", "false"]}, ["every concept is an alarm"]),
}


@pytest.mark.parametrize("fault", HEADER_FAULTS)
def test_a_faulty_header_is_named_and_told_once(tmp_path, fault):
    """A wrong set.json is one problem, not one per option of every item."""
    header, says = HEADER_FAULTS[fault]
    message = complaint(put(tmp_path, row("a"), row("b"), header=header))
    assert all(part in message for part in says), message
    assert "expresses" not in message or fault in ("one concept", "a blank concept")


def test_missing_files_and_other_encodings_are_named(tmp_path):
    """A missing directory names both files; a file in another encoding is no traceback."""
    message = complaint(tmp_path / "nowhere")
    assert "set.json: no such file" in message and "items.jsonl: no such file" in message and "docs/how-to/data.md" in message
    directory = put(tmp_path / "latin", row("a"))
    (directory / "items.jsonl").write_bytes(json.dumps(row("a", gold="ö"), ensure_ascii=False).encode("latin-1"))
    assert "items.jsonl: not UTF-8" in complaint(directory)


def test_one_clip_in_several_spellings_is_one(tmp_path):
    """Composed and decomposed accents, white space; a mark in front of the file is no part of it. Spellings that stay two are told."""
    clips = ["caf\u00e9", "cafe\u0301 ", "P1", "p1"]
    put(tmp_path, *(row(str(n), clip=clip, tags={"level": [3, 3.0, "3", "3.0"][n]}) for n, clip in enumerate(clips)))
    (tmp_path / "items.jsonl").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "items.jsonl").read_bytes())
    items = read_items(tmp_path)
    assert [i.clip for i in items] == ["caf\u00e9", "caf\u00e9", "P1", "p1"] and {i.tags["level"] for i in items} == {"3"}
    where = tmp_path / "items.jsonl"
    assert items.notes == (
        f"{where}: clip: 'cafe\u0301' and 'caf\u00e9' are taken for one, 'caf\u00e9'",
        f"{where}: tag level: '3' and '3.0' are taken for one, '3'",
        f"{where}: clip: 'P1' and 'p1' are taken for different ones",
    )
    assert [line_of(where, str(n)) for n in (0, 3)] == [1, 4]


def test_every_fault_is_in_one_message(tmp_path):
    """All faulty lines are told together, with their count, and many of a kind are cut to five."""
    lines = [row(str(n), gold="even") for n in range(60)]
    message = complaint(put(tmp_path, *lines, "{"))
    assert message.startswith("61 problems with") and "... and 55 more like it" in message and message.count("\n") == 7


def test_written_sets_read_back(tmp_path):
    """Round trip with unlabelled items, tags, blank lines and line separators inside a text."""
    text = "one\u2028two\x85three\nfour \x0c \N{SNOWMAN}"
    options = [Option(text="odd", concept="standard"), Option(text="unseen", concept="false")]
    common = {"split": "fit", "modality": "vision", "options": options, "messages": [{"role": "user", "content": text}]}
    items = (
        Item(id="a", clip="x", gold=1, tags={"question": "parity"}, purpose="retain", **common),
        Item(id="b", clip="x", **common),
    )
    made = ItemSet(root=tmp_path, name="few", concepts=("standard", "false"), alarm=("false",), items=items)
    write_items(made, tmp_path)
    with (tmp_path / "items.jsonl").open("a") as handle:
        handle.write("\n  \n")
    assert read_items(tmp_path) == made
    assert made.items[0].concept == "false" and made.items[1].concept is None


def test_selecting_and_hiding_labels(digits):
    """Selections keep the order; unlabelled items carry no gold, and labels change no fingerprint."""
    fit = digits.select(split="fit", purpose="gap")
    assert [i.id for i in fit] == [i.id for i in digits if i.split == "fit" and i.purpose == "gap"]
    assert len(digits.select(split="test", purpose=("gap", "retain"))) == sum(i.split == "test" and i.purpose != "transfer" for i in digits)
    hidden = fit.unlabelled()
    assert {i.gold for i in hidden} == {None} and fit.items[0].gold is not None
    assert hidden.fingerprint() == fit.fingerprint() != digits.fingerprint()
    assert fit.items[0].media == [("image", "media/fit-000.png"), ("audio", "media/fit-000.wav")]


def test_splits_that_a_job_needs(digits):
    """An empty split, a missing label and a missing concept are each named."""
    problems = ErrorCollector("the set")
    bare = [i.id for i in digits if i.clip in ("val-000", "val-001") and (i.clip == "val-000" or i.purpose == "retain")]
    items = [replace(i, gold=None) if i.id in bare else i for i in digits if i.split != "train"]
    items = [i for i in items if not (i.split == "fit" and i.concept == "false_audio")]
    needs = {"fit": True, "train": False, "val": True, "test": True}
    check_splits_filled(replace(digits, items=tuple(items)), needs, 2, problems)
    fit, train, val = problems.messages
    assert "split 'fit' has no item whose gold expresses 'false_audio'" in fit
    assert "split 'train' has no items with purpose 'gap'" in train
    assert f"split 'val' needs labels, but {len(bare)} items have no gold option, e.g. ['val-000/" in val and len(bare) > 7


IMAGE, SOUND = {"type": "image", "path": "a.png"}, {"type": "audio", "path": "a.wav"}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (["Odd?"], "Odd?"),
        ([IMAGE, "Odd?", "Say."], "Odd?\nSay."),  # what stands before the text needs no mark
        (["The number", IMAGE, " was seen. The one ", SOUND, "too"], "The number [image] was seen. The one [audio] too"),
        (["See", IMAGE, SOUND, "this.", "Odd?"], "See [image] [audio] this.\nOdd?"),
        ([IMAGE, "Left one.", IMAGE, "Which?", SOUND], "[image] Left one. [image] Which? [audio]"),  # all or none
        ([IMAGE], ""),
    ],
)
def test_media_inside_a_text_leave_a_mark(content, text):
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    item = Item(
        id="a", clip="a", split="fit", modality="vision", messages=[{"role": "user", "content": parts}],
        options=[Option(text="odd", concept="standard")], gold=0,
    )  # fmt: skip
    assert item.marked_text == text
    asked = replace(item, messages=[{"role": "system", "content": "Be brief."}, *item.messages])
    assert asked.marked_text == (f"Be brief.\n{text}" if text else "Be brief.")
