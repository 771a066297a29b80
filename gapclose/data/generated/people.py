"""*people*: short passages, and questions of which half state a detail that the passage contradicts. Text only.

A clip is a passage of three sentences, such as "On Monday, Anna found a black violin in Paris." A question names some of
person, colour and object, and asks for another detail: "Where did Anna find the violin that is black?" In its ``twin`` the
colour or the object is taken from another sentence. Both details occur in the passage; only the person they belong to
differs. So no word tells a false question from a true one. The prompt says how to object, and the options are the words that answer.

Modality is the detail that may be false, ``colour`` or ``object``. A false ``who`` question names no person, so either
detail may count as the false one; it is the one that was exchanged. Questions that are trained on ask for the city
(``where``), the person (``who``), the object (``thing``) or the colour (``colour``). Questions for the day (``when``) and for
what was done (``did``) are kept out of training (purpose ``transfer``). Retention items are claims to check, questions about
the order of the sentences, which state no detail, and general questions (:mod:`gapclose.data.generated.general`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gapclose.core.files import writing
from gapclose.data.generated.general import HOW_TO_OBJECT, OBJECTION, general_items
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.data.jsonl import write_items

CLIPS = {"fit": 240, "train": 300, "val": 60, "test": 200}
CONCEPTS, ALARM = ("standard", "false"), ("false",)
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
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
VERBS = {
    "found": "find", "sold": "sell", "lost": "lose", "hid": "hide", "kept": "keep", "moved": "move", "fixed": "fix", "used": "use",
}  # fmt: skip
WORDINGS = {
    "where": (
        "Where did {name} {verb} the {object} that is {colour}?",
        "In which city did {name} {verb} the {object} that is {colour}?",
        "{name} {past} the {object} that is {colour}. In which city was that?",
        "Name the city where {name} {past} the {object} that is {colour}.",
    ),
    "who": ("Who {past} the {object} that is {colour}?", "Name the person who {past} the {object} that is {colour}."),
    "thing": ("What did {name} {verb} that is {colour}?", "Name the thing that is {colour} and that {name} {past}."),
    "colour": ("What colour was the {object} that {name} {past}?", "Which colour was the {object} that {name} {past}?"),
    "when": (
        "When did {name} {verb} the {object} that is {colour}?",
        "On which day did {name} {verb} the {object} that is {colour}?",
    ),
    "did": (
        "What did {name} do with the {object} that is {colour}?",
        "Which verb says what {name} did with the {object} that is {colour}?",
    ),
}
"""question type -> wordings; none repeats the passage's "black violin", which would tell a true question by its pairs of words"""
ANSWER = {
    "where": "the name of the city", "who": "the name of the person", "thing": "the name of the thing", "colour": "the colour",
    "when": "the name of the day", "did": "the verb",
}  # fmt: skip
ASKED = (("where", "who"), ("where", "colour"), ("who", "where"), ("who", "colour"), ("thing", "where"), ("thing", "who"))
"""types of a clip's questions with a false colour and with a false object, clip after clip"""
TRANSFER = (("when", "colour"), ("did", "colour"), ("when", "object"), ("did", "object"))
"""type kept out of training and the detail that its false question gets wrong, clip after clip"""
NAMED = {"first": 0, "second": 1, "last": 2}
"""which sentence a retention item asks about"""
NOUNS = {"where": "city", "who": "person", "thing": "thing", "colour": "colour"}
"""type of answer -> its name in such an item"""


@dataclass(frozen=True, slots=True)
class Passage:
    """Three sentences, each a day, a person, a verb, a colour, an object and a city."""

    clip: str
    split: str
    days: tuple[str, ...]
    people: tuple[str, ...]
    verbs: tuple[str, ...]
    colours: tuple[str, ...]
    objects: tuple[str, ...]
    cities: tuple[str, ...]

    @property
    def text(self) -> str:
        rows = zip(self.days, self.people, self.verbs, self.colours, self.objects, self.cities, strict=True)
        return " ".join(
            f"On {day}, {name} {verb} {article(colour)} {colour} {thing} in {city}." for day, name, verb, colour, thing, city in rows
        )

    def answers(self, kind: str) -> tuple[str, ...]:
        """What a question of a type can be answered with: the word of each sentence."""
        return {
            "where": self.cities, "who": self.people, "thing": self.objects, "colour": self.colours, "when": self.days, "did": self.verbs,
        }[kind]  # fmt: skip


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def draw_passages(clips: Mapping[str, int], rng: np.random.Generator) -> list[Passage]:
    """The passages of every split; within one, days, persons, verbs, colours, objects and cities differ."""

    def three(words: str) -> tuple[str, ...]:
        return tuple(str(w) for w in rng.choice(words.split(), size=3, replace=False))

    found = []
    for split, number in clips.items():
        names = NAMES["fit" if split == "train" else split]
        for n in range(number):
            words = [three(w) for w in (DAYS, names, " ".join(VERBS), COLOURS, OBJECTS, CITIES)]
            found.append(Passage(f"{split}-{n:03d}", split, *words))
    return found


def question_pair(passage: Passage, kind: str, detail: str, purpose: str, rng: np.random.Generator) -> list[Item]:
    """A true question about a drawn person, and its twin, in which ``detail`` is another person's."""
    i = int(rng.integers(3))
    other = (i + 1 + int(rng.integers(2))) % 3
    wording = int(rng.integers(len(WORDINGS[kind])))
    answers = passage.answers(kind)
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
    return f"Answer with one word, {answer}. {HOW_TO_OBJECT}"


def claim_item(passage: Passage, rng: np.random.Generator) -> Item:
    """A claim about the passage, true or false by a coin, to be checked: objecting is invited here."""
    i, true, detail = int(rng.integers(3)), bool(rng.integers(2)), ("colour", "object")[int(rng.integers(2))]
    wrong = {} if true else {detail: (i + 1 + int(rng.integers(2))) % 3}
    colour, thing = passage.colours[wrong.get("colour", i)], passage.objects[wrong.get("object", i)]
    question = f"The passage says that {passage.people[i]} {passage.verbs[i]} {article(colour)} {colour} {thing}. Is that true?"
    options = [Option(text="Yes", concept="standard"), Option(text="No", concept="false")]
    tags = {"question": "claim", "premise": "true" if true else "false"}
    return _item(passage, f"{passage.clip}/claim", detail, "retain", question, "Answer yes or no.", options, int(not true), tags)


def named_item(passage: Passage, rng: np.random.Generator) -> Item:
    """A question that states no detail and so cannot be wrong, with the words on how to object."""
    kind, place = [*NOUNS][int(rng.integers(4))], [*NAMED][int(rng.integers(3))]
    answers = passage.answers(kind)
    options = [Option(text=a, concept="standard") for a in answers] + [Option(text=OBJECTION, concept="false")]
    question = f"Which {NOUNS[kind]} is named {place}?"
    return _item(
        passage, f"{passage.clip}/named", "colour", "retain", question, request(ANSWER[kind]), options, NAMED[place], {"question": "named"}
    )


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

    Every clip has four gap items: true and false by colour, true and false by object, asked by two types (:data:`ASKED`).
    Outside ``fit`` it has a retention item, a claim or a question about the order in turn. In val and test it has a pair of
    one type that is kept out of training (:data:`TRANSFER`).
    """
    rng, items = np.random.default_rng([seed, 2]), list[Item]()
    clips = CLIPS if clips is None else clips
    passages = draw_passages(clips, rng)
    for n, passage in enumerate(passages):
        for kind, detail in zip(ASKED[n % len(ASKED)], ("colour", "object"), strict=True):
            items += question_pair(passage, kind, detail, "gap", rng)
        if passage.split != "fit":
            items.append((claim_item, named_item)[n % 2](passage, rng))
        if passage.split in ("val", "test"):
            items += question_pair(passage, *TRANSFER[n % len(TRANSFER)], "transfer", rng)
    return (*items, *general_items(clips, modality="colour", concept="standard", objecting="false"))


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
