"""*places*: a picture and a sound of two numbers, each met by a person on a day, near a thing in a city, and questions about one.

A clip reads "On Monday, Anna saw the number [image] near a lamp in Paris. On Friday, Ben heard the number [sound] near a
clock in Miami." A question names a number and its modality: "In which city was the number seven seen?" In its ``twin`` the
number is that of the *other* modality: it was heard, not seen. Both numbers occur, so presence tells nothing; the number has
to be bound to its modality. The text names no number outside the question, so text alone is at chance. Which sentence comes
first is drawn by clip, so the place of the number tells nothing either. One of the two media is enough to answer: what was
not seen was heard. A reading of one modality's questions may thus rest on the other medium.

Modality is what the question is about, ``vision`` or ``audio``. Questions that are trained on ask for the city (``where``)
or the person (``who``). Questions for the day (``when``) and for what was near (``thing``) are kept out of training (purpose
``transfer``). Retention items ask what a picture or a sound is and which city or person is named first, and
general questions (:mod:`gapclose.data.generated.general`). Names of persons are those of *people*, apart between splits.
Scans and utterances are those of the digits world, apart between splits as there (:mod:`gapclose.data.digits.media_bank`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gapclose.core.files import writing
from gapclose.data.digits.generate import VOICES, wav_bytes
from gapclose.data.digits.media_bank import NAMES as DIGITS
from gapclose.data.digits.media_bank import scan_image, scan_partition, scans, utterances, waveform
from gapclose.data.generated.general import OBJECTION, general_items
from gapclose.data.generated.people import ALARM, ANSWER, CITIES, CONCEPTS, DAYS, OBJECTS, article, request
from gapclose.data.generated.people import NAMES as PERSONS
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.data.jsonl import write_items

T = TypeVar("T")

CLIPS = {"fit": 240, "train": 300, "val": 60, "test": 200}
MODALITIES = ("vision", "audio")
PERCEIVED = {"vision": ("saw", "seen"), "audio": ("heard", "heard")}
WORDINGS = {
    "where": (
        "Where was the number {number} {perceived}?",
        "In which city was the number {number} {perceived}?",
        "Name the city where the number {number} was {perceived}.",
    ),
    "who": ("Who {past} the number {number}?", "Name the person who {past} the number {number}."),
    "when": ("When was the number {number} {perceived}?", "On which day was the number {number} {perceived}?"),
    "thing": ("Near what was the number {number} {perceived}?", "Near which thing was the number {number} {perceived}?"),
}
"""question type -> wordings"""
TRANSFER = ("when", "thing")
"""question types that are kept out of training"""
NAMED = {"first": 0, "second": 1}
"""which sentence a retention item asks about"""
NOUNS = {"where": "city", "who": "person"}
"""type of answer -> its name in such an item"""


@dataclass(frozen=True, slots=True)
class Clip:
    """A scan and an utterance of two different numbers. Of each pair of values the first belongs to what is seen."""

    name: str
    split: str
    numbers: tuple[int, int]
    scan: int
    utterance: int
    """place in the speech bank"""
    days: tuple[str, str]
    people: tuple[str, str]
    things: tuple[str, str]
    cities: tuple[str, str]
    heard_first: bool
    """whether the sentence about what is heard comes first"""

    @property
    def order(self) -> tuple[int, int]:
        """Places of the modalities in :data:`MODALITIES`, sentence after sentence."""
        return (1, 0) if self.heard_first else (0, 1)

    def answers(self, kind: str) -> tuple[str, str]:
        """What a question of a type can be answered with: the word beside each number."""
        return {"where": self.cities, "who": self.people, "when": self.days, "thing": self.things}[kind]

    def media(self) -> list[dict[str, str]]:
        return [{"type": "image", "path": f"media/{self.name}.png"}, {"type": "audio", "path": f"media/{self.name}.wav"}]


def draw_clips(clips: Mapping[str, int], rng: np.random.Generator) -> list[Clip]:
    """The clips of every split.

    No scan is in two clips. Utterances are shared by the clips of a split, and by fit and train, which have the same voices.

    Raises:
        ValueError: when there are not enough scans.
    """

    def two(words: str) -> tuple[str, str]:
        first, second = rng.choice(words.split(), size=2, replace=False)
        return str(first), str(second)

    _, free = scan_partition()
    labels = scans()[1]
    left = [int(i) for i in rng.permutation(free)]
    if sum(clips.values()) > len(left):
        raise ValueError(f"data.clips asks for {sum(clips.values())} clips of the set places, and there are {len(left)} scans, one a clip")
    bank = utterances()
    spoken = {(g, d): [k for k, u in enumerate(bank) if u.group == g and u.digit == d] for g in set(VOICES.values()) for d in range(10)}
    found = []
    for split, number in clips.items():
        persons = PERSONS["fit" if split == "train" else split]
        for n in range(number):
            scan = left.pop()
            seen = int(labels[scan])
            heard = int(rng.choice([d for d in range(10) if d != seen]))
            said = int(rng.choice(spoken[VOICES[split], heard]))
            words = (two(w) for w in (DAYS, persons, OBJECTS, CITIES))
            found.append(Clip(f"{split}-{n:03d}", split, (seen, heard), scan, said, *words, heard_first=bool(rng.integers(2))))
    return found


def content(clip: Clip, question: str, answer: str) -> list[dict[str, str]]:
    """The clip's sentences with their media, the same for all its questions, then the question."""
    media, parts, text = clip.media(), list[dict[str, str]](), ""
    for place in clip.order:
        past = PERCEIVED[MODALITIES[place]][0]
        before = f"{text}On {clip.days[place]}, {clip.people[place]} {past} the number"
        parts += [{"type": "text", "text": before}, media[place]]
        text = f" near {article(clip.things[place])} {clip.things[place]} in {clip.cities[place]}. "
    return [*parts, {"type": "text", "text": f"{text.rstrip()}\n\n{question}\n{answer}"}]


def question_pair(clip: Clip, kind: str, modality: str, purpose: str, rng: np.random.Generator) -> list[Item]:
    """A true question about the number of a modality, and its twin with the number of the other modality."""
    right, wording = MODALITIES.index(modality), int(rng.integers(len(WORDINGS[kind])))
    answers, order = clip.answers(kind), [int(n) for n in rng.permutation(2)]
    options = [Option(text=answers[n], concept="standard") for n in order] + [Option(text=OBJECTION, concept="false")]
    past, perceived = PERCEIVED[modality]
    made = []
    for premise, twin, place in (("true", "false", right), ("false", "true", 1 - right)):
        question = WORDINGS[kind][wording].format(number=DIGITS[clip.numbers[place]], past=past, perceived=perceived)
        stem = f"{clip.name}/{modality}-{kind}"
        gold = order.index(right) if premise == "true" else 2
        tags = {"question": kind, "wording": str(wording), "premise": premise, "twin": f"{stem}-{twin}"}
        messages = [{"role": "user", "content": content(clip, question, request(ANSWER[kind]))}]
        made.append(_item(clip, f"{stem}-{premise}", modality, purpose, messages, options, gold, tags))
    return made


def what_item(clip: Clip, modality: str) -> Item:
    """Which number the picture, or the sound beside it, is: a retention item without a premise."""
    place, media = MODALITIES.index(modality), clip.media()
    ask = f" is said. Which number is {('shown', 'said')[place]}?\nAnswer with one word, the name of the number."
    text = ({"type": "text", "text": words} for words in ("The number", " is shown. The number", ask))
    parts = [next(text), media[0], next(text), media[1], next(text)]
    options = [Option(text=DIGITS[d], concept="standard") for d in range(10)]
    messages = [{"role": "user", "content": parts}]
    return _item(clip, f"{clip.name}/what", modality, "retain", messages, options, clip.numbers[place], {"question": "what"})


def named_item(clip: Clip, rng: np.random.Generator) -> Item:
    """A question that states nothing about a number and so cannot be wrong, with the words on how to object."""
    kind, place = [*NOUNS][int(rng.integers(len(NOUNS)))], [*NAMED][int(rng.integers(len(NAMED)))]
    answers = [clip.answers(kind)[n] for n in clip.order]
    options = [Option(text=a, concept="standard") for a in answers] + [Option(text=OBJECTION, concept="false")]
    messages = [{"role": "user", "content": content(clip, f"Which {NOUNS[kind]} is named {place}?", request(ANSWER[kind]))}]
    return _item(clip, f"{clip.name}/named", "vision", "retain", messages, options, NAMED[place], {"question": "named"})


def _item(
    clip: Clip,
    ident: str,
    modality: str,
    purpose: str,
    messages: list[dict[str, Any]],
    options: list[Option],
    gold: int,
    tags: dict[str, str],
) -> Item:
    return Item(
        id=ident, clip=clip.name, split=clip.split, modality=modality, messages=messages, options=options, gold=gold, purpose=purpose,
        tags={**tags, "voices": utterances()[clip.utterance].voice},
    )  # fmt: skip


def draw(seed: int = 0, clips: Mapping[str, int] | None = None) -> tuple[list[Clip], tuple[Item, ...]]:
    """The clips and items of one seed.

    Every clip has four gap items, a true and a false question about each modality, of which one is of type ``where`` and
    one of type ``who``. Outside ``fit`` it has a retention item, of :func:`what_item` or :func:`named_item`. In val and test
    it has a pair of one type that is kept out of training, about one modality. Which of them, is drawn evenly.
    """
    rng, items = np.random.default_rng([seed, 3]), list[Item]()
    clips = CLIPS if clips is None else clips
    drawn = draw_clips(clips, rng)
    for split, number in clips.items():
        where = evenly(rng, MODALITIES, number)
        retained = evenly(rng, (*MODALITIES, None, None), number)
        kept_out = evenly(rng, [(kind, modality) for kind in TRANSFER for modality in MODALITIES], number)
        for n, clip in enumerate(c for c in drawn if c.split == split):
            for modality in MODALITIES:
                items += question_pair(clip, "where" if modality == where[n] else "who", modality, "gap", rng)
            if split != "fit":
                about = retained[n]
                items.append(what_item(clip, about) if about else named_item(clip, rng))
            if split in ("val", "test"):
                items += question_pair(clip, *kept_out[n], "transfer", rng)
    return drawn, (*items, *general_items(clips, modality="vision", concept="standard", objecting="false"))


def evenly(rng: np.random.Generator, choices: Sequence[T], number: int) -> list[T]:
    """Return ``number`` of the choices in random order, each as often as the others, give or take one."""
    return [choices[int(n) % len(choices)] for n in rng.permutation(number)]


def write(directory: str | Path, seed: int = 0, *, clips: Mapping[str, int] | None = None) -> ItemSet:
    """Write the item set and its media; the same arguments give the same bytes.

    Args:
        clips: number of clips a split; None: :data:`CLIPS`. Splits may be left out.

    Raises:
        ValueError: when there are not enough scans.
    """
    directory = Path(directory)
    drawn, items = draw(seed, clips)
    with writing(directory):
        (directory / "media").mkdir(parents=True, exist_ok=True)
        for clip in drawn:
            scan_image(clip.scan).save(directory / "media" / f"{clip.name}.png")
            (directory / "media" / f"{clip.name}.wav").write_bytes(wav_bytes(waveform(utterances()[clip.utterance])))
    made = ItemSet(root=directory, name="places", concepts=CONCEPTS, alarm=ALARM, items=items)
    write_items(made, directory)
    return made
