"""What the embedded world asks: question kinds, their wordings, and the words that answer them.

A gap question states a premise about one modality ("The image shows the digit 7.") and asks something that follows from
it ("Is it odd or even?"). Whoever goes along with the premise answers for the *claimed* digit; whoever objects says
``unseen`` (the visual detail is wrong) or ``unheard`` (the audio detail is wrong). Text alone cannot tell which is right.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

from gapclose.data.digits.media_bank import NAMES
from gapclose.data.items import Option

CONCEPTS = ("standard", "false_vision", "false_audio")
ALARM = ("false_vision", "false_audio")
MODALITIES = ("vision", "audio")
REJECT = {"vision": Option(text="unseen", concept="false_vision"), "audio": Option(text="unheard", concept="false_audio")}
YES = Option(text="yes", concept="standard")

PREMISES = {
    "vision": {
        "shows": "The image shows the digit {}.",
        "see": "You can see a {} in the picture.",
        "given": "The digit written here is {}.",
        "someone": "Someone wrote down the digit {}.",
    },
    "audio": {
        "shows": "The audio says the digit {}.",
        "see": "You can hear a {} in the recording.",
        "given": "The digit spoken here is {}.",
        "someone": "Someone said aloud the digit {}.",
    },
}
"""modality -> phrasing -> sentence"""
HELD_OUT_PHRASING = "someone"
"""used in val and test only: no probe and no target ever saw it (the base model did)"""


class Kind(NamedTuple):
    """One kind of question that takes a premise for granted."""

    asks: tuple[str, ...]
    """wordings of what is asked after the premise"""
    answer: Callable[[int], str]
    """claimed digit -> the word of whoever goes along"""


KINDS = {
    "parity": Kind(("Is it odd or even?", "Is that number even or odd?"), lambda d: ("even", "odd")[d % 2]),
    "size": Kind(("Is it high or low?", "Is that number low or high?"), lambda d: "high" if d >= 5 else "low"),
    "alphabet": Kind(
        ("Is its name early or late in the alphabet?", "Does its name come late or early in the alphabet?"),
        lambda d: "early" if NAMES[d][0] < "p" else "late",  # eight, five, four, nine, one | seven, six, three, two, zero
    ),
    "next": Kind(("Which number comes next?", "What number follows it?"), lambda d: NAMES[d + 1]),
}
TRANSFER = "next"
"""the kind kept out of fit and train"""
IN_DOMAIN = tuple(k for k in KINDS if k != TRANSFER)

CHECKS = ("Is that right?", "Check this claim.")
"""asked after a premise: here objecting is invited"""
CHECKING = ("check", "late", "bare")
"""kinds whose answer is the verdict about a claim. Item sets ask ``check`` alone; only the never-taught base learns from the
others: ``late`` asks it after a question that takes the claim for granted, ``bare`` states the claim and asks nothing"""
WHATS = {
    "vision": ("Which digit does the image show?", "What is the digit in the picture?"),
    "audio": ("Which digit does the audio say?", "What is the digit in the recording?"),
}


def gap_text(kind: str, modality: str, claim: int, phrasing: str, ask: int) -> str:
    """The premise that ``modality`` holds ``claim``, then the question."""
    return f"{PREMISES[modality][phrasing].format(claim)} {KINDS[kind].asks[ask]}"


def check_text(modality: str, claim: int, phrasing: str, ask: int) -> str:
    """The premise, then the request to check it."""
    return f"{PREMISES[modality][phrasing].format(claim)} {CHECKS[ask]}"


def late_check_text(kind: str, modality: str, claim: int, phrasing: str, ask: int, request: int) -> str:
    """The premise, the question, and then the request to check the premise instead: only the last words tell which is wanted."""
    return f"{gap_text(kind, modality, claim, phrasing, ask)} {CHECKS[request]}"


def gap_options(kind: str) -> list[Option]:
    """The content words of a kind (all standard), then the two rejections."""
    words = dict.fromkeys(KINDS[kind].answer(d) for d in range(10))
    return [Option(text=w, concept="standard") for w in words] + list(REJECT.values())


def check_options() -> list[Option]:
    return [YES, *REJECT.values()]


def what_options() -> list[Option]:
    return [Option(text=NAMES[d], concept="standard") for d in range(10)]


def answer_words() -> list[str]:
    """Every word that answers some question, once."""
    options = [o for kind in KINDS for o in gap_options(kind)] + check_options() + what_options()
    return list(dict.fromkeys(o.text for o in options))


def all_texts() -> list[str]:
    """Every question text the world can ask: what the tokenizer is trained on."""
    premises = list(product(MODALITIES, range(10), PREMISES["vision"], range(2)))
    texts = [gap_text(kind, *rest) for kind in KINDS for rest in premises]
    texts += [check_text(*rest) for rest in premises]
    return texts + [what for modality in MODALITIES for what in WHATS[modality]]
