"""Digests of files; each file is read once."""

from __future__ import annotations

import hashlib
from pathlib import Path

_digests: dict[tuple[str, int, int], bytes] = {}
"""(path, size, modification time) of a file -> digest of its content"""


def content_digest(path: Path) -> bytes:
    """Return the SHA-256 of a file's content.

    Each process reads a file once, and again only if its size or modification time changes.
    """
    facts = path.stat()
    key = (str(path.resolve()), facts.st_size, facts.st_mtime_ns)
    if key not in _digests:
        with path.open("rb") as handle:
            _digests[key] = hashlib.file_digest(handle, "sha256").digest()
    return _digests[key]
