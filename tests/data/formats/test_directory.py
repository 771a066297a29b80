"""A data directory is read whole: tables that are there twice, in part, in another form or in another place are refused or told."""

import gzip
import json

import pytest
import yaml

from gapclose.core.errors import ErrorCollector
from gapclose.data.formats import read_set
from gapclose.data.formats.directory import SHARD, table_files
from gapclose.data.splits import SplitAssignment

MAP = {
    "concepts": ["normal", "crackle"],
    "alarm": ["crackle"],
    "columns": {"clip": "patient", "image": "file", "gold": "label"},
    "question": "What is it?",
    "modality": "vision",
    "options": {"odd": "normal", "unseen": "crackle"},
}


def rows(first: int, count: int) -> list[dict]:
    return [{"patient": f"p{n}", "file": f"{n}.png", "label": ("odd", "unseen")[n % 2]} for n in range(first, first + count)]


def lines(first: int = 0, count: int = 8) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows(first, count))


def csv(first: int = 0, count: int = 8) -> str:
    return "\n".join(["patient,file,label", *(",".join(row.values()) for row in rows(first, count))])


def put(directory, files: dict[str, str | bytes]):
    """Write files, and a column map where none of them is one."""
    for name, content in {"columns.yaml": yaml.safe_dump(MAP, sort_keys=False), **files}.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return directory


def read(directory, dealing=None):
    problems = ErrorCollector("the set")
    items = read_set(directory, problems, dealing or SplitAssignment(shares=(0.5, 0, 0, 0.5)))
    problems.raise_if_any()
    return items


REFUSED = {
    "two formats": ({"all.csv": csv(), "all.jsonl": lines()}, ["all.csv and ", "all.jsonl: the table 'all' is there 2 times", "keep one of them"]),
    "two folders": ({"all.csv": csv(), "data/all.csv": csv(8)}, ["all.csv and ", "data/all.csv: the table 'all' is there 2 times"]),
    "a whole and its shards": ({"all.csv": csv(), "all-00000-of-00001.csv": csv(8)}, ["the table 'all' is there 2 times"]),
    "capitals": ({"Test.csv": csv(), "test.jsonl": lines(8), "fit.csv": csv(16)}, ["Test.csv and ", "test.jsonl: the table 'test' is there 2 times"]),
    "capitals of another name": ({"All.csv": csv(), "all.jsonl": lines(8)}, ["all.jsonl and ", "All.csv: two tables whose names differ in capitals alone"]),
    "a shard that is not there": (
        {"all-00000-of-00003.csv": csv(), "all-00002-of-00003.csv": csv(8)},
        ["all-00000-of-00003.csv: of 3 shards, those with the numbers [1] are not there; fetch them"],
    ),
    "a shard twice": (
        {"all-00000-of-00001-00000000aa.csv": csv(), "all-00000-of-00001-00000000bb.csv": csv(8)},
        ["00aa.csv and ", "00bb.csv: the same part of the table 'all', whose rows would count twice"],
    ),
    "a packed table": ({"train.csv": csv(), "test.csv.gz": gzip.compress(csv(8).encode())}, ["test.csv.gz: a table in a form that is not read; unpack it"]),
    "another packing": ({"train.csv": csv(), "more.JSONL.ZST": "x"}, ["more.JSONL.ZST: a table in a form that is not read"]),
    "a spreadsheet": ({"train.csv": csv(), "data/test.XLSX": "x"}, ["data/test.XLSX: a table in a form that is not read; unpack it or write it as .jsonl"]),
    "tabs": ({"train.csv": csv(), "test.tsv": csv(8)}, ["test.tsv: a table in a form that is not read"]),
    "only a packed table": ({"test.csv.gz": "x"}, ["test.csv.gz: a table in a form that is not read"]),
    "a split in its own folder": ({"train.csv": csv(), "test/part-0.csv": csv(8)}, ["test/part-0.csv: a table that is not read there; put it among"]),
    "a split further down": ({"train.csv": csv(), "old/Test.jsonl": lines(8)}, ["old/Test.jsonl: a table that is not read there"]),
    "a copy under another name": (
        {"all.csv": csv(), "all (1).jsonl": lines()},
        ["all.csv and ", "all (1).jsonl: the second holds every row of the first, which would count twice; keep one of them"],
    ),
    "a part beside the whole": ({"all.csv": csv(0, 16), "more.csv": csv(4, 4)}, ["more.csv and ", "all.csv: the second holds every row of the first"]),
    "items beside items": (
        {"set.json": '{"concepts": ["a", "b"], "alarm": []}', "items.jsonl": "", "items.parquet": "x"},
        ["items.parquet: a table that is not read there"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_count_twice_or_not_at_all_is_refused(tmp_path, case):
    files, says = REFUSED[case]
    with pytest.raises(ValueError, match=r"problems? with the set") as caught:
        read(put(tmp_path, files))
    message = str(caught.value)
    assert all(part in message for part in says) and "was already used" not in message, message
    assert message.startswith("1 problem with"), message


TOLD = {
    "hidden": ({"all.csv": csv(), "._all.csv": b"\0\5", ".all.jsonl": lines(8)}, ": not read: ._all.csv, .all.jsonl"),
    "tables further down": ({"all.csv": csv(), "old/a.csv": "x", "old/b.parquet": "x", "old/c.json": "x", "old/d.csv": "x"}, "/old: not read: a.csv, b.parquet, c.json and 1 more"),
    "words about media": ({"all.csv": csv(), "test/0.json": "{}"}, "/test: not read: 0.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOLD)
def test_what_is_not_read_is_told(tmp_path, case):
    files, says = TOLD[case]
    items = read(put(tmp_path, files))
    (note,) = items.notes
    assert note.endswith(says) and len(items) == 8


def test_what_is_no_data_is_passed_over(tmp_path):
    """A run's directory inside the data, facts about a data set, pictures, readmes."""
    files = {"all.csv": csv(), "README.md": "x", "dataset_infos.json": "{}", "0.png": "x", "train/0.png": "x", ".git/test.csv": "x"}
    files |= {"runs/x/config.yaml": "a: 1", "runs/x/gap.jsonl": "{}", "runs/x/observations/test.jsonl": "{}"}
    assert read(put(tmp_path, files)).notes == ()


def test_suffixes_and_names_of_splits_in_capitals_are_read(tmp_path):
    """The clips of test stay test; nothing is dealt out of train for it."""
    items = read(put(tmp_path, {"TRAIN.Jsonl": lines(), "Test.CSV": csv(8), "VALIDATION.JSON": json.dumps(rows(16, 4))}), SplitAssignment())
    assert {i.clip for i in items if i.split == "test"} == {f"p{n}" for n in range(8, 16)}
    assert {i.clip for i in items if i.split == "val"} == {f"p{n}" for n in range(16, 20)} and len(items) == 20


def test_shards_with_marks_of_their_own_are_one_table(tmp_path):
    """The hub marks every shard differently."""
    put(tmp_path, {"data/a-00000-of-00002-00000000aa.csv": csv(), "data/a-00001-of-00002-00000000bb.csv": csv(8)})
    assert list(table_files(tmp_path)) == ["a"] and len(read(tmp_path)) == 16 and SHARD.search("a-1") is None


def test_rows_that_two_tables_share_are_told(tmp_path):
    (note,) = [n for n in read(put(tmp_path, {"a.csv": csv(0, 8), "b.jsonl": lines(6, 8)})).notes if "dealt out" not in n]
    assert note == f"{tmp_path / 'a.csv'} and {tmp_path / 'b.jsonl'}: 2 rows are in both"


def test_parts_of_a_saved_data_set_that_are_not_there(tmp_path):
    """And a table beside it, which nothing would read."""
    import datasets

    datasets.Dataset.from_list(rows(0, 8)).save_to_disk(tmp_path / "Train")
    put(tmp_path, {"dataset_dict.json": json.dumps({"splits": ["train", "test"]})})
    with pytest.raises(ValueError, match=r"dataset_dict.json: names the part 'test', and .*test holds no saved data set; fetch it"):
        read(tmp_path)
    put(tmp_path, {"dataset_dict.json": json.dumps({"splits": ["train"]}), "test.csv": csv(8)})
    with pytest.raises(ValueError, match=r"^1 problem with the set:\n  - .*test.csv: a table beside a data set saved by `datasets`"):
        read(tmp_path)
    (tmp_path / "test.csv").unlink()
    assert len(read(tmp_path)) == 8 and read(tmp_path).notes == ()
