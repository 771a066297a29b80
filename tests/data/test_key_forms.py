"""Keys: one form whatever a table's types are, and what can be none."""

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import numpy as np
import pytest

from gapclose.core.errors import ItemError
from gapclose.data.keys import Spellings, fold, key, text_of

SAME = {
    "3": [3, 3.0, "3", " 3 ", "3.0", "3.00", np.int64(3), np.uint8(3), np.float32(3), np.float64(3), Decimal("3.00"), b"3", "\ufeff3"],
    "0": [0, -0.0, "0", "-0.0", np.int8(0), Decimal(0)],
    "0.1": [0.1, "0.1", np.float64(0.1), Decimal("0.10")],
    "True": [True, "True", np.bool_(True)],
    "2020-01-02": [date(2020, 1, 2), datetime(2020, 1, 2), "2020-01-02", "2020-01-02 00:00:00", np.datetime64("2020-01-02")],
    "2020-01-02T03:04:05": [datetime(2020, 1, 2, 3, 4, 5), "2020-01-02 03:04:05", "2020-01-02T03:04:05", np.datetime64("2020-01-02T03:04:05", "ns")],
    "2020-01-02T03:04:05+00:00": [
        datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC), datetime(2020, 1, 2, 5, 4, 5, tzinfo=timezone(timedelta(hours=2))), "2020-01-02T03:04:05Z",
    ],
    "caf\u00e9": ["caf\u00e9", "cafe\u0301", "caf\u00e9".encode(), "\tcafe\u0301\u200b\n"],
    "a b": ["a b", "a  b", "a\u00a0b", "a\nb"],
    "12345678-1234-5678-1234-567812345678": [UUID("12345678-1234-5678-1234-567812345678")],
    "": [None, float("nan"), np.float32("nan"), np.datetime64("NaT"), Decimal("NaN"), "", " ", "nan", "NaN", "NaT", "None", "<NA>", "null", b""],
}  # fmt: skip


@pytest.mark.parametrize("found", SAME)
def test_equal_names_are_equal_whatever_holds_them(found):
    assert {key(value) for value in SAME[found]} == {found}


def test_values_of_pandas_and_arrow():
    """A column with an empty cell turns whole numbers to floats; nullable types have a missing value that compares to nothing."""
    pandas = pytest.importorskip("pandas")
    assert [key(v) for v in pandas.Series([3, None])] == ["3", ""] == [key(v) for v in pandas.array([3, None], dtype="Int64")]
    assert key(pandas.NaT) == "" and key(pandas.Timestamp("2020-01-02 03:04:05")) == "2020-01-02T03:04:05"


@pytest.mark.parametrize(
    "pair", [("007", "7"), ("p1", "P1"), ("1.5", "1"), ("none", ""), ("a", "b"), (True, 1), ("3.0.0", "3"), ("1e3", "1000")]
)
def test_other_names_stay_others(pair):
    """No more is folded than what programs that write tables change by themselves."""
    assert key(pair[0]) != key(pair[1])


FAULTS = {
    "a list": ([3], "is [3], a list; write one text or number"),
    "an object": ({"a": 1}, "a dict"),
    "bytes of a picture": (b"\xff\xd8", "bytes that are no text in UTF-8"),
    "infinity": (float("inf"), "is inf; write a finite number"),
    "a float that lost digits": (2.0**53, "no longer tells neighbouring whole numbers apart; store the column as whole numbers or texts"),
    "a control character": ("a\x1b[31m", "control characters; remove them"),
    "half of a pair": ("a\udc80", "control characters"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_can_be_no_name(fault):
    value, says = FAULTS[fault]
    with pytest.raises(ItemError) as caught:
        key(value)
    assert says in str(caught.value)


def test_texts_that_are_shown_keep_their_form():
    """A question is no key: only the white space around it goes; a number loses an empty fraction; "None" may be an option."""
    assert text_of(" cafe\u0301  au lait\n") == "cafe\u0301  au lait" and text_of(3.0) == "3" and text_of(2.5) == "2.5"
    assert text_of("None") == fold("None") == "None" and text_of(float("nan")) == ""


def test_spellings_that_fall_together_or_apart_are_told():
    spelled = Spellings()
    for value in ("cafe\u0301", "caf\u00e9", "p1", "P1", "\uff50\uff11", "007", 7, "8"):
        spelled.add("clip", value, key(value))
    assert spelled.taken_for_one() == ["clip: 'cafe\u0301' and 'caf\u00e9' are taken for one, 'caf\u00e9'"]
    assert spelled.taken_for_two() == [
        "clip: 'p1' and 'P1' and '\uff50\uff11' are taken for different ones",
        "clip: '007' and '7' are taken for different ones",
    ]
    assert spelled.lost_zeros("clip") == [("007", "7")] and spelled.lost_zeros("modality") == []
