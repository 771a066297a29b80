"""*people*: short passages, and questions of which half state a detail that the passage contradicts. Text only.

A clip is a passage of three sentences, such as "Anna found a black violin in Paris." A question names some of person,
colour and object, and asks for another detail: "Where did Anna find the violin that is black?" In its ``twin`` the
colour or the object is taken from another sentence. Both details occur in the passage; only the person they belong to
differs. So no word tells a false question from a true one. The prompt says how to object, and the options are the words that answer.

Modality is the detail that may be false, ``colour`` or ``object``. A false ``who`` question names no person, so either
detail may count as the false one; it is the one that was exchanged. Question types ``where`` and ``which`` ask for the
city, ``who`` for the person; they are trained on. Types ``colour`` and ``thing`` ask for another detail, and are kept
out of training (purpose ``transfer``). Retention items are claims to check, and general questions
(:mod:`gapclose.data.generated.general`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gapclose.core.files import writing
from gapclose.data.generated.general import general_items
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.data.jsonl import write_items

CLIPS = {"fit": 120, "train": 150, "val": 60, "test": 200}
CONCEPTS, ALARM = ("standard", "false"), ("false",)
OBJECTION = "error"
"""the word that objects: one token for most tokenizers, as the answers are"""
NAMES = {
    "fit": "Anna Ben David Frank Leo Maria Peter Tom John Mary Paul Mark James Robert Sarah Laura Kate Jack Sam Alice",
    "val": "Bob Jane Emma Adam Eric Simon Alex Lisa Mike Steve",
    "test": "Kevin Martin George Henry Charles Daniel Michael Thomas Andrew Emily Grace Susan Karen",
}
"""split -> first names; those of ``train`` are those of ``fit``"""
COLOURS = "red blue green yellow black white brown purple orange pink"
OBJECTS = (
    "bicycle lamp chair guitar kettle jacket clock basket violin mirror carpet bottle camera drum ladder wallet piano table coat hat ring "
    "book box cup knife bag boat desk sofa vase candle radio"
)
CITIES = (
    "Paris Berlin London Boston Chicago Toronto Dallas Miami Denver Seattle Houston Phoenix Austin Portland Atlanta Manchester Liverpool "
    "Singapore Detroit Philadelphia"
)
VERBS = {"bought": "buy", "found": "find", "sold": "sell", "lost": "lose"}
WORDINGS = {
    "where": (
        "Where did {name} {verb} the {object} that is {colour}?",
        "In which city did {name} {verb} the {object} that is {colour}?",
    ),
    "which": (
        "{name} {past} the {object} that is {colour}. In which city was that?",
        "Name the city where {name} {past} the {object} that is {colour}.",
    ),
    "who": ("Who {past} the {object} that is {colour}?", "Name the person who {past} the {object} that is {colour}."),
    "colour": ("What colour was the {object} that {name} {past}?", "Which colour was the {object} that {name} {past}?"),
    "thing": ("What did {name} {verb} that is {colour}?", "Name the thing that is {colour} and that {name} {past}."),
}
"""question type -> wordings; none repeats the passage's "black violin", which would tell a true question by its pairs of words"""
ANSWER = {
    "where": "the name of the city", "which": "the name of the city", "who": "the name of the person", "colour": "the colour",
    "thing": "the name of the thing",
}  # fmt: skip
ASKED = (("where", "who"), ("who", "which"), ("which", "where"), ("who", "where"), ("which", "who"), ("where", "which"))
"""types of a clip's questions with a false colour and with a false object, clip after clip"""
TRANSFER = {"colour": "object", "thing": "colour"}
"""question type kept out of training -> the detail that its false questions get wrong"""


@dataclass(frozen=True, slots=True)
class Passage:
    """Three sentences, each a person, a verb, a colour, an object and a city."""

    clip: str
    split: str
    people: tuple[str, ...]
    verbs: tuple[str, ...]
    colours: tuple[str, ...]
    objects: tuple[str, ...]
    cities: tuple[str, ...]

    @property
    def text(self) -> str:
        rows = zip(self.people, self.verbs, self.colours, self.objects, self.cities, strict=True)
        return " ".join(f"{name} {verb} {_article(colour)} {colour} {thing} in {city}." for name, verb, colour, thing, city in rows)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def draw_passages(clips: Mapping[str, int], rng: np.random.Generator) -> list[Passage]:
    """The passages of every split; within one, persons, colours, objects and cities differ."""

    def three(words: str) -> tuple[str, ...]:
        return tuple(str(w) for w in rng.choice(words.split(), size=3, replace=False))

    found = []
    for split, number in clips.items():
        names = NAMES["fit" if split == "train" else split]
        for n in range(number):
            verbs = tuple(str(v) for v in rng.choice([*VERBS], size=3))
            found.append(Passage(f"{split}-{n:03d}", split, three(names), verbs, three(COLOURS), three(OBJECTS), three(CITIES)))
    return found


def question_pair(passage: Passage, kind: str, detail: str, purpose: str, rng: np.random.Generator) -> list[Item]:
    """A true question about a drawn person, and its twin, in which ``detail`` is another person's."""
    i = int(rng.integers(3))
    other = (i + 1 + int(rng.integers(2))) % 3
    wording = int(rng.integers(len(WORDINGS[kind])))
    answers = {"who": passage.people, "colour": passage.colours, "thing": passage.objects}.get(kind, passage.cities)
    order = [int(n) for n in rng.permutation(3)]
    options = [Option(text=answers[n], concept="standard") for n in order] + [Option(text=OBJECTION, concept="false")]
    made = []
    for premise, twin in (("true", "false"), ("false", "true")):
        wrong = {detail: other} if premise == "false" else {}
        question = WORDINGS[kind][wording].format(
            name=passage.people[i], past=passage.verbs[i], verb=VERBS[passage.verbs[i]],
            colour=passage.colours[wrong.get("colour", i)], object=passage.objects[wrong.get("object", i)],
        )  # fmt: skip
        stem = f"{passage.clip}/{kind}-{detail}"
        gold = order.index(i) if premise == "true" else 3
        tags = {"question": kind, "wording": str(wording), "premise": premise, "twin": f"{stem}-{twin}"}
        made.append(_item(passage, f"{stem}-{premise}", detail, purpose, question, request(ANSWER[kind]), options, gold, tags))
    return made


def request(answer: str) -> str:
    """How to answer, and how to object."""
    return f"Answer with one word, {answer}. If the question has an error, answer: {OBJECTION}."


def claim_item(passage: Passage, rng: np.random.Generator) -> Item:
    """A claim about the passage, true or false by a coin, to be checked: objecting is invited here."""
    i, true, detail = int(rng.integers(3)), bool(rng.integers(2)), ("colour", "object")[int(rng.integers(2))]
    wrong = {} if true else {detail: (i + 1 + int(rng.integers(2))) % 3}
    colour, thing = passage.colours[wrong.get("colour", i)], passage.objects[wrong.get("object", i)]
    question = f"The passage says that {passage.people[i]} {passage.verbs[i]} {_article(colour)} {colour} {thing}. Is that true?"
    options = [Option(text="Yes", concept="standard"), Option(text="No", concept="false")]
    tags = {"question": "claim", "premise": "true" if true else "false"}
    return _item(passage, f"{passage.clip}/claim", detail, "retain", question, "Answer yes or no.", options, int(not true), tags)


def _item(
    passage: Passage,
    ident: str,
    modality: str,
    purpose: str,
    question: str,
    answer: str,
    options: list[Option],
    gold: int,
    tags: dict[str, str],
) -> Item:
    text = {"type": "text", "text": f"{passage.text}\n\n{question}\n{answer}"}
    return Item(
        id=ident, clip=passage.clip, split=passage.split, modality=modality, messages=[{"role": "user", "content": [text]}],
        options=options, gold=gold, purpose=purpose, tags=tags, stem=f"{passage.text}\n\n{question}",
    )  # fmt: skip


def draw(seed: int = 0, clips: Mapping[str, int] | None = None) -> tuple[Item, ...]:
    """The items of one seed.

    Every clip has four gap items: true and false by colour, true and false by object, asked by two of the three types
    (:data:`ASKED`). Outside ``fit`` it has a claim to check. In val and test it has a pair of one type that is kept out of
    training.
    """
    rng, items = np.random.default_rng([seed, 2]), list[Item]()
    clips = CLIPS if clips is None else clips
    passages = draw_passages(clips, rng)
    for n, passage in enumerate(passages):
        for kind, detail in zip(ASKED[n % len(ASKED)], ("colour", "object"), strict=True):
            items += question_pair(passage, kind, detail, "gap", rng)
        if passage.split != "fit":
            items.append(claim_item(passage, rng))
        if passage.split in ("val", "test"):
            kind = [*TRANSFER][n % 2]
            items += question_pair(passage, kind, TRANSFER[kind], "transfer", rng)
    return (*items, *general_items(clips, modality="colour", concept="standard"))


def write(directory: str | Path, seed: int = 0, *, clips: Mapping[str, int] | None = None) -> ItemSet:
    """Write the item set; the same arguments give the same bytes.

    Args:
        clips: number of clips a split; None: :data:`CLIPS`. Splits may be left out.
    """
    directory = Path(directory)
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    made = ItemSet(root=directory, name="people", concepts=CONCEPTS, alarm=ALARM, items=draw(seed, clips))
    write_items(made, directory)
    return made
