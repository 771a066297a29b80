"""What is said of several problems at once."""

import pytest

from gapclose.core.errors import ErrorCollector, shortened


def test_a_long_message_keeps_place_and_remedy():
    message = f"items.jsonl:3: item {'x' * 100_000}; give it a name"
    said = shortened(message)
    assert len(said) < 1_600 and said.startswith("items.jsonl:3: item xxx") and said.endswith("xxx; give it a name")
    assert "characters more" in said and shortened("short") == "short"
    problems = ErrorCollector("the items")
    problems.add(message)
    with pytest.raises(ValueError, match="give it a name") as caught:
        problems.raise_if_any()
    assert len(str(caught.value)) < 1_700
