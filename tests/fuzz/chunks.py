"""Where the chunks of a file begin, and the checksums that must fit for a decoder to look further."""

from __future__ import annotations

import struct
import zlib

POLYNOMIAL = 0x04C11DB7
"""of the checksum of an Ogg page (RFC 3533)"""


def _ogg_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (POLYNOMIAL if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


TABLE = _ogg_table()


def ogg_pages(content: bytes) -> list[bytes]:
    """The pages of an Ogg file, by the sizes in their headers; bytes before the first are lost."""
    pages, place = [], content.find(b"OggS")
    while 0 <= place < len(content) - 27:
        sizes = content[place + 27 : place + 27 + content[place + 26]]
        end = place + 27 + len(sizes) + sum(sizes)
        pages.append(content[place:end])
        place = content.find(b"OggS", max(end, place + 4))
    return pages


def with_checksum(page: bytes) -> bytes:
    """An Ogg page whose checksum fits."""
    page, value = page[:22] + bytes(4) + page[26:], 0
    for byte in page:
        value = ((value << 8) & 0xFFFFFFFF) ^ TABLE[(value >> 24) ^ byte]
    return page[:22] + struct.pack("<I", value) + page[26:]


def repaired(content: bytes) -> bytes:
    """The file with the checksums of its PNG chunks or Ogg pages set right; any other file as it is."""
    if content[:4] == b"OggS":
        return b"".join(map(with_checksum, ogg_pages(content)))
    if content[:4] == b"\x89PNG":
        out, place = [content[:8]], 8
        while place + 12 <= len(content):
            length = min(int.from_bytes(content[place : place + 4], "big"), len(content) - place - 12)
            body = content[place + 4 : place + 8 + length]
            out.append(content[place : place + 4] + body + zlib.crc32(body).to_bytes(4, "big"))
            place += 12 + length
        return b"".join(out) + content[place:]
    return content


def chunk_places(content: bytes) -> list[int]:
    """Offsets where chunks, boxes, pages, packets or markers begin, the end last; 0 and the end alone where the format is another one."""
    head, places = content[:12], [0]
    if head[:4] in (b"RIFF", b"RF64"):
        places += _walk(content, 12, 8, "<I", 4, even=True)
    elif head[:4] == b"FORM":
        places += _walk(content, 12, 8, ">I", 4, even=True)
    elif head[:4] == b"\x89PNG":
        places += _walk(content, 8, 12, ">I", 0)
    elif head[4:8] in (b"ftyp", b"jP  ", b"wide"):
        places += _walk(content, 0, 0, ">I", 0)
    elif head[:4] == b"caff":
        places += _walk(content, 8, 12, ">Q", 4)
    elif head[:4] == b"OggS":
        place = content.find(b"OggS", 4)
        while place > 0:
            places.append(place)
            place = content.find(b"OggS", place + 4)
    elif head[:4] == b"fLaC":
        place = 4
        while place + 4 <= len(content) and len(places) < 20:
            places.append(place)
            last = content[place] & 0x80
            place += 4 + int.from_bytes(content[place + 1 : place + 4], "big")
            if last:
                places.append(place)
                break
    elif head[:2] in (b"\xff\xd8", b"\xff\x4f"):
        place = content.find(b"\xff", 2)
        while place > 0:
            if content[place + 1 : place + 2] not in (b"", b"\0"):
                places.append(place)
            place = content.find(b"\xff", place + 2)
    elif content[:1] == b"\x47" and len(content) % 188 == 0:
        places += range(188, len(content), 188)
    return [*sorted({p for p in places if 0 <= p < len(content)}), len(content)]


def _walk(content: bytes, place: int, beyond: int, form: str, at: int, *, even: bool = False) -> list[int]:
    """Offsets of chunks that state their length at ``at``, to which ``beyond`` bytes are added."""
    places, width = [], struct.calcsize(form)
    while place + at + width <= len(content):
        places.append(place)
        length = struct.unpack(form, content[place + at : place + at + width])[0]
        if length + beyond < 4:
            break
        place += length + beyond + (length & 1 if even else 0)
    return places
