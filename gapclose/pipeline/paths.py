"""Check, before anything loads, the directories and files that a configuration names."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from gapclose.core.files import nearest
from gapclose.data.config import DataConfig
from gapclose.models.config import ModelConfig
from gapclose.observe.config import ObserveConfig


def missing_places(run_dir: str, data: DataConfig, model: ModelConfig, observe: ObserveConfig) -> Iterator[str]:
    """Yield the fault of each path. The readers of ``data.path`` and ``model.path`` check these."""
    written = {"run_dir": run_dir, "observe.shared": observe.shared, "data.cache": data.cache}
    for key, path in written.items():
        if path is not None and (reason := why_unwritable(Path(path))):
            yield f"{key} is {path!r}, where nothing can be written: {reason}; name another directory"
    if data.columns is not None and not Path(data.columns).is_file():
        yield f"data.columns is {data.columns!r}; no such file"
    if model.architecture is not None and not (Path(model.architecture) / "config.json").is_file():
        yield f"model.architecture is {model.architecture!r}, no directory with a config.json; save one there, or leave the key out"


def why_unwritable(directory: Path) -> str:
    """Return why files cannot be written below a directory, which may not exist yet; else empty.

    No file remains.
    """
    try:
        place = nearest(directory)
        if not place.is_dir():
            return f"{place} is a file"
        with tempfile.TemporaryFile(dir=place):
            return ""
    except OSError as error:
        return error.strerror or str(error)
