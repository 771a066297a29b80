"""The shipped JSON Schemas say of the files of a run what the commands write, no more and no less."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from run_schemas import FOLDER, PLACES, files, misfit, misfits, read

from gapclose.metrics.status import STATES
from gapclose.metrics.verdict import VERDICTS
from gapclose.probes.posterior import STANDING

jsonschema = pytest.importorskip("jsonschema", reason="the schemas are checked with jsonschema (the extra `dev`)")

SCHEMAS = {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("*.json")}


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Every object in a schema."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(child)


def test_the_files_of_a_run_fit(tiny_run):
    """All of them, and there is none without a schema; other tests try what else a run may write."""
    assert misfits(tiny_run) == {}
    assert {name for name, _ in files(tiny_run)} == set(PLACES) - {"auto", "rounds", "verified", "left_out"}


def test_another_key_or_type_does_not_fit(tiny_run):
    """In any object whose keys are fixed, and a key that is not there, a text in place of a number."""
    for name, path in files(tiny_run):
        whole = read(path)[-1]
        assert "'new' was unexpected" in misfit(name, whole | {"new": 1})
        for key, value in whole.items():
            assert misfit(name, whole | {key: [{"new": 1}]}), f"{path}: {key}"
            if key in SCHEMAS[name].get("required", ()):
                assert f"{key!r} is a required property" in misfit(name, {k: v for k, v in whole.items() if k != key})
            if isinstance(value, dict) and "value" in value:
                assert misfit(name, whole | {key: value | {"new": 1}}) and misfit(name, whole | {key: value | {"value": "0.5"}})
    gap = read(tiny_run / "gap.jsonl")[-1]
    for changed in ({"state": "fine"}, {"epoch": -1}, {"stage": "adapted/train"}):
        assert misfit("gap", gap | changed)
    deep = copy.deepcopy(gap)
    deep["modality"]["vision"]["action"]["balanced"]["lower"] = True
    assert "$.modality.vision.action.balanced.lower" in misfit("gap", deep)


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_a_schema_describes_all_that_it_names(name):
    """By itself or where it refers to; objects with named keys allow no others."""
    schema = SCHEMAS[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    for node in nodes(schema):
        if "properties" not in node:
            continue
        assert node["additionalProperties"] is False
        for key, of in node["properties"].items():
            shared = schema["$defs"][of["$ref"].removeprefix("#/$defs/")] if "$ref" in of else {}
            assert of.get("description") or shared.get("description"), key


def test_schemas_share_their_parts_and_the_words_of_the_code():
    assert set(SCHEMAS) == set(PLACES)
    parts = [(key, part) for schema in SCHEMAS.values() for key, part in schema.get("$defs", {}).items()]
    assert all(part == other for key, part in parts for same, other in parts if key == same)
    shared = dict(parts)
    assert SCHEMAS["gap"]["properties"]["state"]["enum"] == SCHEMAS["evidence"]["properties"]["state"]["enum"] == list(STATES)
    assert shared["verdict"]["properties"]["word"]["enum"] == list(VERDICTS)
    assert shared["target"]["properties"]["standing"]["enum"] == list(STANDING)
