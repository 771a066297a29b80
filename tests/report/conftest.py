"""Tests of the report have its figures drawn."""

from collections.abc import Iterator

import pytest
from sketches import drawn


@pytest.fixture(autouse=True)
def _figures_are_drawn() -> Iterator[None]:
    with drawn():
        yield
