"""One media file through the project's own loader: as ``validate`` decodes it, with ``data.on_error`` both ways, and as observing does."""

from __future__ import annotations

import ctypes
import math
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from gapclose.core.errors import ErrorCollector
from gapclose.data.item_set import Decoding, Framing, ItemSet
from gapclose.data.items import Item, Option
from gapclose.data.media import MediaLoader, drop_faulty, report_faults, survey
from gapclose.data.video import Video
from gapclose.models.input_checks import too_long

RATE = 16_000
FRAMING = Framing(frames=4, side=64)
PROCESSOR: Any = SimpleNamespace(feature_extractor=SimpleNamespace(sampling_rate=RATE, n_samples=30 * RATE))
"""hears 30 s, as Whisper's does"""
LIBC = ctypes.CDLL(None)
M_PERTURB = -6
"""of mallopt(3), in glibc"""
OPTIONS = [Option(text="yes", concept="a"), Option(text="no", concept="b")]


class Unexpected(Exception):
    """A loader did what it must not do, without an exception of its own."""


def _item(ident: str, content: list[dict[str, str]]) -> Item:
    text = {"type": "text", "text": "?"}
    return Item(id=ident, clip=ident, split="fit", modality="m", messages=[{"role": "user", "content": [*content, text]}], options=OPTIONS)


OTHERS = tuple(_item(f"other {n}", []) for n in range(100))
"""items without media, so that one fault is no more than the share that may be skipped"""


def check_media(directory: Path, role: str, name: str) -> bool:
    """Whether the file decodes; False where it is refused.

    Raises:
        Unexpected: when a refusal does not name the file or a value has not the shape that it must have.
        Exception: whatever else escapes; every one is a finding.
    """
    user = _item("the item", [{"type": role, "path": name}])
    decoding = Decoding(workers=1)
    items = ItemSet(
        root=directory, name="fuzz", concepts=("a", "b"), alarm=("b",), items=(user, *OTHERS), framing=FRAMING, decoding=decoding
    )
    seen = survey(replace(items, items=(user,)))
    found = too_long(items, PROCESSOR, seen.sizes) | seen.faults
    again = zlib.crc32((directory / name).read_bytes()) % 4 == 0
    problems = ErrorCollector("the item set")
    report_faults(items, found, problems)
    kept = drop_faulty(items, found, skipped := ErrorCollector("the item set"))
    if not found:
        if len(problems) or len(skipped) or len(kept) != len(items):
            raise Unexpected("no fault is found, and the item is refused or skipped")
        try:
            values = [_loaded(directory, role, name, filled) for filled in ((0x11, 0xEE) if again and role != "image" else (0,))]
        except ValueError as error:
            raise Unexpected(f"validate accepts the file, and observing refuses it: {error}") from error
        _check_value(values[0])
        if _bytes(values[0]) != _bytes(values[-1]):
            raise Unexpected("two decodings of the file differ: what is shown or played was memory that nobody wrote")
        return True
    _check_refusal(problems.raise_if_any, str(directory / name))
    if len(kept) != len(OTHERS) or len(skipped) or str(directory / name) not in kept.skipped[0][1]:
        raise Unexpected("with data.on_error skip the item is not left out with its file")
    try:
        if again:
            MediaLoader(directory, RATE, framing=FRAMING).load(role, name)
    except ValueError as error:
        _check_message(str(error), str(directory / name))
    return False


def _loaded(directory: Path, role: str, name: str, filled: int) -> Any:
    """The value as observing loads it; memory that is taken meanwhile holds ``filled`` in every byte until it is written.

    Not for images: Pillow takes memory for chunks of any stated length, which is never touched unless it is filled.
    """
    LIBC.mallopt(M_PERTURB, filled)
    try:
        return MediaLoader(directory, RATE, framing=FRAMING).load(role, name)
    finally:
        LIBC.mallopt(M_PERTURB, 0)


def _bytes(value: Any) -> bytes:
    return value.frames.tobytes() if isinstance(value, Video) else value.tobytes()


def _check_refusal(refuse: Any, file: str) -> None:
    try:
        refuse()
    except ValueError as error:
        _check_message(str(error), file)
        if "the item" not in str(error):
            raise Unexpected(f"the refusal does not name the item: {error}") from error
    else:
        raise Unexpected("a fault is found, and nothing is raised")


def _check_message(message: str, file: str) -> None:
    if file not in message:
        raise Unexpected(f"the refusal does not name the file: {message}")
    try:
        message.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unexpected(f"the refusal cannot be printed: {message!r}") from error
    lines = message.splitlines()[1:] if message.startswith("1 problem") else message.splitlines()
    if len(lines) > 1 or any(not c.isprintable() for c in "".join(lines)):
        raise Unexpected(f"the refusal is not one line of printable text: {message!r}")


def _check_value(value: Any) -> None:
    if isinstance(value, Image.Image):
        pixels = np.asarray(value)
        if value.mode != "RGB" or pixels.dtype != np.uint8 or pixels.shape != (value.height, value.width, 3) or not pixels.size:
            raise Unexpected(f"an image of mode {value.mode} and shape {pixels.shape}")
    elif isinstance(value, Video):
        count, *sides, channels = value.frames.shape
        if value.frames.dtype != np.uint8 or count != FRAMING.frames or channels != 3 or not 1 <= min(sides) <= max(sides) <= FRAMING.side:
            raise Unexpected(f"a film of shape {value.frames.shape} and type {value.frames.dtype}")
        if not math.isfinite(value.seconds) or value.seconds < 0:
            raise Unexpected(f"a film of {value.seconds} s from frame to frame")
    elif not (isinstance(value, np.ndarray) and value.dtype == np.float32 and value.ndim == 1 and value.size):
        raise Unexpected(f"a sound of type {type(value).__name__}, {getattr(value, 'dtype', None)}, {getattr(value, 'shape', None)}")
    elif not np.isfinite(value).all():
        raise Unexpected(f"a sound with {int((~np.isfinite(value)).sum())} samples that are not finite")
