"""Parse what a model generated into one of the item's options.

*Strict*: the text is an option, letter for letter, up to surrounding white space. *Lenient*: after lower-casing and dropping
punctuation, exactly one option occurs in it as whole words, counting the longest match first (so "not odd" is no "odd" where both
are options). A single letter keeps its case, so that "a dog" does not name option "A"; an answer that is nothing but the letter does. An
"A" or "I" that begins a phrase ("A man is not there", "I see") is a word and no letter.

The one option that occurs must also be affirmed, or the answer parses as none: no English negation stands before it in its clause ("There
is no tumour", but "not visible" where that is the option), a letter is not part of a phrase ("in E major"), and a bare yes or no begins the
answer, ends it, or is said to be the answer ("I have no idea" does not say *no*).

:class:`Matching` adds what other prompts need: an answer that begins with its option and goes on, and a function of the user's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gapclose.items import Item

PHRASE = re.compile(r"['\u2019-]\w|[ \t]+(?!\w\b|(?:or|and|nor|not|is|because|since|as)\b)\w")
"""a phrase goes on after a word; after a letter that is an answer there is a stop, another letter, or a word of these"""
LEADS_ON = re.compile(rf"\b[AaIi]\b(?={PHRASE.pattern})")
"""an article or a pronoun"""
NAMED = re.compile(r"\b(answer is|answer|option|choice|letter)[\s:*(]*$", re.IGNORECASE)
"""what is said before a letter, whatever follows that"""
NEGATION = re.compile(r"\b(no|not|never|without|neither|nor|none|nothing|cannot|\w+n['`\u00b4\u02bc\u2018\u2019\uff07]t)\b", re.IGNORECASE)
CLAUSE = re.compile(r"[.,;:!?\n\u2013\u2014]|\bbut\b", re.IGNORECASE)
"""what ends a clause, and with it the reach of a negation"""


def parse_strict(answer: str, item: Item) -> int | None:
    """Index of the option that ``answer`` is, or None."""
    texts = [o.text.strip() for o in item.options]
    return texts.index(answer.strip()) if answer.strip() in texts else None


def parse_lenient(answer: str, item: Item) -> int | None:
    """Index of the one option that ``answer`` names, or None when it names none or several, or does not affirm the one."""
    strict = parse_strict(answer, item)
    if strict is not None:
        return strict
    left, found = _words(answer), []
    alone = [k for k, o in enumerate(item.options) if _words(o.text).lower() == left.lower()]
    if left.strip() and len(alone) == 1:
        return alone[0]
    for index in sorted(range(len(item.options)), key=lambda i: -len(_words(item.options[i].text))):
        words = _words(item.options[index].text)
        if words.strip() and words in left:
            found.append(index)
            left = left.replace(words, "  ")
    return found[0] if len(found) == 1 and _affirmed(answer, item.options[found[0]].text) else None


def _affirmed(answer: str, option: str) -> bool:
    """Whether ``answer``, which names no other option, says ``option`` as an answer somewhere, and denies it nowhere.

    A negation among the option's own words is no denial.
    """
    words = re.findall(r"\w+", option)
    letter, bare = len(words) == 1 and re.fullmatch(r"[^\W\d]", words[0]), " ".join(words).lower() in ("yes", "no")
    mention = re.compile(r"\b" + r"\W+".join(words) + r"\b", 0 if letter else re.IGNORECASE)
    said = False
    for found in mention.finditer(answer):
        before, after = answer[: found.start()], answer[found.end() :]
        first, last = not re.search(r"\w", before), not re.search(r"\w", after)
        in_phrase = letter and PHRASE.match(after) and not (first and after.lstrip()[:1].isupper())  # as in "B The dog barks."
        if (in_phrase or (bare and not first and not last)) and not NAMED.search(before):
            continue
        if NEGATION.search(mention.sub("", CLAUSE.split(before)[-1])):
            return False
        said = True
    return said


def _words(text: str) -> str:
    """Lower-case words (a single letter stays as it is), each between single spaces, so that ``in`` finds whole words only."""
    text = LEADS_ON.sub(lambda m: m[0] if NAMED.search(text, 0, m.start()) else f"_{m[0]}", text)
    return " " + " ".join(w if len(w) == 1 else w.lower() for w in re.findall(r"\w+", text)) + " "


def parse_all(answers: Sequence[str], items: Sequence[Item], *, lenient: bool = False) -> np.ndarray:
    """Option indices (N,), -1 where the answer does not parse."""
    parse = parse_lenient if lenient else parse_strict
    parsed = (parse(a, i) for a, i in zip(answers, items, strict=True))
    return np.array([-1 if p is None else p for p in parsed], dtype=int)


def parse_leading(answer: str, item: Item) -> int | None:
    """Index of the option with whose words ``answer`` begins ("No, there is a yes-man"), the longest of several, or None."""
    words, options = _words(answer).lower(), [_words(o.text).lower() for o in item.options]
    found = [k for k, option in enumerate(options) if option.strip() and words.startswith(option)]
    return max(found, key=lambda k: len(options[k])) if found else None


@dataclass(frozen=True, kw_only=True)
class Matching:
    """How generated answers are matched to options: exactly, then normalised, then by ``judge``."""

    leading: bool = False
    """whether an answer says its option first and then goes on, so that what follows must not confuse"""
    judge: Callable[[str, Item], Any] | None = None
    """(answer, item) -> text of an option, or None; asked for what names no option by itself"""

    def __call__(self, answers: Sequence[str], items: Sequence[Item]) -> np.ndarray:
        """Option indices (N,), -1 where nothing matches.

        Raises:
            ValueError: when ``judge`` fails, or names something that is no option of the item.
        """
        return np.array([self._match(a, i) for a, i in zip(answers, items, strict=True)], dtype=int)

    def _match(self, answer: str, item: Item) -> int:
        first = parse_leading(answer, item) if self.leading else None
        found = parse_lenient(answer, item) if first is None else first
        if found is not None or self.judge is None:
            return -1 if found is None else found
        try:
            said = self.judge(answer, item)
        except Exception as error:
            raise ValueError(
                f"prompts.match failed on the answer {answer!r} to item {item.id!r} ({type(error).__name__}: {error})"
            ) from error
        texts = [o.text for o in item.options]
        if said is not None and said not in texts:
            raise ValueError(
                f"prompts.match took the answer {answer!r} to item {item.id!r} for {said!r}; it must give one of {texts}, or None"
            )
        return -1 if said is None else texts.index(said)
