"""Twins: found where the data do not name them, and told of where they name them wrongly."""

import json

import pytest

from gapclose.core.errors import ErrorCollector
from gapclose.data.formats import read_set
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.data.splits import SplitAssignment
from gapclose.data.twins import check_twins, check_twins_differ, find_twins
from gapclose.pipeline.cli import main

pytestmark = pytest.mark.usefixtures("no_outline")


def item(ident: str, text: str, gold: int | None, *, clip: str = "c", media: str = "c.png", twin: str | None = None, **more) -> Item:
    content = [{"type": "image", "path": media}, {"type": "text", "text": text}]
    options = [Option(text="odd", concept="standard"), Option(text="wrong", concept="false")]
    plain = {"split": "fit", "modality": "vision", "messages": [{"role": "user", "content": content}], "options": options}
    return Item(id=ident, clip=clip, gold=gold, tags={"twin": twin} if twin else {}, **plain | more)


def test_questions_that_differ_in_a_detail_find_each_other():
    """Same clip, media and modality, another right concept, nearly the same words: the nearest each, and no others."""
    items = [
        item("a", "The man in the red coat lifts the box. Why?", 0),
        item("b", "The man in the blue coat lifts the box. Why?", 1),
        item("far", "Does anybody sing?", 1),
        item("same", "The man in the red coat lifts the box. Where?", 0),
        item("other media", "The man in the green coat lifts the box. Why?", 1, media="d.png"),
        item("other modality", "The man in the grey coat lifts the box. Why?", 1, modality="audio"),
        item("no label", "The man in the black coat lifts the box. Why?", None),
    ]
    assert {i.id: i.tags["twin"] for i in find_twins(items) if i.tags} == {"a": "b", "b": "a"}
    assert not any(i.tags for i in find_twins([item("a", "Odd?", 0), item("b", "Odd?", 1)]))  # the same question, answered both ways


def test_twins_of_a_table_are_found_unless_it_names_them(tmp_path):
    """A column of twins is taken at its word, empty cells included."""
    rows = [
        {"clip": f"c{n}", "text": f"The {c} car stops. Why?", "label": g} for n in range(4) for c, g in (("red", "odd"), ("blue", "wrong"))
    ]
    columns = {
        "concepts": ["standard", "false"],
        "alarm": ["false"],
        "modality": "vision",
        "options": {"odd": "standard", "wrong": "false"},
    }

    def read(columns: dict, rows: list[dict]) -> ItemSet:
        (tmp_path / "columns.yaml").write_text(json.dumps(columns))
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        problems = ErrorCollector("the set")
        items = read_set(tmp_path, problems, SplitAssignment(shares=(1, 0, 0, 0)))
        check_twins(items, problems)
        problems.raise_if_any()
        return items

    named = columns | {"columns": {"clip": "clip", "question": "text", "gold": "label"}}
    assert [i.tags["twin"] for i in read(named, rows)] == [f"rows/{n + 1 - 2 * (n % 2) + 1}" for n in range(8)]
    told = named | {"columns": named["columns"] | {"id": "name", "twin": "pair"}}
    pairs = [r | {"name": str(n), "pair": {0: "1", 1: "0"}.get(n)} for n, r in enumerate(rows)]
    assert {i.id: i.tags.get("twin") for i in read(told, pairs)} == {"0": "1", "1": "0"} | {str(n): None for n in range(2, 8)}
    with pytest.raises(ValueError, match="item '1': its twin '7' is about another clip, 'c3'"):
        read(told, [*pairs[:1], pairs[1] | {"pair": "7"}, *pairs[2:]])


def test_what_is_wrong_with_twins_is_told(tmp_path, tiny_checkpoint, capsys):
    """Through the command: each with item, value and remedy."""
    import test_bad_inputs as bad

    rows = bad.whole_set(tmp_path)
    rows[0]["tags"], rows[1]["tags"] = {"twin": "nobody"}, {"twin": rows[2]["id"]}
    rows[2]["clip"] = rows[3]["clip"] = "pair"
    rows[2]["tags"] = {"twin": rows[3]["id"]}
    bad.test_items.put(tmp_path, *rows)
    message = bad.refused(capsys, "--data.path", tmp_path, "--model.path", tiny_checkpoint, "--train.retain", 0, "--probe.folds", 2)
    for part in (
        "item 'fit-0-odd': its twin 'nobody' is no item of the set; twins are two items of one clip, each named by the other",
        "item 'fit-0-unseen': its twin 'fit-1-odd' is about another clip, 'pair'",
        "item 'fit-1-odd': its twin 'fit-1-unseen' names None as its own",
    ):
        assert part in message, message
    for row in rows[:3]:
        row["tags"] = {}
    rows[2]["tags"], rows[3]["tags"] = {"twin": rows[3]["id"]}, {"twin": rows[2]["id"]}
    bad.test_items.put(tmp_path, *rows)
    arguments = ["validate", "--data.path", tmp_path, "--model.path", tiny_checkpoint, "--train.retain", 0, "--probe.folds", 2]
    assert main([*map(str, arguments)]) == 0


def test_targets_of_twins_want_twins_that_differ():
    """Every pair of labelled twins with one right concept is named once; train and val have twins for all their items; unlabelled ones pass."""
    options = [{"text": "red", "concept": "standard"}, {"text": "wrong", "concept": "false"}]

    def row(name: str, split: str, twin: str | None, gold: str | None) -> dict:
        asked = {"id": name, "clip": name.split("-")[0], "split": split, "modality": "text", "options": options}
        asked["messages"] = [{"role": "user", "content": f"Is {name} red?"}]
        return asked | ({"gold": gold} if gold else {}) | ({"tags": {"twin": twin}} if twin else {})

    def told(rows: list[dict]) -> list[str]:
        problems = ErrorCollector("the set")
        check_twins_differ(ItemSet.from_list(rows, concepts=["standard", "false"], alarm=["false"]), problems)
        try:
            problems.raise_if_any()
        except ValueError as error:
            return [line.strip() for line in str(error).splitlines()[1:]]
        return []

    train, val = (
        [row(f"{s[0]}-a", s, f"{s[0]}-b", gold), row(f"{s[0]}-b", s, f"{s[0]}-a", other)]
        for s, gold, other in (("train", None, None), ("val", "red", "wrong"))
    )
    fit = [row("f-a", "fit", "f-b", "red"), row("f-b", "fit", "f-a", "wrong")]
    assert told([*train, *val, *fit]) == told([*train, *val, row("f-a", "fit", None, "red")]) == []
    (fault,) = told([*train, *val, fit[0], fit[1] | {"gold": "red"}])
    assert "item 'f-a' and its twin 'f-b' have one right concept, 'standard'" in fault
    faults = told([*train, row("t-c", "train", None, None), row("v-a", "val", None, "red")])
    assert ["1 of 3 gap items of split 'train' have no twin" in faults[0], "1 of 1 gap items of split 'val'" in faults[1]] == [True, True]
