"""One input of any kind through the loader that is meant for it."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.check_media import check_media
from tests.fuzz.check_texts import check_configuration, check_set
from tests.fuzz.inputs import Input


def check(given: Input, directory: Path) -> bool:
    """Whether the input, whose files lie in ``directory``, is read; False where it is refused. Raises: whatever escapes the loaders."""
    if given.role in ("set", "films"):
        return check_set(directory, decode=given.role == "set")
    if given.role == "configuration":
        return check_configuration(directory / given.name)
    return check_media(directory, given.role, given.name)
