"""The places that a configuration names: directories that a start writes to, and files that it reads, looked at before anything loads."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gapclose.files import nearest

if TYPE_CHECKING:
    from gapclose.config import Config


def missing_places(config: Config) -> Iterator[str]:
    """What is wrong with each of them. Data and model are not looked at: what reads them says more."""
    written = {"run_dir": config.run_dir, "observe.shared": config.observe.shared, "data.cache": config.data.cache}
    for key, path in written.items():
        if path is not None and (reason := why_unwritable(Path(path))):
            yield f"{key} is {path!r}, where nothing can be written: {reason}; name another directory"
    if config.data.columns is not None and not Path(config.data.columns).is_file():
        yield f"data.columns is {config.data.columns!r}; no such file"
    if config.model.architecture is not None and not (Path(config.model.architecture) / "config.json").is_file():
        yield f"model.architecture is {config.model.architecture!r}, no directory with a config.json; save one there, or leave the key out"


def why_unwritable(directory: Path) -> str:
    """Why files cannot be written below a directory, which need not be there; empty where they can. Leaves nothing behind."""
    try:
        place = nearest(directory)
        if not place.is_dir():
            return f"{place} is a file"
        with tempfile.TemporaryFile(dir=place):
            return ""
    except OSError as error:
        return error.strerror or str(error)
