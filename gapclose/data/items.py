"""Items: questions about clips, the options that answer them, and the concepts the options express.

:mod:`gapclose.data.jsonl` defines and checks the format on disk.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SPLITS = ("fit", "train", "val", "test")
PURPOSES = ("gap", "transfer", "retain")
CONTENT_TYPES = ("text", "image", "audio", "video")
EVERYTHING = "all"
"""name of figures over all modalities; no modality may have it"""
ORDER = "option_order"
"""tag with the original places of shuffled options"""
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
BASE64 = re.compile(r"[A-Za-z0-9+/_=\s-]+", re.ASCII)
LONGEST_NAME, LONGEST_PATH = 255, 4095
"""bytes of a file name and characters of a path, on Linux"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One possible answer: the text that the model would generate, and the concept it expresses."""

    text: str
    concept: str
    meaning: str | None = None
    """meaning of a ``text`` that is only a letter; None: the text itself"""

    @property
    def words(self) -> str:
        """The meaning of the option, in words."""
        return self.text if self.meaning is None else self.meaning


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One question about one clip."""

    id: str
    """unique in the set"""
    clip: str
    """group for splits, folds and resamples"""
    split: str
    """fit, train, val or test"""
    modality: str
    """subject of the premise: ``vision``, ``audio``, or any tag"""
    messages: list[dict[str, Any]]
    """chat messages; content parts are ``{"type": "text", "text": ...}`` or ``{"type": "image",
    "path": ...}`` (audio, video); an audio part may name a video, and then means its sound track"""
    options: list[Option]
    gold: int | None = None
    """index of the right option; None: unlabelled"""
    purpose: str = "gap"
    """``gap`` (measured and trained), ``transfer`` (measured only: a question type excluded from
    training), ``retain`` (must not change)"""
    tags: dict[str, str] = field(default_factory=dict)
    """labels that reports can group by, e.g. ``{"question": "parity"}``"""
    stem: str | None = None
    """the question alone, where the messages list the options or say how to answer; other prompts
    are made of it"""

    @property
    def concept(self) -> str | None:
        """The concept of the gold option, or None when unlabelled."""
        return None if self.gold is None else self.options[self.gold].concept

    @property
    def text(self) -> str:
        """The text parts, joined by newlines: the prompt without pictures and sound."""
        return "\n".join(part["text"] for part in content_parts(self.messages) if part["type"] == "text")

    @property
    def marked_text(self) -> str:
        """:attr:`text` for people to read. Where media stand between the texts of a message, all
        its media leave a mark, such as ``[image]``."""
        return "\n".join(text for message in self.messages if (text := _marked(message)))

    @property
    def order(self) -> list[int] | None:
        """For every place, the option's place in the data; None without shuffled options."""
        return [int(place) for place in self.tags[ORDER].split()] if ORDER in self.tags else None

    @property
    def media(self) -> list[tuple[str, str]]:
        """``(type, path)`` of all media parts, in prompt order.

        A video with ``sound`` counts as video and as audio.
        """
        parts = [p for p in content_parts(self.messages) if p["type"] != "text"]
        return [(kind, p["path"]) for p in parts for kind in (p["type"], *(("audio",) if p.get("sound") else ()))]


def leaves(path: str) -> bool:
    """Whether a path is absolute, or leads above its start. Links may lead anywhere."""
    return Path(path).is_absolute() or Path(os.path.normpath(path)).parts[:1] == (os.pardir,)


def path_fault(path: str) -> str | None:
    """Explain, with the remedy, why a text cannot be the path of a media file; None if it can.

    Refused are web addresses, media encoded as text, and impossible file names.
    """
    if path[:5].lower() == "data:":
        return "a data: URI, the file itself written as text; save it as a file and name that"
    if ADDRESS.match(path):
        return "an address; fetch the file and name it by a path"
    if "\0" in path:
        return "which holds a NUL character; remove it"
    longest = max((len(os.fsencode(part)) for part in path.split("/")), default=0) if _encodes(path) else 0
    if len(path) > 200 and BASE64.fullmatch(path):  # no dot, so no suffix
        return "base64, the file itself written as text; save it as a file and name that"
    if longest > LONGEST_NAME or len(path) > LONGEST_PATH:
        return "longer than the name of a file can be; shorten it"
    return None


def _encodes(path: str) -> bool:
    """Whether this machine's file system can encode the name; without it, the file is *missing*."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def content_parts(messages: Sequence[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Yield every content part of every message; a plain string counts as one text part."""
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            yield {"type": "text", "text": content}
        else:
            yield from content


def _marked(message: dict[str, Any]) -> str:
    """The text of one message, with marks for its media where some stand between two texts."""
    parts = [*content_parts([message])]
    kinds = [part["type"] for part in parts]
    texts = [n for n, kind in enumerate(kinds) if kind == "text"]
    inside = bool(texts) and any(kind != "text" for kind in kinds[texts[0] : texts[-1]])
    found, before = "", ""
    for part in parts if inside else [parts[n] for n in texts]:
        said = part["text"] if part["type"] == "text" else f"[{part['type']}]"
        if before == part["type"] == "text":
            found += "\n"
        elif found and not found[-1].isspace() and not said[:1].isspace():
            found += " "
        found, before = found + said, part["type"]
    return found
