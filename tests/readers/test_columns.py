"""Tables through a column map: concepts that are contents, letters, media as bytes, and what is said of a map that is wrong."""

import json

import datasets
import pytest
import yaml

from gapclose.cli import main
from gapclose.digits import world
from gapclose.errors import Problems
from gapclose.readers import read_set
from gapclose.readers.splits import Dealing

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
    problems = Problems("the set")
    items = read_set(directory, problems, Dealing(shares=(0.5, 0, 0, 0.5)), **how)
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


def test_contents_go_through_measure(said, tiny_checkpoint, tmp_path):
    """Nothing in the measurement needs a premise: ten digits, no alarm."""
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
    assert record["n_items"] == 48 and record["reading"]["balanced"]["value"] is not None


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


FAULTS = {
    "no YAML": ("a: [", ["columns.yaml: the column map cannot be read", "docs/your-data.md shows one"]),
    "a list": ("[a]", ["columns.yaml: holds list, not keys and values"]),
    "unknown key": ({"optoins": {}}, ["unknown key 'optoins'; did you mean 'options'?"]),
    "unknown field": ({"columns": {"audo": "file", "gold": "digit"}}, ["columns: unknown key 'audo'; did you mean 'audio'?"]),
    "no such column": ({"columns": {"audio": "fiel", "gold": "digit"}}, ["clips.jsonl:1: no column 'fiel'", "did you mean 'file'?"]),
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
    "no such split": ({"columns": DIGITS["columns"] | {"split": "voice"}}, ["is not one of ['fit', 'train', 'val', 'test']; mend it"]),
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


PLACES = {
    "nothing there": (lambda p: p / "nowhere", ["no such directory", "docs/your-data.md"]),
    "a file": (lambda p: p / "clips.jsonl", ["no such directory"]),
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
