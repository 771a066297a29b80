"""Compare the length that the headers of a sound file state with the file.

Decoders trust headers. So a partly copied recording passes as a short one, and a complete one is
lost if its recorder could not fill in the length. This module distinguishes the two. If the samples
are there, it corrects the size fields for the decoder.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gapclose.core.errors import ItemError

ROUNDING = 0.01
"""share of the stated bytes by which a header may be off, which is inaudible; at least 64 bytes if
the file is shorter, and :data:`TRAILER` bytes if it is longer"""
TRAILER = 1024
"""bytes after the samples, outside of chunks, that count as a note (ID3, text) rather than sound"""
NEAR = 1 << 17
"""distance from 2 or 4 GiB within which a length means *unknown*: SoX writes 0x7FFFF000 to a pipe,
arecord 0x7FFFFFFF or 0x80000000 less the header, FFmpeg 0xFFFFFFFF"""
OGG_PAGE = struct.Struct("<4sBBqIIIB")
OGG_BEGINS = 2
"""flag of the first page of a stream"""


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """How a format lays out its chunks."""

    first: int
    """position of the first chunk"""
    size: str
    """:mod:`struct` format of a chunk's length, which follows its name"""
    samples: bytes
    """name of the chunk with the samples; all names have this length"""
    included: int = 0
    """bytes of name and length that the length includes"""
    align: int = 1
    skipped: int = 0
    """bytes in the chunk of samples before the first sample"""
    whole: int | None = 4
    """position of the file's length, in the same format; it counts the following bytes, but all
    bytes in Wave64; None: no such field"""


RIFF = Chunks(first=12, size="<I", samples=b"data", align=2)
FORMATS = {
    b"RIFF": RIFF,
    b"RF64": RIFF,
    b"RIFX": Chunks(first=12, size=">I", samples=b"data", align=2),
    b"FORM": Chunks(first=12, size=">I", samples=b"SSND", align=2, skipped=8),
    b"caff": Chunks(first=8, size=">q", samples=b"data", skipped=4, whole=None),
    b"riff": Chunks(first=40, size="<Q", samples=b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a", included=24, align=8, whole=16),
}
"""first bytes of a file -> its chunks"""


class Corrected(io.FileIO):
    """A file for reading, with other bytes at some positions."""

    def __init__(self, path: Path, fields: Mapping[int, bytes]) -> None:
        super().__init__(path)
        self.fields = fields

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        # damaged headers point before the start; libsndfile would print the error and continue
        except OSError:
            return self.tell()

    def readinto(self, buffer) -> int:
        at, count = self.tell(), super().readinto(buffer) or 0
        for place, new in self.fields.items():
            for n in range(max(0, place - at), min(count, place - at + len(new))):
                buffer[n : n + 1] = new[n + at - place : n + at - place + 1]
        return count


def decoder(path: Path) -> str:
    """Return the decoder of a sound file, by its first bytes.

    ``compressed`` is for mp3, flac, bare AAC and ogg with several consecutive streams,
    ``container`` for mp4 and mkv, ``libsndfile`` for all others.

    Raises:
        ItemError: when an ogg file ends within a page.
    """
    with path.open("rb") as handle:
        head = handle.read(12)
    synchronised = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0
    if head[:4] == b"fLaC" or head[:3] == b"ID3" or synchronised or (head[:4] == b"OggS" and _is_chained(path)):
        return "compressed"
    return "container" if head[4:8] == b"ftyp" or head[:4] == b"\x1aE\xdf\xa3" else "libsndfile"


def states_mp3_length(path: Path) -> bool:
    """Whether the first frame of an mp3 file states the number of frames (Xing, Info, VBRI)."""
    with path.open("rb") as handle:
        head = handle.read(10)
        start = 10 + sum((byte & 127) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)) if head[:3] == b"ID3" else 0
        handle.seek(start)
        frame = handle.read(4096)
    return any(name in frame for name in (b"Xing", b"Info", b"VBRI"))


def size_fields(path: Path) -> dict[int, bytes]:
    """Return position -> bytes of the size fields with which a decoder reads all samples.

    The formats are wav (RIFF, RF64, Wave64), aiff, au and CAF. The result is empty if the file's
    own fields are right, and for other formats.

    Raises:
        ItemError: when the headers agree on more samples than the file holds, also for NIST SPHERE.
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        head = handle.read(48)
        if head[:4] == b".snd" and size >= 24:
            start, stated = struct.unpack(">II", head[4:12])
            unknown = stated == 0 or (start + stated > size and _stands_for_unknown(stated))
            held = _held(start, stated, size, unknown=unknown, whole=False, followed=False)
            return {8: struct.pack(">I", held)} if held != stated and start < size and held < 1 << 32 else {}
        if head[:7] == b"NIST_1A":
            start, stated = _sphere(handle)
            _held(start, stated, size, unknown=stated == 0, whole=False, followed=True)
        if head[:4] not in FORMATS or size < 40:
            return {}
        return _chunked(handle, head, size, FORMATS[head[:4]])


def _chunked(handle: BinaryIO, head: bytes, size: int, form: Chunks) -> dict[int, bytes]:
    place = _find(handle, form, size)
    if place is None:
        return {}
    name, width, limit = len(form.samples), struct.calcsize(form.size), 1 << 8 * struct.calcsize(form.size)
    handle.seek(place + name)
    (length,) = struct.unpack(form.size, handle.read(width))
    large = head[:4] == b"RF64" and head[12:16] == b"ds64"
    if large and length == 0xFFFFFFFF:
        (length,) = struct.unpack("<Q", head[28:36])
        limit = 1 << 64
    begin, start = place + name + width, place + name + width + form.skipped
    counted = form.included + form.skipped
    stated = length - counted
    unknown = length <= form.included or length == limit - 1 or (start + stated > size and _stands_for_unknown(length))
    followed = _chunks_follow(handle, form, begin + max(0, length - form.included), size)
    if form.whole is not None and not large:
        (whole,) = struct.unpack_from(form.size, head, form.whole)
        complete = abs(whole + (0 if form.included else form.whole + width) - size) <= 1
    else:
        complete = large and abs(struct.unpack("<Q", head[20:28])[0] + 8 - size) <= 1
    if unknown and followed and length == form.included:
        return {}  # no samples, but a note
    held = _held(start, stated, size, unknown=unknown, whole=complete, followed=followed)
    if held == stated or held <= 0:
        return {}
    if large:
        return {20: struct.pack("<Q", size - 8), 28: struct.pack("<Q", held), 36: bytes(8)}
    fields = {place + name: struct.pack(form.size, min(held + counted, limit // 2 - 1))}
    if form.whole is not None:
        fields[form.whole] = struct.pack(form.size, min(size - (0 if form.included else form.whole + width), limit // 2 - 1))
    return fields


def _sphere(handle: BinaryIO) -> tuple[int, int]:
    """Return where the samples of a NIST SPHERE file begin, and their stated bytes.

    The bytes are 0 if the samples are compressed, or the header does not state them.
    """
    handle.seek(0)
    lines = handle.read(1024).decode("latin-1").split("\n")
    facts = {name: value for name, _, value in (line.split(" ", 2) for line in lines if line.count(" ") > 1)}
    numbers = [facts.get(name, "") for name in ("sample_count", "sample_n_bytes", "channel_count")]
    plain = facts.get("sample_coding", "pcm") in ("pcm", "ulaw", "alaw", "mu-law") and all(n.isdecimal() for n in numbers)
    start = lines[1].strip() if len(lines) > 1 else ""
    return int(start) if start.isdecimal() else 0, math.prod(map(int, numbers)) if plain else 0


def _stands_for_unknown(length: int) -> bool:
    return any(abs(length - top) < NEAR for top in (1 << 31, 1 << 32))


def _held(start: int, stated: int, size: int, *, unknown: bool, whole: bool, followed: bool) -> int:
    """Return the bytes of samples that the file holds.

    Args:
        unknown: the header does not state them. whole: it states the length of the file correctly.
            followed: chunks follow the stated samples.

    Raises:
        ItemError: when they are fewer than stated, and nothing shows that the header is wrong.
    """
    there = size - start
    if unknown:
        return there
    missing, beyond = stated - there, there - stated
    if missing > 0:
        if not whole and missing > max(ROUNDING * stated, 64):
            raise ItemError(
                f"the audio is truncated, or its header is wrong: it promises {missing} bytes more than the file holds; copy it again, or, "
                "where it is whole, write its header anew"
            )
        return there
    return there if not followed and beyond > max(ROUNDING * stated, TRAILER) else stated


def _find(handle: BinaryIO, form: Chunks, size: int) -> int | None:
    """Return the position of the chunk with the samples, or None."""
    position, name, width = form.first, len(form.samples), struct.calcsize(form.size)
    while 0 < position <= size - name - width:
        handle.seek(position)
        header = handle.read(name + width)
        if header[:name] == form.samples:
            return position
        position = _behind(position, struct.unpack(form.size, header[name:])[0], form)
    return None


def _behind(position: int, length: int, form: Chunks) -> int:
    """Return the position of the next chunk."""
    end = position + len(form.samples) + struct.calcsize(form.size) + max(0, length - form.included)
    return end + -end % form.align


def _chunks_follow(handle: BinaryIO, form: Chunks, end: int, size: int) -> bool:
    """Whether at least one chunk follows ``end``, and chunks with printable names fill the file."""
    name, width, found = len(form.samples), struct.calcsize(form.size), 0
    position = end + -end % form.align
    while position <= size - name - width:
        handle.seek(position)
        header = handle.read(name + width)
        if not all(32 <= byte < 127 for byte in header[:4]):
            return False
        position, found = _behind(position, struct.unpack(form.size, header[name:])[0], form), found + 1
    return found > 0 and abs(position - size) <= form.align


def _is_chained(path: Path) -> bool:
    """Whether one stream of an Ogg file begins after another (live recordings).

    A last page that is complete but not marked as the last is accepted: the file was closed
    abruptly.

    Raises:
        ItemError: when the file ends within a page.
    """
    size, position, begun, chained = path.stat().st_size, 0, False, False
    with path.open("rb") as handle:
        while position < size:
            handle.seek(position)
            header = handle.read(OGG_PAGE.size)
            if header[:4] != b"OggS":
                break  # a note after the pages
            lengths = handle.read(header[-1]) if len(header) == OGG_PAGE.size else b""
            position += OGG_PAGE.size + len(lengths) + sum(lengths)
            if len(header) < OGG_PAGE.size or len(lengths) < header[-1] or position > size:
                raise ItemError("the audio is truncated: it ends within a page of its stream; copy it again")
            begins = bool(header[5] & OGG_BEGINS)
            chained, begun = chained or (begins and begun), begun or not begins
    return chained
