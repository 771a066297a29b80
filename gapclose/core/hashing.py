"""Digests of files, read once per file."""

from __future__ import annotations

import hashlib
from pathlib import Path

_digests: dict[tuple[str, int, int], bytes] = {}
"""path, size and time of the last change of a file -> digest of its content"""


def content_digest(path: Path) -> bytes:
    """SHA-256 of a file's whole content, read once a process for as long as size and time of change stay."""
    facts = path.stat()
    key = (str(path.resolve()), facts.st_size, facts.st_mtime_ns)
    if key not in _digests:
        with path.open("rb") as handle:
            _digests[key] = hashlib.file_digest(handle, "sha256").digest()
    return _digests[key]
