"""Short general questions with known answers: what a model must answer after training as it did before.

They are retention items of the sets for pretrained models. The questions are the same for every seed, and so are their
splits: what is trained on to stay is never what is measured. Every second one of a topic says how to object, as the questions
of a set do, so that a model does not learn to object to every prompt with that instruction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from gapclose.data.items import Item, Option

OBJECTION = "error"
"""the word that objects: one token for most tokenizers, as the answers are"""
HOW_TO_OBJECT = f"If the question has an error, answer: {OBJECTION}."
SHARES = {"train": 40, "val": 40, "test": 100}
"""split -> questions, in the order of :func:`questions`"""

CAPITALS = (
    "France Paris, Germany Berlin, England London, Japan Tokyo, Italy Rome, Spain Madrid, Russia Moscow, China Beijing, Egypt Cairo, "
    "Greece Athens, Austria Vienna, Norway Oslo, Sweden Stockholm, Finland Helsinki, Poland Warsaw, Portugal Lisbon, Ireland Dublin, "
    "Cuba Havana, Peru Lima, Turkey Ankara, Canada Ottawa, Iran Tehran, Iraq Baghdad, Kenya Nairobi, Hungary Budapest, Denmark Copenhagen, "
    "Belgium Brussels, Thailand Bangkok, Syria Damascus, Ukraine Kyiv"
)
OPPOSITES = (
    "hot cold, big small, up down, left right, open closed, day night, black white, fast slow, high low, long short, old new, rich poor, "
    "wet dry, hard soft, light dark, full empty, good bad, happy sad, early late, first last, strong weak, thick thin, near far, true false, "
    "inside outside, win lose, buy sell, push pull, love hate, clean dirty"
)
COLOURS = (
    "grass green, snow white, blood red, coal black, the sky blue, a banana yellow, a lemon yellow, milk white, a tomato red, spinach green, "
    "chocolate brown, a carrot orange, a ripe strawberry red, the sea blue, a polar bear white, a crow black, a frog green, wheat yellow, "
    "a pumpkin orange, a lime green"
)
FRENCH = (
    "house maison, dog chien, cat chat, water eau, bread pain, book livre, tree arbre, red rouge, blue bleu, day jour, night nuit, sun soleil, "
    "moon lune, milk lait, door porte, school école, friend ami, hand main, head tête, white blanc"
)
CATEGORIES = (
    "a dog animal, a rose plant, a hammer tool, a violin instrument, a cow animal, an oak plant, a saw tool, a piano instrument, "
    "a horse animal, a tulip plant, a drill tool, a trumpet instrument, a tiger animal, a daisy plant, a wrench tool, a flute instrument, "
    "a lion animal, a pine plant, a chisel tool, a cello instrument"
)
PLURALS = (
    "child children, mouse mice, foot feet, tooth teeth, man men, woman women, goose geese, box boxes, city cities, leaf leaves, "
    "knife knives, bus buses, baby babies, wolf wolves, book books, tree trees, party parties, dish dishes, hero heroes, car cars"
)
NUMBERS = (
    "3 three, 7 seven, 12 twelve, 5 five, 20 twenty, 9 nine, 15 fifteen, 2 two, 11 eleven, 8 eight, 30 thirty, 6 six, 13 thirteen, "
    "4 four, 50 fifty, 10 ten, 1 one, 40 forty, 14 fourteen, 60 sixty"
)


class Question(NamedTuple):
    """One question, its right answer, and the wrong answers beside it."""

    topic: str
    text: str
    answer: str
    others: tuple[str, ...]


def _pairs(table: str) -> list[tuple[str, str]]:
    """``(subject, last word)`` of every entry of a table."""
    return [(subject, answer) for subject, _, answer in (entry.rpartition(" ") for entry in table.split(", "))]


def _with_others(topic: str, wording: str, pairs: list[tuple[str, str]]) -> list[Question]:
    """A question per pair; the wrong answers are those of the next pairs that differ."""
    found = []
    for n, (subject, answer) in enumerate(pairs):
        following = (pairs[(n + k) % len(pairs)][1] for k in range(1, len(pairs)))
        others = [other for other in dict.fromkeys(following) if other != answer][:3]
        found.append(Question(topic, wording.format(subject), answer, tuple(others)))
    return found


def _sums() -> list[Question]:
    """Additions and subtractions with results between 0 and 20, given as digits."""
    found = []
    for a in range(3, 18):
        b = (7 * a) % 9 + 1
        for sign, result in (("+", a + b), ("-", a - b)):
            if 0 <= result <= 20:
                others = tuple(str(result + d) for d in (1, 2, -1) if result + d >= 0)
                found.append(Question("sums", f"What is {a} {sign} {b}? Answer with a number only.", str(result), others))
    return found


def questions() -> list[Question]:
    """All questions, topics in turn, so that every share of them holds every topic."""
    by_topic = [
        _with_others("capitals", "What is the capital of {}? Answer with one word.", _pairs(CAPITALS)),
        _with_others("opposites", 'What is the opposite of "{}"? Answer with one word in lower case.', _pairs(OPPOSITES)),
        _sums(),
        _with_others("colours", "What colour is {}? Answer with one word in lower case.", _pairs(COLOURS)),
        _with_others("french", 'What is the French word for "{}"? Answer with one word in lower case.', _pairs(FRENCH)),
        _with_others(
            "categories", "Is {} an animal, a plant, a tool or an instrument? Answer with one word in lower case.", _pairs(CATEGORIES)
        ),
        _with_others("plurals", 'What is the plural of "{}"? Answer with one word in lower case.', _pairs(PLURALS)),
        _with_others("numbers", "Write the number {} as one word in lower case.", _pairs(NUMBERS)),
    ]
    order = sorted((place / len(topic), number, place) for number, topic in enumerate(by_topic) for place in range(len(topic)))
    return [by_topic[number][place] for _, number, place in order]


def offers(asked: Sequence[Question]) -> list[bool]:
    """Which questions say how to object: every second one of a topic, beginning with the first in every other topic."""
    latest: dict[str, bool] = {}
    found = []
    for question in asked:
        latest[question.topic] = not latest.get(question.topic, len(latest) % 2 == 0)
        found.append(latest[question.topic])
    return found


def general_items(clips: Mapping[str, int], modality: str, concept: str, objecting: str) -> Iterator[Item]:
    """The retention items of a set; each question is a clip of its own.

    Args:
        clips: split -> clips of the set; a split gets at most as many questions.
        modality: of the set; the questions are about none.
        concept: expressed by the answers.
        objecting: concept expressed by :data:`OBJECTION`.
    """
    asked, start = questions(), 0
    for split, share in SHARES.items():
        chosen = asked[start : start + min(share, clips.get(split, 0))]
        for number, (question, offered) in enumerate(zip(chosen, offers(chosen), strict=True)):
            options = [Option(text=o, concept=concept) for o in sorted({question.answer, *question.others})]
            gold, text = [o.text for o in options].index(question.answer), question.text
            if offered:
                options.append(Option(text=OBJECTION, concept=objecting))
                text = f"{text} {HOW_TO_OBJECT}"
            yield Item(
                id=f"general-{split}-{number:03d}", clip=f"general-{split}-{number:03d}", split=split, modality=modality,
                messages=[{"role": "user", "content": [{"type": "text", "text": text}]}],
                options=options, gold=gold, purpose="retain",
                tags={"question": "general", "topic": question.topic},
            )  # fmt: skip
        start += share
