"""Item sets that are made by code: the digits world, and two sets for pretrained models, *people* and *places*."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gapclose.data.items import SPLITS

GENERATED = ("digits", "people", "places")
"""names of the sets, for ``data.path``"""
MEDIA = {"digits": ("image", "audio"), "people": (), "places": ("image", "audio")}
"""name of a set -> the kinds of media in its questions; ``data.sound`` false leaves the audio out"""


def write_generated(name: str, directory: Path, seed: int, *, clips: Sequence[int] | None = None, **options: Any) -> None:
    """Write a set and its media into ``directory``; the same arguments give the same bytes.

    Args:
        clips: number of clips for fit, train, val and test; None: the set's own numbers.
        options: of the digits world alone, ``degraded`` and ``sound``.

    Raises:
        ValueError: when a set cannot have so many clips.
    """
    numbers = None if clips is None else {split: number for split, number in zip(SPLITS, clips, strict=True) if number}
    if name == "digits":
        from gapclose.data.digits.generate import write

        write(directory, seed, clips=numbers, **options)
    elif name == "people":
        from gapclose.data.generated import people

        people.write(directory, seed, clips=numbers)
    else:
        assert name == "places", name
        from gapclose.data.generated import places

        places.write(directory, seed, clips=numbers)
