"""Tables through a column map: concepts that are contents, letters, media as bytes, and what is said of a map that is wrong."""

import errno
import json
import tracemalloc

import datasets
import pytest
import yaml

from gapclose.core.errors import ErrorCollector
from gapclose.data.digits import generate as world
from gapclose.data.formats import read_set
from gapclose.data.splits import SplitAssignment
from gapclose.pipeline.cli import main

pytestmark = pytest.mark.usefixtures("no_outline")

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = {
    "name": "said",
    "concepts": [str(n) for n in range(10)],
    "columns": {"clip": "recording", "audio": "file", "gold": "digit"},
    "question": "Which digit does the audio say?",
    "modality": "audio",
    "options": {name: str(n) for n, name in enumerate(NAMES)},
    "gold_values": {str(n): name for n, name in enumerate(NAMES)},
    "tags": ["voice"],
}
"""ten digits: nothing is false, so nothing is an alarm"""


def read(directory, **how):
    problems = ErrorCollector("the set")
    items = read_set(directory, problems, SplitAssignment(shares=(0.5, 0, 0, 0.5)), **how)
    problems.raise_if_any()
    return items


@pytest.fixture(scope="module")
def rows(digits):
    """One row a clip of the embedded world: a recording and which digit it says."""
    clips = {
        i.clip: i
        for i in digits
        if i.tags["question"] in ("parity", "size", "alphabet") and i.modality == "audio" and i.tags["premise"] == "true"
    }
    return [
        {"recording": c, "file": f"media/{c}.wav", "picture": f"media/{c}.png", "digit": int(i.tags["claim"]), "voice": i.tags["voice"]}
        for c, i in clips.items()
    ]


@pytest.fixture
def said(rows, digits_directory, tmp_path):
    """A directory with a table, its map, and the media."""
    (tmp_path / "said").mkdir()
    (tmp_path / "said" / "media").symlink_to(digits_directory / "media")
    (tmp_path / "said" / "clips.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "said" / "columns.yaml").write_text(yaml.safe_dump(DIGITS, sort_keys=False))
    return tmp_path / "said"


def test_a_table_of_contents_becomes_items_without_alarms(said, rows):
    """Ten concepts, no premise; numbers are translated, tags kept, clips dealt out."""
    items = read(said)
    assert len(items) == 96 and items.name == "said" and items.alarm == () and len(items.concepts) == 10
    item = items.items[5]
    assert (item.clip, item.modality, item.media) == (rows[5]["recording"], "audio", [("audio", rows[5]["file"])])
    assert item.concept == str(rows[5]["digit"]) and item.options[item.gold].text == NAMES[rows[5]["digit"]]
    assert item.text == DIGITS["question"] and item.tags == {"voice": rows[5]["voice"]} and item.id == "clips/6"
    assert len({i.clip for i in items.select(split="fit")}) == 48 == len({i.clip for i in items.select(split="test")})


@pytest.mark.slow
def test_contents_go_through_measure(said, rows, tiny_checkpoint, tmp_path):
    """Nothing in the measurement needs a premise: ten digits, no alarm. Clips of the world that play the same recording are one here."""
    one = {(said / r["file"]).read_bytes(): r for r in reversed(rows)}
    put_rows(said, [r | {"recording": one[(said / r["file"]).read_bytes()]["recording"]} for r in rows])
    settings = {
        "observe.batch_size": 32,
        "observe.max_new_tokens": 3,
        "probe.families": "[logistic]",
        "probe.c": "[0.01]",
        "probe.folds": 2,
    }
    settings |= {
        "gap.replicates": 100,
        "controls.draws": 2,
        "controls.nested": "false",
        "controls.codelength": "false",
        "run_dir": tmp_path / "run",
    }
    settings |= {"data.path": said, "data.shares": "[0.5, 0, 0, 0.5]", "model.path": tiny_checkpoint, "model.dtype": "float32"}
    assert main(["measure", *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]) == 0
    record = json.loads((tmp_path / "run" / "gap.jsonl").read_text().splitlines()[0])
    assert 46 <= record["n_items"] <= 50 and record["reading"]["balanced"]["value"] is not None


def test_data_sets_saved_to_disk_read_with_media_as_bytes(said, rows, tmp_path):
    """Splits by a column, recordings inside the table: written out once, the same items again."""
    stored = [
        r | {"file": {"path": f"{r['recording']}.wav", "bytes": (said / r["file"]).read_bytes()}, "part": ["fit", "test"][n % 2]}
        for n, r in enumerate(rows)
    ]
    datasets.Dataset.from_list(stored).save_to_disk(tmp_path / "saved")
    known = DIGITS | {"columns": DIGITS["columns"] | {"split": "part"}}
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(known, sort_keys=False))
    items = read(tmp_path / "saved", columns=str(tmp_path / "map.yaml"))
    assert [i.split for i in items][:4] == ["fit", "test", "fit", "test"] and items.items[0].id == "all/1"
    (kind, path) = items.items[3].media[0]
    assert kind == "audio" and (items.root / path).read_bytes() == (said / rows[3]["file"]).read_bytes()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "saved" / ".media").iterdir()}
    assert read(tmp_path / "saved", columns=str(tmp_path / "map.yaml")).items == items.items
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "saved" / ".media").iterdir()}


def test_a_dictionary_of_data_sets_with_typed_media_reads_undecoded(said, rows, tmp_path):
    """Features of `datasets` for images and sounds stay paths or bytes; tables that are no splits of ours are dealt out."""
    typed = datasets.Dataset.from_list([r | {"picture": str(said / r["picture"]), "file": str(said / r["file"])} for r in rows])
    typed = typed.cast_column("picture", datasets.Image()).cast_column("file", datasets.Audio())
    datasets.DatasetDict({"train": typed.select(range(60)), "test": typed.select(range(60, 96))}).save_to_disk(tmp_path / "saved")
    known = DIGITS | {"columns": DIGITS["columns"] | {"image": "picture"}}
    (tmp_path / "saved" / "columns.yaml").write_text(yaml.safe_dump(known, sort_keys=False))
    items = read(tmp_path / "saved")
    assert len(items) == 96 and {i.split for i in items} == {"fit", "test"} and {i.id.split("/")[0] for i in items} == {"train", "test"}
    assert [k for k, _ in items.items[0].media] == ["audio", "image"]
    assert all((items.root / path).is_file() for i in items for _, path in i.media)


def test_tables_named_like_the_splits_are_the_splits(rows, digits_directory, tmp_path):
    """Options from columns, listed and answered by letters; a gold letter; media in the map's order; twins name each other."""
    (tmp_path / "media").symlink_to(digits_directory / "media")
    for split, part in (("fit", rows[:40]), ("test", rows[40:])):
        lines = []
        for row in part:
            for q, a, other in (("Is it right?", "A", "B"), ("Is it wrong?", "B", "A")):
                names = {"name": row["recording"] + a, "other": row["recording"] + other}
                lines.append(row | names | {"q": q, "one": "yes", "two": "the premise is false", "answer": a})
        (tmp_path / f"{split}.json").write_text(json.dumps(lines))
    known = {"concepts": ["standard", "false"], "alarm": ["false"], "letters": True, "modality": "vision"}
    known |= {
        "columns": {
            "clip": "recording",
            "audio": "file",
            "image": "picture",
            "question": "q",
            "gold": "answer",
            "id": "name",
            "twin": "other",
        }
    }
    known |= {"option_columns": {"one": "standard", "two": "false"}}
    (tmp_path / "columns.yaml").write_text(yaml.safe_dump(known, sort_keys=False))
    items = read(tmp_path)
    assert [len(items.select(split=s)) for s in ("fit", "train", "val", "test")] == [80, 0, 0, 112]
    first, second = items.items[:2]
    assert [k for k, _ in first.media] == ["audio", "image"] and [o.text for o in first.options] == ["A", "B"] and first.gold == 0
    assert "A. yes\nB. the premise is false" in first.text
    assert first.tags["twin"] == second.id and second.tags["twin"] == first.id


def put_rows(directory, rows, **change):
    """Another table in place of the one that is there, and a map that is changed."""
    (directory / "clips.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (directory / "columns.yaml").write_text(yaml.safe_dump(DIGITS | change, sort_keys=False))
    return directory


def test_rows_about_one_file_are_one_clip(said, rows):
    """Where no column says what a clip is: two questions about a recording are never dealt to two splits."""
    columns = {"audio": "file", "gold": "digit"}
    items = read(put_rows(said, [r for r in rows for _ in range(2)], columns=columns))
    split = {}
    assert len(items) == 2 * len(rows) and {i.clip for i in items} == {r["file"] for r in rows}
    assert all(split.setdefault(i.media[0][1], i.split) == i.split for i in items)


LISTED = {"option_columns": {"a": "0", "b": "1"}, "letters": True}


@pytest.mark.parametrize(
    ("change", "clips"),
    [
        ({"columns": {"question": "asked", "gold": "digit"}, "question": None}, 16),
        ({"columns": {"question": "asked", "gold": "a"}, "question": None, "options": None, **LISTED}, 48),
        ({"columns": {"gold": "a"}, "options": None, **LISTED}, 3),
        ({"columns": {"gold": "digit"}}, 96),
    ],
)
def test_rows_without_media_that_ask_the_same_are_one_clip(said, rows, change, clips):
    """The words of the prompt, with letters those of the options too, and those alone where all rows ask the same; never a name without end."""
    asked = [r | {"asked": f"{'Which? ' * 50}{n % 16}", "a": f"so {n % 3}", "b": "not so"} for n, r in enumerate(rows)]
    items = read(put_rows(said, asked, **{"gold_values": DIGITS["gold_values"]} | change))
    groups = {}
    for item in items:
        groups.setdefault(item.clip, set()).add((item.text, item.split))
    assert len(groups) == clips and all(len(group) == 1 for group in groups.values()) and max(map(len, groups)) < 90


def test_official_splits_stay(said, rows):
    """What the hub calls test is never fitted on; train becomes fit, train and what else is left."""
    (said / "clips.jsonl").unlink()
    parts = {"train": rows[:60], "validation": rows[60:70], "test": rows[70:]}
    for name, part in parts.items():
        (said / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part))
    items = read_set(said, ErrorCollector("the set"), SplitAssignment())
    names = {split: {i.clip for i in items.select(split=split)} for split in ("fit", "train", "val", "test")}
    assert names["test"] == {r["recording"] for r in parts["test"]} and names["val"] == {r["recording"] for r in parts["validation"]}
    assert (len(names["fit"]), len(names["train"])) == (30, 30)
    (note,) = items.notes
    assert "the tables ['test', 'validation'] stay what they are called" in note and "['train'] are dealt out together" in note
    (said / "train.jsonl").rename(said / "fit.jsonl")
    own = read(said)
    assert [len(own.select(split=s)) for s in ("fit", "train", "val", "test")] == [60, 0, 10, 26] and own.notes == ()
    for name in ("fit", "validation"):
        (said / f"{name}.jsonl").unlink()
    alone = read(said)  # only a test: dealt out, as a benchmark is
    assert {i.split for i in alone} == {"fit", "test"} and alone.notes == ()
    (said / "other.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (said / "test.jsonl").rename(said / "more.jsonl")
    assert "the clips of ['more', 'other'] are dealt out together, by data.shares" in read(said).notes[0]
    (said / "other.jsonl").rename(said / "test.jsonl")
    problems = ErrorCollector("the set")
    read_set(said, problems, SplitAssignment(shares=(0, 0, 0, 1)))
    assert "data.shares gives nothing to any split but ['test']" in problems.messages[0]


def test_val_stays_where_there_is_no_test(said, rows):
    """Whether the other table is called fit or train; a val alone is a benchmark, and dealt out."""
    (said / "clips.jsonl").unlink()
    (said / "validation.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[60:]))
    for name in ("train", "fit"):
        (said / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[:60]))
        items = read_set(said, ErrorCollector("the set"), SplitAssignment())
        assert {i.clip for i in items.select(split="val")} == {r["recording"] for r in rows[60:]}
        assert [len(items.select(split=s)) for s in ("fit", "train", "test")] == [20, 20, 20]
        (note,) = items.notes
        assert "the tables ['validation'] stay what they are called" in note
        assert f"the clips of ['{name}'] are dealt out together, by data.shares, to ['fit', 'test', 'train']" in note
        (said / f"{name}.jsonl").unlink()
    alone = read(said)
    assert {i.split for i in alone} == {"fit", "test"} and alone.notes == ()


@pytest.mark.parametrize("mark", ["", "-b42a775f407cee45"])
def test_shards_are_numbered_through(said, rows, mark):
    """Also where the hub has marked their names."""
    (said / "clips.jsonl").unlink()
    for n in range(2):
        lines = [json.dumps(r) + "\n" for r in rows[48 * n : 48 * (n + 1)]]
        (said / f"clips-{n:05d}-of-00002{mark}.jsonl").write_text("".join(lines))
    assert sorted(int(i.id.removeprefix("clips/")) for i in read(said)) == list(range(1, 97))


def test_spreadsheets_with_a_mark_in_front_and_ragged_lines(said, rows):
    """The mark is no part of the first column's name; a line that lacks a cell, or has one too many, is told."""
    lines = ["recording,file,digit,voice", *(f"{r['recording']},{r['file']},{r['digit']},{r['voice']}" for r in rows)]
    (said / "clips.jsonl").unlink()
    (said / "clips.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    assert len(read(said)) == 96
    for line, says in (("a,b", "fewer cells than"), ("a,b,c,d,e", "more cells than")):
        (said / "clips.csv").write_text("\n".join([*lines[:3], line]))
        with pytest.raises(ValueError, match=rf"clips.csv: cannot be read \(line 4 has {says} the first line names columns"):
            read(said)


def test_a_number_is_an_option_and_white_space_is_none(said, rows):
    """0 is a text like another, and what a table pads still matches."""
    listed = [r | {"a": 0, "b": "one ", "answer": ("0", "one ", 0)[n % 3]} for n, r in enumerate(rows)]
    known = {
        "columns": DIGITS["columns"] | {"gold": "answer"},
        "options": None,
        "option_columns": {"a": "0", "b": "1"},
        "gold_values": None,
    }
    items = read(put_rows(said, listed, **known))
    assert [[o.text for o in i.options] for i in items.items[:2]] == [["0", "one"]] * 2
    assert [i.gold for i in items.items[:3]] == [0, 1, 0]


ROWS = {  # fault -> what becomes of the first row, of the map, and what is said
    "no clip": ({"recording": None}, {}, ["item 'clips/1': clip (recording) is None; fill it in"]),
    "no split": ({"part": " "}, {"columns": DIGITS["columns"] | {"split": "part"}}, ["item 'clips/1': split (part) is ' '; fill it in"]),
    "no id": ({"name": ""}, {"columns": DIGITS["columns"] | {"id": "name"}}, ["item '': id (name) is ''; fill it in"]),
    "no modality": (
        {"part": None},
        {"columns": DIGITS["columns"] | {"modality": "part"}, "modality": None},
        ["item 'clips/1': modality (part) is None; fill it in"],
    ),
    "a path from the root": ({"file": "/etc/a.wav"}, {}, ["item 'clips/1': file is '/etc/a.wav', which leaves ", "move or link the file into it"]),
    "a clip that is nan": ({"recording": "nan"}, {}, ["item 'clips/1': clip (recording) is 'nan'; fill it in"]),
    "a tag that is missing": ({"voice": None}, {}, ["item 'clips/1': tag (voice) is None; fill it in"]),
    "a clip that is a list": ({"recording": ["a"]}, {}, ["item 'clips/1': clip (recording) is ['a'], a list; write one text or number"]),
    "a control character": ({"recording": "a\x1b"}, {}, ["clip (recording) is 'a\\x1b', which holds control characters"]),
    "a modality that is kept": (
        {"part": "all"},
        {"columns": DIGITS["columns"] | {"modality": "part"}, "modality": None},
        ["modality 'all' is kept for figures over every modality"],
    ),
    "a list as gold": ({"digit": [1]}, {}, ["item 'clips/1': gold is [1], a list; write one text or number"]),
    "media as a data URI": ({"file": "data:audio/wav;base64,AAAA"}, {}, ["item 'clips/1': file is 'data:audio/wav;base64,AAAA', a data: URI"]),
    "media as base64": ({"file": "iVBORw0KGgo/" * 300}, {}, ["file is 'iVBORw0KGgo/", "... (3,600 characters), base64, the file itself written as text; save it as a file"]),
    "media at an address": ({"file": "https://a.b/c.wav"}, {}, ["file is 'https://a.b/c.wav', an address; fetch the file"]),
    "media with a name without end": ({"file": "a" * 300 + ".wav"}, {}, ["(304 characters), longer than the name of a file can be; shorten it"]),
    "media with a NUL": ({"file": "a\0.wav"}, {}, ["line 1: file holds a NUL character"]),
    "a path that goes up": ({"file": "media/../../a.wav"}, {}, ["file is 'media/../../a.wav', which leaves "]),
}  # fmt: skip


@pytest.mark.parametrize("fault", ROWS)
def test_a_faulty_row_is_told_with_the_remedy(said, rows, fault):
    change, known, says = ROWS[fault]
    table = [r | {"part": "fit", "name": str(n)} for n, r in enumerate(rows)]
    with pytest.raises(ValueError, match=r"^1 problem with the set") as caught:
        read(put_rows(said, [table[0] | change, *table[1:]], **known))
    assert (f"{said / 'clips.jsonl'}:1: " in str(caught.value) or fault == "media with a NUL") and all(
        part in str(caught.value) for part in says
    ), caught.value


def test_media_inside_a_table_are_not_all_held_at_once(tmp_path, monkeypatch):
    """Sixty rows of 100 kB are written out as they pass; bytes of a column that nobody asks for are not even written."""
    import pyarrow
    import pyarrow.parquet

    stored = [
        {"file": {"bytes": bytes([n]) * 100_000, "path": None}, "other": {"bytes": bytes(9), "path": None}, "digit": 0} for n in range(60)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(stored), tmp_path / "clips.parquet")
    datasets.Dataset.from_list(stored).save_to_disk(tmp_path / "saved" / "all")
    del stored
    for directory in (tmp_path, tmp_path / "saved"):
        (directory / "columns.yaml").write_text(yaml.safe_dump(DIGITS | {"columns": {"audio": "file", "gold": "digit"}, "tags": []}))
        monkeypatch.setattr("gapclose.data.formats.tables.BATCH", 4)
        tracemalloc.start()
        items = read(directory)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 2_500_000 and len(list((directory / ".media").iterdir())) == 60
        assert [(directory / i.media[0][1]).read_bytes()[:1] for i in items] == [bytes([n]) for n in range(60)]


@pytest.mark.parametrize("saved", [False, True])
def test_a_place_that_cannot_be_written_is_told_once(tmp_path, monkeypatch, saved):
    """Media inside a table of a directory that is mounted for reading alone: the table is right, and it is there."""
    import pyarrow
    import pyarrow.parquet

    stored = [{"file": {"bytes": bytes([n]), "path": None}, "digit": 0} for n in range(3)]
    if saved:
        datasets.Dataset.from_list(stored).save_to_disk(tmp_path / "all")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(stored), tmp_path / "clips.parquet")
    (tmp_path / "columns.yaml").write_text(yaml.safe_dump(DIGITS | {"columns": {"audio": "file", "gold": "digit"}, "tags": []}))

    def refuse(path, content):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("gapclose.data.formats.generic_table.write_bytes", refuse)
    with pytest.raises(ValueError, match=r"^1 problem with the set") as caught:
        read(tmp_path)
    message = str(caught.value)
    assert f"{tmp_path / '.media'}: " in message and "cannot be written (Read-only file system); copy the tables, or link" in message
    assert "no table" not in message and "write it again" not in message


FAULTS = {
    "no YAML": ("a: [", ["columns.yaml: the column map cannot be read", "docs/how-to/data-formats.md shows one"]),
    "a list": ("[a]", ["columns.yaml: holds list, not keys and values"]),
    "unknown key": ({"optoins": {}}, ["unknown key 'optoins'; did you mean 'options'?"]),
    "unknown field": ({"columns": {"audo": "file", "gold": "digit"}}, ["columns: unknown key 'audo'; did you mean 'audio'?"]),
    "no such column": ({"columns": {"audio": "fiel", "gold": "digit"}}, ["clips.jsonl:1: no column 'fiel'", "did you mean 'file'?"]),
    "an option that YAML takes for true": ({"options": {True: "0", "one": "1"}}, ["columns.yaml: options: ", "as True; quote it"]),
    "a concept that YAML takes for nothing": ({"concepts": ["0", None]}, ["columns.yaml: concepts: ", "as None; quote it"]),
    "a gold value that YAML takes for false": ({"gold_values": {"0": False}}, ["columns.yaml: gold_values: ", "as False; quote it"]),
    "a modality that YAML takes for true": ({"modality": True}, ["columns.yaml: modality: ", "as True; quote it"]),
    "a map that repeats a key": ("name: a\nname: b", ["columns.yaml: the column map cannot be read (line 2: the key 'name' stands twice"]),
    "a map with aliases": ("a: &a [x]\nb: [*a, *a]", ["(line 2: the alias *a is not followed"]),
    "a map without end": ("[" * 5000, ["(line 1: lists and objects are nested deeper than"]),
    "a list where a name belongs": ({"gold_values": {"0": ["zero"]}}, ["columns.yaml: gold_values: ['zero'] is a list, not a name"]),
    "gold values that are one": (
        {"gold_values": {"0": "zero", "0.0": "one"}},
        ["gold_values '0.0' is the same as another entry, '0', and means something else"],
    ),
    "options that are one": (
        {"options": {0: "0", "0": "1", "one": "1"}},
        ["1 problem", "columns.yaml: options '0' is the same as another entry, '0', and means '1' rather than '0'; keep one"],
    ),
    "columns of options that are one": (
        {"options": None, "option_columns": {1: "0", "1": "1"}},
        ["columns.yaml: option_columns '1' is the same as another entry, '1', and means '1' rather than '0'; keep one"],
    ),
    "gold values that are one before they are folded": (
        {"gold_values": {0: "zero", "0": "one"}},
        ["1 problem", "columns.yaml: gold_values '0' is the same as another entry, '0', and means 'one' rather than 'zero'; keep one"],
    ),
    "letters in quotes": ({"letters": "no"}, ["1 problem", "columns.yaml: letters is 'no'; it must be true or false, without quotes"]),
    "letters as a number": ({"letters": 1}, ["columns.yaml: letters is 1; it must be true or false"]),
    "letters without a value": ({"letters": None}, ["columns.yaml: letters is None; it must be true or false"]),
    "no alarms, in a word": ({"alarm": False}, ["columns.yaml: alarm is False; it must be a list of names"]),
    "no tags, in a number": ({"tags": 0}, ["columns.yaml: tags is 0; it must be a list of names"]),
    "gold values as a text": ({"gold_values": ""}, ["columns.yaml: gold_values is ''; it must be a mapping"]),
    "two questions, one of them a number": (
        {"question": 0, "columns": DIGITS["columns"] | {"question": "voice"}},
        ["columns.yaml: question must be given once"],
    ),
    "a question of spaces": ({"question": "  "}, ["columns.yaml: question must be given once"]),
    "options twice, once as a number": ({"options": 0, "option_columns": {"voice": "0", "file": "1"}}, ["give one of `options`"]),
    "an option with control characters": (
        {"options": {"\x1b[31m": "0", "one": "1"}},
        ["columns.yaml: options: a name is '\\x1b[31m', which holds control characters; remove them"],
    ),
    "a concept without end": ({"concepts": ["0", float("inf")]}, ["columns.yaml: the column map cannot be read (", "put it in quotes"]),
    "no options": ({"options": None}, ["give one of `options` (text: concept) and `option_columns`", "not neither"]),
    "one option": ({"options": {"zero": "0"}}, ["options has 1 entries; there must be two"]),
    "options as a list": ({"options": ["zero"]}, ["options is ['zero']; it must be a mapping"]),
    "concepts as a text": ({"concepts": "0"}, ["concepts is '0'; it must be a list of names"]),
    "one concept": ({"concepts": ["0"]}, ["concepts ['0'] must be two or more distinct names"]),
    "alarms only": ({"alarm": [str(n) for n in range(10)]}, ["every concept is an alarm; leave at least one"]),
    "foreign alarm": ({"alarm": ["ten"]}, ["alarm names the concept 'ten', which is not among the concepts"]),
    "foreign concept": ({"options": {"zero": "0", "one": "eleven"}}, ["option 'one' names the concept 'eleven'"]),
    "no question": ({"question": None}, ["question must be given once, as a text or as a column"]),
    "two modalities": ({"columns": DIGITS["columns"] | {"modality": "voice"}}, ["modality must be given once"]),
    "untranslated gold": ({"gold_values": None}, ["gold ", " is not among the options ['zero'", "translate it with gold_values"]),
    "no such split": ({"columns": DIGITS["columns"] | {"split": "voice"}}, ["is not one of ['fit', 'train', 'val', 'test']; fix it"]),
    "no path": ({"columns": DIGITS["columns"] | {"image": "digit"}}, ["clips/1': digit is ", ", no image; give a path relative to"]),
    "repeated ids": ({"columns": DIGITS["columns"] | {"id": "voice"}}, ["item id ", "was already used", "give every item its own id"]),
    "a clip in two splits": (
        {"columns": DIGITS["columns"] | {"clip": "voice", "split": "part"}},
        ["is in several splits", "keep all questions of a clip in one split"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_map_is_told_with_the_remedy(said, tiny_checkpoint, capsys, fault):
    change, says = FAULTS[fault]
    lines = [json.loads(line) for line in (said / "clips.jsonl").read_text().splitlines()]
    (said / "clips.jsonl").write_text("".join(json.dumps(r | {"part": ["fit", "test"][n % 2]}) + "\n" for n, r in enumerate(lines)))
    (said / "columns.yaml").write_text(change if isinstance(change, str) else yaml.safe_dump(DIGITS | change, sort_keys=False))
    assert main(["validate", "--data.path", str(said), "--model.path", str(tiny_checkpoint), "--data.shares", "[0.5, 0, 0, 0.5]"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error:") and "Traceback" not in message and all(part in message for part in says), message


TABLES = {  # fault -> a CSV table, and what is said
    "a header twice": ("recording,file,digit,digit\na,b,1,2", ["clips.csv: cannot be read (line 1 names the column 'digit' twice; rename"]),
    "a quote that is not closed": ('recording,file,digit,voice\na,"b,1,v\nc,d,2,v', ["line 3: unexpected end of data; correct it (a quote that"]),
    "NUL": ("recording,file,digit,voice\n\na,b,1,v\nc,\0d,2,v", ["line 4 holds a NUL character in the column 'file'"]),
    "a cell of a picture": ("recording,file,digit,voice\na," + "A" * 10_000_001 + ",1,v", ["line 2: field larger than field limit (10000000)"]),
    "other letters": (b"recording,file,digit,voice\na,b\xff,1,v", ["clips.csv: cannot be read (not UTF-8 (byte 0xff, line 2); save it again"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", TABLES)
def test_a_faulty_table_is_told_with_its_line(said, fault):
    content, says = TABLES[fault]
    (said / "clips.jsonl").unlink()
    (said / "clips.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"^1 problem with the set") as caught:
        read(said)
    assert all(part in str(caught.value) for part in says), caught.value


def test_lines_of_a_table_count_as_an_editor_counts_them(said, rows):
    """A cell of several lines moves those that follow; the number of the row stays its id."""
    (said / "clips.jsonl").unlink()
    (said / "clips.csv").write_text('recording,file,digit,voice\n"a\n\nb",media/a.wav,1,v\n,media/b.wav,2,v\n')
    with pytest.raises(ValueError, match=r"clips.csv:5: item 'clips/3': clip \(recording\) is ''; fill it in"):
        read(said)


PATIENTS = {"columns": {"clip": "recording", "audio": "file", "gold": "digit", "modality": "kind", "split": "part"}, "modality": None}


def test_one_patient_is_one_clip_whatever_the_types_of_the_tables(said, rows):
    """Whole numbers in one table, floats in the next (a cell is empty there), text in the third; so it is with the other keys, and with gold."""
    import pyarrow
    import pyarrow.parquet

    (said / "clips.jsonl").unlink()
    known = DIGITS | PATIENTS | {"tags": ["voice"]}
    (said / "columns.yaml").write_text(yaml.safe_dump(known, sort_keys=False))
    put_in = [{"recording": n // 2, "file": f"{n}.wav", "digit": n % 10, "voice": n % 3, "kind": 7, "part": "fit"} for n in range(60)]
    parts = [put_in[0::3], put_in[1::3], put_in[2::3]]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(parts[0]), said / "a.parquet")
    floats = [row | {key: float(row[key]) for key in ("recording", "voice", "kind")} | {"digit": float(row["digit"])} for row in parts[1]]
    floats[0]["digit"] = float("nan")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(floats), said / "b.parquet")
    (said / "c.csv").write_text("\n".join([",".join(parts[2][0]), *(",".join(f" {cell} " for cell in row.values()) for row in parts[2])]))
    items = read(said)
    assert len(items) == 60 and {i.clip for i in items} == {str(n) for n in range(30)} and {i.modality for i in items} == {"7"}
    assert {i.tags["voice"] for i in items} == {"0", "1", "2"} and sum(i.gold is None for i in items) == 1


def test_zeros_that_one_table_lost_are_told(said, rows):
    """The patient 007 of a text is the patient 7 of a number; which one is right nobody here knows."""
    two = [rows[0] | {"recording": "007"}, rows[1] | {"recording": 7}]
    with pytest.raises(ValueError, match="clip '007' is a text and clip '7' a number, as if a table had lost the zeros in front"):
        read(put_rows(said, [*two, *rows[2:]]))
    notes = read(put_rows(said, [rows[0] | {"recording": "P1"}, rows[1] | {"recording": "p1"}, *rows[2:]])).notes
    assert notes == (f"{said}: clip: 'P1' and 'p1' are taken for different ones",)


PLACES = {
    "nothing there": (lambda p: p / "nowhere", ["no such directory", "docs/how-to/data-formats.md"]),
    "a file": (lambda p: p / "clips.jsonl", ["is a file; name the directory"]),
    "an empty directory": (lambda p: (p / "empty").mkdir() or p / "empty", ["nothing in it that can be read", "set.json and items.jsonl"]),
    "tables without a map": (lambda p: (p / "columns.yaml").unlink() or p, ["tables clips, and nothing that says what their columns mean"]),
    "a map without tables": (lambda p: (p / "clips.jsonl").unlink() or p, ["no table (.jsonl, .json, .csv, .parquet"]),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_place_without_items_is_told_with_what_may_lie_there(said, tiny_checkpoint, capsys, place):
    make, says = PLACES[place]
    assert main(["validate", "--data.path", str(make(said)), "--model.path", str(tiny_checkpoint)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error:") and "Traceback" not in message and all(part in message for part in says), message


def test_the_map_names_the_world_s_digits():
    """The names above are those that the embedded world says."""
    assert tuple(world.NAMES[:10]) == NAMES
