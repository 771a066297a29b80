"""A small item set that no model here was made for: coloured shapes and beeps, with true and false premises about either.

A random network carries the conjunction of the named detail and the medium well enough for a linear probe.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image, ImageDraw

from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.data.jsonl import write_items

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230), "yellow": (230, 210, 50)}
TONES = {"low": 300.0, "middle": 800.0, "high": 1800.0, "shrill": 3600.0}
RATE = 16_000
OPTIONS = [
    *(Option(text=t, concept="standard") for t in ("round", "edged", "long", "short")),
    Option(text="unseen", concept="false_vision"),
    Option(text="unheard", concept="false_audio"),
]


def write(directory: Path, clips: Mapping[str, int], seed: int = 0) -> ItemSet:
    """Write the set; four items a clip: for each modality one with the true detail and its twin with another."""
    rng, items = np.random.default_rng(seed), []
    (directory / "media").mkdir(parents=True, exist_ok=True)
    for split, count in clips.items():
        for n in range(count):
            items += _clip(directory / "media", f"{split}-{n}", split, rng)
    alarm = ("false_vision", "false_audio")
    made = ItemSet(root=directory, name="shapes", concepts=("standard", *alarm), alarm=alarm, items=tuple(items))
    write_items(made, directory)
    return made


def _clip(media: Path, name: str, split: str, rng: np.random.Generator) -> list[Item]:
    """Picture and sound of a clip, and its four items."""
    colour, tone, edged, long = rng.choice(list(COLOURS)), rng.choice(list(TONES)), bool(rng.integers(2)), bool(rng.integers(2))
    _picture(media / f"{name}.png", COLOURS[colour], edged, rng)
    _beep(media / f"{name}.wav", TONES[tone], long, rng)
    questions = {
        "vision": ("The picture shows a {} shape. Is it round or edged?", colour, COLOURS, "edged" if edged else "round", "unseen"),
        "audio": ("The sound is a {} beep. Is it long or short?", tone, TONES, "long" if long else "short", "unheard"),
    }
    items = []
    for modality, (text, right, details, answer, objection) in questions.items():
        wrong = rng.choice([d for d in details if d != right])
        for kind, detail, gold, other in (("true", right, answer, "false"), ("false", wrong, objection, "true")):
            content = [
                {"type": "image", "path": f"media/{name}.png"},
                {"type": "audio", "path": f"media/{name}.wav"},
                {"type": "text", "text": text.format(detail)},
            ]
            facts = {"id": f"{name}/{modality}-{kind}", "clip": name, "split": split, "modality": modality, "purpose": "gap"}
            messages, place = [{"role": "user", "content": content}], [o.text for o in OPTIONS].index(gold)
            items.append(Item(**facts, messages=messages, options=OPTIONS, gold=place, tags={"twin": f"{name}/{modality}-{other}"}))
    return items


def _picture(path: Path, colour: tuple[int, int, int], edged: bool, rng: np.random.Generator) -> None:
    picture = Image.new("RGB", (56, 56), (15, 15, 15))
    x, y, size = *rng.integers(2, 12, size=2).tolist(), int(rng.integers(28, 42))
    draw = ImageDraw.Draw(picture)
    (draw.rectangle if edged else draw.ellipse)((x, y, x + size, y + size), fill=colour)
    noise = rng.integers(-8, 9, size=(56, 56, 3))
    Image.fromarray((np.asarray(picture).astype(int) + noise).clip(0, 255).astype(np.uint8)).save(path)


def _beep(path: Path, hertz: float, long: bool, rng: np.random.Generator) -> None:
    seconds = (0.7 if long else 0.3) + rng.uniform(0, 0.1)
    time = np.arange(int(seconds * RATE)) / RATE
    wave = 0.5 * np.sin(2 * np.pi * hertz * rng.uniform(0.97, 1.03) * time) + 0.01 * rng.standard_normal(len(time))
    soundfile.write(path, wave, RATE)
