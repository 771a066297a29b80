"""Damage to a file, drawn by a random generator: bits, runs, lengths, numbers, chunks, whole halves of other files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from tests.fuzz.chunks import chunk_places, repaired

EXTREMES = (
    *(0, 1, 2, 3, 7, 0x7F, 0x80, 0xFF, 0x100, 13_000, 44_100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 1_000_000, 0xFFFFFF, 0x7FFFFFFF, 0x80000000),
    *(0xFFFFFFFE, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF),
)
"""what a number in a header is set to, cut to its width"""
HEADER = 160
"""bytes at the start of a file that are damaged as often as all the rest"""
DIGITS = re.compile(rb"\d+")


def damaged(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """``content`` after one to four damages; ``others`` are files to splice with."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        content = rng.choice(DAMAGES)(rng, content, others)
    return repaired(content) if rng.random() < 0.5 else content


def _place(rng: Random, content: bytes) -> int:
    """Somewhere in the file, half of the time in its header."""
    return rng.randrange(max(1, min(HEADER, len(content)) if rng.random() < 0.5 else len(content)))


def _flip_bits(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16)) if content else 0):
        changed[_place(rng, content)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite_run(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    place, length = _place(rng, content), rng.choice((1, 2, 4, 8, 16, 64, 256, 1024))
    length = min(length, len(content) - place)
    return content[:place] + rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length))) + content[place + length :]


def _cut(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    return content[: rng.choice((_place(rng, content), max(0, len(content) - rng.randrange(1, 64))))]


def _splice(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    return content[: _place(rng, content)] + other[_place(rng, other) :]


def _set_number(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """One to eight bytes, in either order, set to an extreme, or near to it."""
    width = rng.choice((1, 2, 2, 4, 4, 4, 8))
    place = _place(rng, content)
    place -= place % rng.choice((1, 2, 4))
    value = (rng.choice(EXTREMES) + rng.choice((-1, 0, 0, 0, 1))) % (1 << (8 * width))
    number = value.to_bytes(width, rng.choice(("little", "big"))) * rng.choice((1, 1, 1, 2))  # twice: a width and a height
    return content[:place] + number + content[place + len(number) :]


def _set_digits(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A number that is written as text, in the header of a PPM or an XPM, set to an extreme."""
    found = list(DIGITS.finditer(content, 0, 512))
    if not found:
        return _set_number(rng, content, others)
    match = rng.choice(found)
    return content[: match.start()] + str(rng.choice(EXTREMES)).encode() + content[match.end() :]


def _repeat_chunk(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    start, end = _chunk(rng, content)
    return content[:end] + content[start:end] * rng.choice((1, 1, 2, 20)) + content[end:]


def _drop_chunk(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    start, end = _chunk(rng, content)
    return content[:start] + content[end:]


def _swap_chunks(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    (a, b), (c, d) = sorted((_chunk(rng, content), _chunk(rng, content)))
    if c < b:
        return _drop_chunk(rng, content, others)
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def _chunk(rng: Random, content: bytes) -> tuple[int, int]:
    """Start and end of a chunk, where the format is known, or of a random stretch."""
    places = chunk_places(content)
    if len(places) > 2 and rng.random() < 0.9:
        number = rng.randrange(len(places) - 1)
        return places[number], places[number + 1]
    start = _place(rng, content)
    return start, min(len(content), start + rng.choice((1, 4, 12, 64, 512)))


def _insert(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    place = rng.choice((0, _place(rng, content), len(content)))
    return content[:place] + rng.randbytes(rng.choice((1, 2, 4, 16, 300))) + content[place:]


DAMAGES = (
    _flip_bits,
    _flip_bits,
    _overwrite_run,
    _overwrite_run,
    _cut,
    _splice,
    _set_number,
    _set_number,
    _set_number,
    _set_digits,
    _repeat_chunk,
    _drop_chunk,
    _swap_chunks,
    _insert,
)
