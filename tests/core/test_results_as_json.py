"""Results become JSON in the order of their fields."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from gapclose.core.results import Result
from gapclose.metrics.bootstrap import Interval


class Pair(NamedTuple):
    first: int
    second: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole(Result):
    of: Mapping[str, Interval]
    pair: Pair
    rows: tuple[tuple[int, ...], ...]
    absent: None = None


def test_a_result_is_plain_json():
    """Results within, named tuples and tuples; what is not defined is null, and comes back as nan."""
    whole = Whole(of={"all": Interval(0.5, float("nan"), float("nan"))}, pair=Pair(1, 2), rows=((1,), ()))
    found = json.loads(json.dumps(whole.to_dict(), allow_nan=False))
    interval = {"value": 0.5, "lower": None, "upper": None}
    assert list(found.items()) == [("of", {"all": interval}), ("pair", {"first": 1, "second": 2}), ("rows", [[1], []]), ("absent", None)]
    assert Interval.from_dict(interval).to_dict() == interval
