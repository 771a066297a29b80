"""JSON, YAML and text, read strictly: each fault says what and where, and none is a traceback."""

import pytest

from gapclose.core.errors import ItemError
from gapclose.core.parsing import DEEPEST, parse_json, parse_yaml, read_text

JSON = {
    "not JSON": ('{"a": ', "not JSON (Expecting value: line 1 column 7 (char 6)); correct the syntax"),
    "a key twice": ('{"a": {"id": 1, "id": 2}}', "the key 'id' stands twice in one object"),
    "NaN": ('{"a": NaN}', "holds NaN, which JSON does not know; write null"),
    "infinity": ('{"a": [-Infinity]}', "holds -Infinity"),
    "a number beyond floats": ('{"a": 1e999}', "the number 1e999, which is beyond the range of floats"),
    "a number of 5,000 digits": ('{"a": %s}' % ("9" * 5000), "a whole number of more than 4,300 digits"),
    "deep lists": ("[" * 100_000 + "]" * 100_000, f"nested deeper than {DEEPEST} levels"),
    "lists deep enough to break their repr": ("[" * 900 + "]" * 900, f"nested deeper than {DEEPEST} levels"),
    "deep objects": ('{"a":' * 60 + "1" + "}" * 60, "nested deeper"),
    "half of a pair": (r'{"a": [{"text": "x\ud83d"}]}', r"a[0].text holds half of a surrogate pair ('\ud83d' in 'x\ud83d')"),
    "half of a pair in a key": (r'{"\udc80": 1}', "a key holds half of a surrogate pair"),
    "NUL": (r'{"a b": "x\u0000"}', "'a b' holds a NUL character"),
    "a raw NUL": ('{"a": "\0"}', "not JSON (Invalid control character"),
    "a mark in the middle": ('[1]\ufeff[2]', "not JSON (Extra data"),
}  # fmt: skip


@pytest.mark.parametrize("fault", JSON)
def test_faulty_json(fault):
    text, says = JSON[fault]
    with pytest.raises(ItemError) as caught:
        parse_json(text)
    assert says in str(caught.value) and len(str(caught.value)) < 300


def test_right_json():
    """Whole pairs, escapes, large whole numbers and DEEPEST levels are right."""
    assert parse_json(r'{"a": "\ud83d\ude00", "b": 123456789012345678901234567890, "c": [1.5, null, true]}') == {
        "a": "\U0001f600",
        "b": 123456789012345678901234567890,
        "c": [1.5, None, True],
    }
    assert parse_json("[" * DEEPEST + "]" * DEEPEST)


BOMB = "a: &a [x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghijklmnopqrst", "bcdefghijklmnopqrstu", strict=True)
)
YAML = {
    "no YAML": ("a: [", "line 1: expected the node content"),
    "aliases": (BOMB, "line 2: the alias *a is not followed; write the value out"),
    "an alias of itself": ("a: &a [*a]", "the alias *a"),
    "deep lists": ("[" * 10_000 + "]" * 10_000, f"nested deeper than {DEEPEST} levels"),
    "a key twice": ("a: 1\nb: 2\na: 3", "line 3: the key 'a' stands twice"),
    "an object of Python": ("!!python/object/apply:os.system [ls]", "could not determine a constructor for the tag"),
    "a list as a key": ("? [a]\n: 1", "found unhashable key"),
    "zeros in front": ("a: 007", "line 1: YAML reads 007 as 7; put it in quotes"),
    "eight": ("a: {010: x}", "YAML reads 010 as 8"),
    "minutes": ("a: 1:30", "YAML reads 1:30 as 90"),
    "underscores": ("a: 1_000", "YAML reads 1_000 as 1000"),
    "not a number": ("a: .nan", "YAML reads .nan as nan"),
    "a number of 5,000 digits": (f"a: {'9' * 5000}", "put it in quotes"),
    "a day that is none": ("a: 2020-02-31", "day is out of range"),
    "half of a pair": (r'a: "\ud800"', "a holds half of a surrogate pair"),
    "half of a pair below a day": (r'2020-01-01: {b: "\ud800"}', "half of a surrogate pair"),
    "NUL": ("a: \0", "special characters are not allowed"),
    "a tag that does not fit": ("a: !!bool x", "a value does not fit its tag ('x'); put it in quotes"),
    "a day with a tag": ("a: !!timestamp x", "does not fit its tag"),
    "two documents": ("a: 1\n---\na: 2", "line 2: but found another document"),
}  # fmt: skip


@pytest.mark.parametrize("fault", YAML)
def test_faulty_yaml(fault):
    text, says = YAML[fault]
    with pytest.raises(ItemError) as caught:
        parse_yaml(text)
    assert says in str(caught.value) and len(str(caught.value)) < 300


def test_settings_are_numbers_in_any_form():
    assert parse_yaml("{a: .inf, b: 1_000, c: 1.0e-3}", settings=True) == {"a": float("inf"), "b": 1000, "c": 0.001}


def test_right_yaml():
    assert parse_yaml('{a: "007", b: [1, 1.0, 2.5, x, true], c: {0: d}}') == {"a": "007", "b": [1, 1.0, 2.5, "x", True], "c": {0: "d"}}


def test_aliases_are_followed_where_few_are_allowed():
    assert parse_yaml("a: &a [1]\nb: *a\nc: *a", aliases=2) == {"a": [1], "b": [1], "c": [1]}
    for text in ("a: &a [1]\nb: *a\nc: *a\nd: *a", "a: &a {b: [*a]}"):
        with pytest.raises(ItemError, match="the alias .a is not followed"):
            parse_yaml(text, aliases=2)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a\nb\u00f6".encode("latin-1"), "not UTF-8 (byte 0xf6, line 2)"),
        ("a".encode("utf-16"), "not UTF-8 (it is UTF-16, line 1)"),
    ],
)
def test_other_encodings_are_told_with_the_line(tmp_path, content, says):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ItemError) as caught:
        read_text(tmp_path / "a")
    assert says in str(caught.value)
    (tmp_path / "a").write_bytes("b".encode("utf-8-sig"))
    assert read_text(tmp_path / "a") == "b"
