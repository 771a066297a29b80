"""Item sets made of rows in memory."""

import pytest

from gapclose import ItemSet, load_items

CONCEPTS = ("standard", "false")


def row(number: int, **more) -> dict:
    options = [{"text": "cat", "concept": "standard"}, {"text": "none", "concept": "false"}]
    question = {"role": "user", "content": [{"type": "text", "text": "Which animal?"}]}
    plain = {
        "id": f"q{number}",
        "clip": f"c{number // 2}",
        "split": "fit",
        "modality": "vision",
        "messages": [question],
        "options": options,
    }
    return plain | {"gold": "cat"} | more


def test_rows_become_items():
    items = ItemSet.from_list([row(0), row(1, gold="none")], concepts=CONCEPTS, alarm=["false"], name="animals")
    assert [i.concept for i in items] == ["standard", "false"] and items.alarm == ("false",) and items.name == "animals"


def test_a_dataset_is_read_by_a_function_of_its_rows():
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list([{"n": 0, "answer": "cat"}, {"n": 1, "answer": "none"}])
    items = ItemSet.from_dataset(table, lambda r: row(r["n"], gold=r["answer"]), concepts=CONCEPTS, alarm=["false"])
    assert [i.gold for i in items] == [0, 1]


def test_everything_that_is_wrong_is_told_at_once():
    rows = [row(0), row(0), row(3, clip="c0", split="test"), row(4, gold="dog"), row(5, options=[])]
    with pytest.raises(ValueError) as caught:
        ItemSet.from_list(rows, concepts=CONCEPTS)
    told = str(caught.value)
    for words in (
        "row 1: item id 'q0' was used before",
        "row 2: clip 'c0' is in split 'fit' as well",
        "row 3: item 'q4'",
        "row 4: item 'q5'",
    ):
        assert words in told


def test_what_json_does_not_have_is_named():
    with pytest.raises(ValueError, match="row 0: holds a object; save media as files"):
        ItemSet.from_list([row(0, tags={"x": object()})], concepts=CONCEPTS)


@pytest.mark.parametrize(("concepts", "alarm"), [(("a",), ()), (("a", "a"), ()), (("a", "b"), ("c",)), (("a", "b"), ("a", "b"))])
def test_concepts_must_be_told_apart(concepts, alarm):
    with pytest.raises(ValueError, match="two or more distinct names"):
        ItemSet.from_list([row(0)], concepts=concepts, alarm=alarm)
    with pytest.raises(ValueError, match="there are no rows"):
        ItemSet.from_list([], concepts=CONCEPTS)


def test_a_directory_is_loaded_and_checked(digits_directory, digits, tmp_path):
    assert load_items(digits_directory).items == digits.items
    with pytest.raises(ValueError, match="nothing in it that can be read"):
        load_items(tmp_path)
