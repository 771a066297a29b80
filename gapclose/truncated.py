"""What a sound file's own headers promise and the file does not hold.

Decoders read what is there and say nothing, so a half-copied recording would pass as a short one.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

OGG_END = 4
"""flag of the page that ends a stream"""


def promised_beyond(path: Path) -> str | None:
    """What is lacking of a wav (RIFF, RF64, Wave64), aiff, au or ogg file, in words; None where nothing is, and for other formats."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        head = handle.read(40)
        if size < 40:
            return None
        missing = _stated(head, handle, size) - size
        if missing > 0:
            return f"its header promises {missing} bytes more than the file holds"
        if head[:4] == b"OggS" and not _ogg_ends(handle, size):
            return "no page ends its stream"
    return None


def _stated(head: bytes, handle: BinaryIO, size: int) -> int:
    """Bytes that a file should have by its header; 0 where none says."""
    if head[:4] == b"RIFF":
        return _riff_end(handle, size)
    if head[:4] == b"RF64" and head[12:16] == b"ds64":
        return 8 + struct.unpack("<Q", head[20:28])[0]
    if head[:4] == b"riff":  # Wave64: a name of 16 bytes, then the size of the whole file
        return struct.unpack("<Q", head[16:24])[0]
    if head[:4] == b"FORM":
        return 8 + struct.unpack(">I", head[4:8])[0]
    if head[:4] == b".snd":
        start, length = struct.unpack(">II", head[4:12])
        return start + length if length != 0xFFFFFFFF else 0
    return 0


def _riff_end(handle: BinaryIO, size: int) -> int:
    """Where the samples end by the headers of the chunks; what follows them says nothing."""
    position = 12
    while position + 8 <= size:
        handle.seek(position)
        name, length = struct.unpack("<4sI", handle.read(8))
        if name == b"data":
            return position + 8 + length if length != 0xFFFFFFFF else 0
        position += 8 + length + (length & 1)
    return position


def _ogg_ends(handle: BinaryIO, size: int, longest_page: int = 65_307) -> bool:
    """Whether the last page of an Ogg file says that it is the last one."""
    handle.seek(max(0, size - 2 * longest_page))
    tail = handle.read()
    place = tail.rfind(b"OggS")
    return 0 <= place < len(tail) - 5 and bool(tail[place + 5] & OGG_END)
