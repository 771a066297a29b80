"""Questions of the digits set: kinds, phrasings, and the words that answer them.

A gap question states a premise about one modality ("The image shows the digit 7.") and asks about a
consequence ("Is it odd or even?"). To accept the premise is to answer for the *claimed* digit. To
reject it is to answer ``unseen`` (the visual detail is wrong) or ``unheard`` (the audio detail is
wrong). The text alone does not show which is right.
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
"""used in val and test only: no probe and no target sees it (the base model was trained on it)"""


class Kind(NamedTuple):
    """One kind of question that presupposes a premise."""

    asks: tuple[str, ...]
    """phrasings of the question after the premise"""
    answer: Callable[[int], str]
    """claimed digit -> the word that accepts the premise"""


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
"""the kind excluded from fit and train"""
IN_DOMAIN = tuple(k for k in KINDS if k != TRANSFER)

CHECKS = ("Is that right?", "Check this claim.")
"""requests after a premise, which invite a rejection"""
CHECKING = ("check", "late", "bare")
"""kinds whose answer is a verdict about a claim. Item sets use ``check`` alone; the untaught base
model also learns from the others: ``late`` requests the check after a question that presupposes the
claim, ``bare`` states the claim and asks nothing"""
WHATS = {
    "vision": ("Which digit does the image show?", "What is the digit in the picture?"),
    "audio": ("Which digit does the audio say?", "What is the digit in the recording?"),
}


def gap_text(kind: str, modality: str, claim: int, phrasing: str, ask: int) -> str:
    """Return the premise that ``modality`` holds ``claim``, then the question."""
    return f"{PREMISES[modality][phrasing].format(claim)} {KINDS[kind].asks[ask]}"


def check_text(modality: str, claim: int, phrasing: str, ask: int) -> str:
    """Return the premise, then the request to check it."""
    return f"{PREMISES[modality][phrasing].format(claim)} {CHECKS[ask]}"


def late_check_text(kind: str, modality: str, claim: int, phrasing: str, ask: int, request: int) -> str:
    """Return the premise, the question, and the request to check the premise instead.

    Only the last words show which answer is wanted.
    """
    return f"{gap_text(kind, modality, claim, phrasing, ask)} {CHECKS[request]}"


def gap_options(kind: str) -> list[Option]:
    """Return the content words of a kind (all standard), then the two rejections."""
    words = dict.fromkeys(KINDS[kind].answer(d) for d in range(10))
    return [Option(text=w, concept="standard") for w in words] + list(REJECT.values())


def check_options() -> list[Option]:
    return [YES, *REJECT.values()]


def what_options() -> list[Option]:
    return [Option(text=NAMES[d], concept="standard") for d in range(10)]


def answer_words() -> list[str]:
    """Return every word that answers some question, once."""
    options = [o for kind in KINDS for o in gap_options(kind)] + check_options() + what_options()
    return list(dict.fromkeys(o.text for o in options))


def all_texts() -> list[str]:
    """Return all question texts of the set, on which the tokenizer is trained."""
    premises = list(product(MODALITIES, range(10), PREMISES["vision"], range(2)))
    texts = [gap_text(kind, *rest) for kind in KINDS for rest in premises]
    texts += [check_text(*rest) for rest in premises]
    return texts + [what for modality in MODALITIES for what in WHATS[modality]]
