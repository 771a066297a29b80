"""The shipped JSON schemas say of an item and of a header what the reader says, but for what takes more than one line to see."""

import json
from pathlib import Path

import pytest
import test_items

import gapclose
from gapclose.data.items import CONTENT_TYPES, PURPOSES, SPLITS, Item

jsonschema = pytest.importorskip("jsonschema", reason="the schemas are checked with jsonschema (the extra `dev`)")

SCHEMAS = {name: json.loads((Path(gapclose.__file__).parent / "data" / "schemas" / f"{name}.json").read_text()) for name in ("item", "set")}
BEYOND = {
    "a modality of control characters",
    "undeclared concept",
    "gold not among the options",
    "the same option twice",
    "an option and its padded twin",
}
"""faults of an item that a schema cannot see"""


def valid(name: str, value) -> bool:
    return jsonschema.Draft202012Validator(SCHEMAS[name]).is_valid(value)


def test_the_embedded_world_fits(digits_directory):
    """Every line, and the header."""
    assert valid("set", json.loads((digits_directory / "set.json").read_text()))
    assert all(valid("item", json.loads(line)) for line in (digits_directory / "items.jsonl").read_text().splitlines())
    film = [{"type": kind, "path": "a.mp4"} for kind in ("video", "audio")]
    assert valid("item", test_items.row("a", messages=[{"role": "user", "content": film}], gold=None))


@pytest.mark.parametrize("fault", test_items.ITEM_FAULTS)
def test_what_the_reader_refuses_does_not_fit(fault):
    assert valid("item", test_items.row("b", **test_items.ITEM_FAULTS[fault][0])) == (fault in BEYOND)


@pytest.mark.parametrize("fault", [f for f, (header, _) in test_items.HEADER_FAULTS.items() if not isinstance(header, str)])
def test_a_header_that_the_reader_refuses_does_not_fit(fault):
    assert valid("set", test_items.HEADER_FAULTS[fault][0]) == (fault in ("foreign alarm", "alarms only"))


def test_names_are_those_of_the_code():
    """Keys, splits, purposes and kinds of media."""
    keys = SCHEMAS["item"]["properties"]
    assert set(keys) == set(Item.__dataclass_fields__)
    assert (keys["split"]["enum"], keys["purpose"]["enum"]) == (list(SPLITS), list(PURPOSES))
    text, media = SCHEMAS["item"]["$defs"]["part"]["oneOf"]
    assert [text["properties"]["type"]["const"], *media["properties"]["type"]["enum"]] == list(CONTENT_TYPES)
