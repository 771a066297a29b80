"""*places*: two pictures and two sounds of numbers, each with a city, and questions about one of them.

A clip reads "The number [image] was seen in Paris. The number [image] was seen in Dallas. The number [sound] was heard
in Miami. The number [sound] was heard in Denver." The four numbers differ. A question names a number and its modality:
"Where was the number seven seen?" In its ``twin`` the number is one of the *other* modality: it was heard, not seen.
Both numbers occur, so presence tells nothing; the number has to be bound to its modality. The text names no number
outside the question, so text alone is at chance. Which modality comes first is drawn by clip, so the place of the
number tells nothing either.

Modality is what the question is about, ``vision`` or ``audio``. Question types ``where`` and ``city`` are trained on.
Types ``either`` and ``order`` are kept out of training (purpose ``transfer``). Retention items ask what a picture or a
sound is and which city is named first, and general questions (:mod:`gapclose.data.generated.general`). Scans and
utterances are those of the digits world, apart between splits as there (:mod:`gapclose.data.digits.media_bank`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gapclose.core.files import writing
from gapclose.data.digits.generate import VOICES, wav_bytes
from gapclose.data.digits.media_bank import NAMES, scan_image, scan_partition, scans, utterances, waveform
from gapclose.data.generated.general import OBJECTION, general_items
from gapclose.data.generated.people import ALARM, CITIES, CONCEPTS, request
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.data.jsonl import write_items

CLIPS = {"fit": 120, "train": 150, "val": 50, "test": 150}
MODALITIES = ("vision", "audio")
PERCEIVED = {"vision": "seen", "audio": "heard"}
WORDINGS = {
    "where": ("Where was the number {number} {perceived}?", "At which place was the number {number} {perceived}?"),
    "city": ("In which city was the number {number} {perceived}?", "Name the city where the number {number} was {perceived}."),
    "either": (
        "Was the number {number} {perceived} in {first} or in {second}?",
        "Which is right: was the number {number} {perceived} in {first}, or in {second}?",
    ),
    "order": ("Was the number {number} {perceived} first or second?", "Was the number {number} the first or the second to be {perceived}?"),
}
"""question type -> wordings"""
TRANSFER = ("either", "order")
"""question types that are kept out of training"""
NAMED = {"first": 0, "second": 1, "third": 2, "last": 3}
"""which city a retention item asks for"""


@dataclass(frozen=True, slots=True)
class Clip:
    """Two scans and two utterances of four different numbers, and a city for each of them."""

    name: str
    split: str
    numbers: tuple[int, int, int, int]
    """seen, seen, heard, heard"""
    scans: tuple[int, int]
    utterances: tuple[int, int]
    """places in the speech bank"""
    cities: tuple[str, ...]
    order: tuple[str, str]
    """modality whose sentences come first, and the other"""

    def places(self, modality: str) -> tuple[int, int]:
        """Where the clip's numbers and cities of a modality are."""
        return (0, 1) if modality == "vision" else (2, 3)

    def media(self) -> list[dict[str, str]]:
        kinds = ("image", "image", "audio", "audio")
        return [{"type": kind, "path": f"media/{self.name}-{n}.{'png' if kind == 'image' else 'wav'}"} for n, kind in enumerate(kinds)]


def draw_clips(clips: Mapping[str, int], rng: np.random.Generator) -> list[Clip]:
    """The clips of every split. No scan is in two clips; utterances of a voice are shared within a split.

    Raises:
        ValueError: when there are not enough scans.
    """
    _, free = scan_partition()
    labels = scans()[1]
    left = {d: [int(i) for i in rng.permutation(free[labels[free] == d])] for d in range(10)}
    bank = utterances()
    spoken = {(g, d): [k for k, u in enumerate(bank) if u.group == g and u.digit == d] for g in set(VOICES.values()) for d in range(10)}
    found = []
    for split, number in clips.items():
        for n in range(number):
            seen = _two_digits(left, rng)
            heard = [int(d) for d in rng.choice([d for d in range(10) if d not in seen], size=2, replace=False)]
            said = tuple(int(rng.choice(spoken[VOICES[split], d])) for d in heard)
            cities = tuple(str(c) for c in rng.choice(CITIES.split(), size=4, replace=False))
            shown = (left[seen[0]].pop(), left[seen[1]].pop())
            order = MODALITIES if rng.integers(2) else (MODALITIES[1], MODALITIES[0])
            numbers = (seen[0], seen[1], heard[0], heard[1])
            found.append(Clip(f"{split}-{n:03d}", split, numbers, shown, (said[0], said[1]), cities, order))
    return found


def _two_digits(left: Mapping[int, list[int]], rng: np.random.Generator) -> tuple[int, int]:
    """Two digits, drawn in proportion to their unused scans, so that none runs out early.

    Raises:
        ValueError: when scans of fewer than two digits are left.
    """
    counts = np.array([len(left[d]) for d in range(10)], dtype=float)
    if (counts > 0).sum() < 2:
        raise ValueError("data.clips asks for more clips of the set places than there are scans: 997, and each clip takes two")
    first, second = rng.choice(10, size=2, replace=False, p=counts / counts.sum())
    return int(first), int(second)


def content(clip: Clip, question: str, answer: str) -> list[dict[str, str]]:
    """The clip's sentences with their media, the same for all its questions, then the question."""
    media, parts, text = clip.media(), list[dict[str, str]](), "The number"
    for about in clip.order:
        for place in clip.places(about):
            parts += [{"type": "text", "text": text}, media[place]]
            text = f" was {PERCEIVED[about]} in {clip.cities[place]}. The number"
    return [*parts, {"type": "text", "text": f"{text.removesuffix(' The number')}\n\n{question}\n{answer}"}]


def question_pair(clip: Clip, kind: str, modality: str, purpose: str, rng: np.random.Generator) -> list[Item]:
    """A true question about one of the two numbers of a modality, and its twin with a number of the other modality."""
    other = MODALITIES[1 - MODALITIES.index(modality)]
    j, k, wording = int(rng.integers(2)), int(rng.integers(2)), int(rng.integers(len(WORDINGS[kind])))
    right, wrong = clip.places(modality)[j], clip.places(other)[k]
    own = [clip.cities[place] for place in clip.places(modality)]
    answers = {"order": ["first", "second"], "either": own}.get(kind, list(clip.cities))
    answer = answers[j] if kind == "order" else clip.cities[right]
    order = [int(n) for n in rng.permutation(len(answers))]
    options = [Option(text=answers[n], concept="standard") for n in order] + [Option(text=OBJECTION, concept="false")]
    instruction = request("the name of the city") if kind != "order" else request("first or second")
    first, second = own if rng.integers(2) else own[::-1]
    made = []
    for premise, twin, place in (("true", "false", right), ("false", "true", wrong)):
        words = {"number": NAMES[clip.numbers[place]], "perceived": PERCEIVED[modality], "first": first, "second": second}
        question = WORDINGS[kind][wording].format(**words)
        stem = f"{clip.name}/{modality}-{kind}"
        gold = [o.text for o in options].index(answer) if premise == "true" else len(options) - 1
        tags = {"question": kind, "wording": str(wording), "premise": premise, "twin": f"{stem}-{twin}"}
        messages = [{"role": "user", "content": content(clip, question, instruction)}]
        made.append(_item(clip, f"{stem}-{premise}", modality, purpose, messages, options, gold, tags))
    return made


def what_item(clip: Clip, modality: str, rng: np.random.Generator) -> Item:
    """Which number a picture, or a sound beside it, is: a retention item without a premise."""
    shown, said = (clip.places(m)[int(rng.integers(2))] for m in MODALITIES)
    place, verb = (shown, "shown") if modality == "vision" else (said, "said")
    ask = f" is said. Which number is {verb}?\nAnswer with one word, the name of the number."
    media = clip.media()
    text = ({"type": "text", "text": words} for words in ("The number", " is shown. The number", ask))
    parts = [next(text), media[shown], next(text), media[said], next(text)]
    options = [Option(text=NAMES[d], concept="standard") for d in range(10)]
    messages = [{"role": "user", "content": parts}]
    return _item(clip, f"{clip.name}/what", modality, "retain", messages, options, clip.numbers[place], {"question": "what"})


def named_item(clip: Clip, rng: np.random.Generator) -> Item:
    """A question that states nothing about a number and so cannot be wrong, with the words on how to object."""
    cities, place = [clip.cities[n] for about in clip.order for n in clip.places(about)], [*NAMED][int(rng.integers(len(NAMED)))]
    options = [Option(text=c, concept="standard") for c in cities] + [Option(text=OBJECTION, concept="false")]
    messages = [{"role": "user", "content": content(clip, f"Which city is named {place}?", request("the name of the city"))}]
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
        tags={**tags, "voices": " ".join(utterances()[n].voice for n in clip.utterances)},
    )  # fmt: skip


def draw(seed: int = 0, clips: Mapping[str, int] | None = None) -> tuple[list[Clip], tuple[Item, ...]]:
    """The clips and items of one seed.

    Every clip has four gap items, a true and a false question about each modality: one of type ``where``, one of type
    ``city``, in turns. Outside ``fit`` it has a retention item, of :func:`what_item` and :func:`named_item` in turn. In val
    and test it has a pair of one type that is kept out of training, about one modality.
    """
    rng, items = np.random.default_rng([seed, 3]), list[Item]()
    clips = CLIPS if clips is None else clips
    drawn = draw_clips(clips, rng)
    for n, clip in enumerate(drawn):
        kinds = ("where", "city") if n % 2 else ("city", "where")
        for kind, modality in zip(kinds, MODALITIES, strict=True):
            items += question_pair(clip, kind, modality, "gap", rng)
        if clip.split != "fit":
            items.append(named_item(clip, rng) if n % 2 else what_item(clip, MODALITIES[n // 2 % 2], rng))
        if clip.split in ("val", "test"):
            items += question_pair(clip, TRANSFER[n % 2], MODALITIES[n // 2 % 2], "transfer", rng)
    return drawn, (*items, *general_items(clips, modality="vision", concept="standard", objecting="false"))


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
            for n, scan in enumerate(clip.scans):
                scan_image(scan).save(directory / "media" / f"{clip.name}-{n}.png")
            for n, utterance in enumerate(clip.utterances, start=2):
                (directory / "media" / f"{clip.name}-{n}.wav").write_bytes(wav_bytes(waveform(utterances()[utterance])))
    made = ItemSet(root=directory, name="places", concepts=CONCEPTS, alarm=ALARM, items=items)
    write_items(made, directory)
    return made
