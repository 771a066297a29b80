"""The inputs: number N of a run with a given seed is always the same files, whatever else is run."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from random import Random

from PIL import Image

from tests.fuzz.mutate import damaged
from tests.fuzz.seed_media import Seed, all_media
from tests.fuzz.seed_texts import FILMED, PICTURE, TextSeed, all_texts, damaged_text

TEXTS_EVERY = 6
"""every sixth input is a set of items, a table or a configuration, the others are media"""
SHARES = {"sound": 45, "image": 45, "film": 10}
"""of the media, in hundredths: a film takes several times as long as a sound or an image"""
CONFIGURATIONS = 0.05
"""share of the texts that are configurations, which take longest to read"""
FILMS = ("mp4", "mkv", "avi", "webm", "ts", "other films")


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """One input; of a medium, ``files`` holds one."""

    kind: str
    role: str
    """image, audio or video; ``set``, ``films`` (a set whose films are not decoded) or ``configuration``"""
    name: str
    """the file that was mutated"""
    files: dict[str, bytes]


class Inputs:
    """Makes every input out of whole files that are made once."""

    def __init__(self) -> None:
        self.media = all_media()
        self._kinds: dict[str, dict[str, list[Seed]]] = defaultdict(lambda: defaultdict(list))
        for seed in self.media:
            group = "film" if seed.kind in FILMS else "sound" if seed.role == "audio" else "image"
            self._kinds[group][seed.kind].append(seed)
        self._contents = [s.content for s in self.media]
        self._suffixes = sorted({s.suffix for s in self.media} | {".raw", ".txt", "", ".WAV", ".sd2", ".m4v"})
        texts = all_texts()
        self.configurations = [t for t in texts if t.kind == "configuration"]
        self.sets = [t for t in texts if t.kind != "configuration"]

    def __call__(self, seed: int, number: int) -> Input:
        rng = Random(f"{seed}/{number}")
        return self._text(rng) if number % TEXTS_EVERY == TEXTS_EVERY - 1 else self._medium(rng)

    def _medium(self, rng: Random) -> Input:
        group = rng.choices(list(SHARES), list(SHARES.values()))[0]
        kind = rng.choice(list(self._kinds[group]))
        chosen = rng.choice(self._kinds[group][kind])
        others = [s.content for s in self._kinds[group][kind]] if rng.random() < 0.5 else self._contents
        suffix = rng.choice(self._suffixes) if rng.random() < 0.04 else chosen.suffix
        role = rng.choice(("image", "audio", "video")) if rng.random() < 0.02 else chosen.role
        return Input(kind=kind, role=role, name=f"in{suffix}", files={f"in{suffix}": damaged(rng, chosen.content, others)})

    def _text(self, rng: Random) -> Input:
        chosen: TextSeed = rng.choice(self.configurations if rng.random() < CONFIGURATIONS else self.sets)
        others = [t.files[t.target] for t in (*self.sets, *self.configurations)]
        files = {**chosen.files, chosen.target: damaged_text(rng, chosen, others)}
        return Input(kind=chosen.kind, role=chosen.role, name=chosen.target, files=files)


def write_input(given: Input, directory: Path) -> None:
    """The input's files in an empty directory; beside a set, what its items show."""
    for name, content in given.files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if given.role == "set":
        Image.new("RGB", (4, 4), "red").save(directory / PICTURE)
    elif given.role == "films":
        (directory / "videos").mkdir()
        for clip in FILMED:
            (directory / "videos" / f"{clip}.mp4").write_text(clip)
