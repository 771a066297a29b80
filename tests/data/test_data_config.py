"""Settings of the data that no comparison lets through: a number that is none compares to nothing."""

import pytest

from gapclose.data.config import DataConfig


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"shares": [float("nan"), 0.5, 0, 0.5]}, "data.shares is"),
        ({"shares": [0.5, 0, 0, float("nan")]}, "data.shares is"),
        ({"shares": [float("inf"), 0, 0, 0]}, "data.shares is .*it must be finite"),
        ({"cache_gb": float("nan")}, "data.cache_gb is nan; it must be finite"),
        ({"degraded": float("nan")}, "data.degraded is nan; it must be finite"),
    ],
)
def test_numbers_that_are_none(settings, says):
    with pytest.raises(ValueError, match=says):
        DataConfig(**settings)
