"""Match a generated answer to one of the item's options.

*Strict*: the answer equals an option, except for surrounding white space. *Lenient*: exactly one
option occurs in the answer as complete words, with the longest match first (so "not odd" does not
contain "odd" if both are options). :mod:`gapclose.data.answer_words` defines words, their symbols,
and the comparison of numbers. A single letter keeps its case, so that "a dog" does not name option
"A". An answer that is only the letter names it in either case. An "A" or "I" that begins a phrase
("A man is not there", "I see") is a word, not a letter.

A number counts with its unit and its comparison ("$5" is not "5 %", "< 5" is not "5"). If no option
has it in this form, its value alone counts, provided that the options differ in value. A percentage
then also counts as its share ("50 %" for option "0.5").

The option must also be affirmed, or the answer does not parse. That means:

- No negation precedes it in its clause ("There is no tumour"), except as part of the option ("not
  visible"). This covers English and Chinese; in Japanese and Korean the negation follows. Negations
  of other languages are not detected.
- A letter is not part of a phrase ("in E major").
- A bare yes or no begins the answer, ends it, or is called the answer ("I have no idea" does not
  say *no*).

Idioms that affirm are not negations ("no doubt", "not only"). If yes and no both occur, the one
that begins the answer, up to a comma or another stop, wins ("Yes, there is no dog"), unless the
other is an answer by itself, too ("Yes. No.").

:class:`AnswerMatcher` adds answers that begin with an option and continue, and a user's function.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gapclose.core.errors import ErrorCollector
from gapclose.data.answer_words import HANGUL, SPACELESS, Word, fold, plain_text, words
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item

PHRASE = re.compile(
    r"['\u2019-]\w|[ \t]+(?!\w\b|(?:or|and|nor|not|is|because|since|as)\b)\w"
    rf"|(?![是为為项項选選正对對不が는은이가입をはで])[{SPACELESS}{HANGUL}]"
)
"""continuation of a phrase after a word; a letter that is an answer precedes a stop, another
letter, or one of the listed words"""
LEADS_ON = re.compile(rf"\b[AaIi]\b(?={PHRASE.pattern})")
"""an A or I that is an article or a pronoun"""
NAMED = re.compile(r"\b(answer is|answer|option|choice|letter)[\s:*(\[\"'\u201c\u300c\u300e]*$", re.IGNORECASE)
"""words before a letter that mark it as the answer, regardless of what follows"""
NEGATION = re.compile(
    r"\b(no|not|never|without|neither|nor|none|nothing|cannot|\w+n['`\u00b4\u02bc\u2018\u2019\uff07]t)\b|[不没沒無无未]|非(?!常)",
    re.IGNORECASE,
)
IDIOM = re.compile(
    r"\b(?:no\s+(?:doubts?|question\s+that)|(?:not|\w+n't)\s+(?:only|just|merely)|without\s+(?:a\s+|any\s+)?doubt|nothing\s+but)\b"
    r"|[无無](?=疑)|不(?=[仅僅只])",
    re.IGNORECASE,
)
"""phrases that contain a negation but affirm; in a :func:`plain_text`"""
DENIED_AFTER = re.compile("ない|なく|なかっ|ません|じゃな|아니|아닙|없|않")
"""negations that follow the denied word"""
CLAUSE = re.compile(r"[.,;:!?\n\u2013\u2014\u3001\u3002\u060c\u061b\u061f\u06d4\u0964]|\bbut\b|但|不过|不過|而是", re.IGNORECASE)
"""end of a clause, which also ends the reach of a negation"""
BARE = {("yes",), ("no",), ("是",), ("否",), ("对",), ("對",), ("错",), ("錯",), ("不",), ("有",), ("无",), ("無",)}
"""options that occur as words in most sentences"""
STOP = re.compile(r"[\"'`*_)\]}>\u201d]*\s*[.,;:!\n\u2013\u2014\u3002]")
"""follows a bare option that is the complete answer"""
SENTENCE = ".,;:!?\u2026\u3001\u3002"
EDGES = "\"'`*_()[]{}<>\u201c\u201d\u300c\u300d\u300e\u300f"
"""characters that may surround an option that is a symbol"""


def parse_strict(answer: str, item: Item) -> int | None:
    """Return the index of the option that equals ``answer``, or None.

    Composed and decomposed accents are equal.
    """
    texts, answer = [_composed(o.text) for o in item.options], _composed(answer)
    return texts.index(answer) if answer in texts else None


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


def parse_lenient(answer: str, item: Item) -> int | None:
    """Return the index of the one option that ``answer`` names and affirms, or None."""
    strict = parse_strict(answer, item)
    if strict is not None:
        return strict
    text, options = plain_text(answer), [_option(o.text) for o in item.options]
    said = _read(text, [o.text for o in item.options])
    alone = [k for k, option in enumerate(options) if [fold(w.key) for w in option] == [fold(w.key) for w in said]]
    if said and len(alone) == 1:
        return alone[0]
    named = _find(said, options)
    return _one(text, options, named) if named else _by_value(text, said, options)


def _by_value(text: str, said: Sequence[Word], options: Sequence[Sequence[Word]]) -> int | None:
    """Return the one option named when numbers count without unit, or percentages as shares.

    None where the two readings differ, or neither names one.
    """
    found = set()
    for form in (lambda w: w.number or w.key, lambda w: w.share or w.key):
        loose = [[replace(w, key=form(w)) for w in option] for option in options]
        if len({tuple(w.key for w in option) for option in loose}) == len(options):
            found |= {_one(text, loose, named) if (named := _find([replace(w, key=form(w)) for w in said], loose)) else None} - {None}
    return found.pop() if len(found) == 1 else None


def _one(text: str, options: Sequence[Sequence[Word]], named: dict[int, list[tuple[int, int]]]) -> int | None:
    """Return the option if only one is named and the text affirms it."""
    ((index, spans), *others) = _leading(text, options, named).items()
    return index if not others and _affirmed(text, options[index], spans) else None


def _leading(text: str, options: Sequence[Sequence[Word]], named: dict[int, list[tuple[int, int]]]) -> dict[int, list[tuple[int, int]]]:
    """Of several bare options, keep the one that begins the text, up to a stop.

    Return ``named`` unchanged if an option is not bare, or another one is an answer by itself.
    """
    (start, end), index = min((span, k) for k, spans in named.items() for span in spans)
    if not all(tuple(w.key for w in options[k]) in BARE for k in named) or re.search(r"\w", text[:start]) or not STOP.match(text, end):
        return named
    for start, end in (span for k, spans in named.items() if k != index for span in spans):
        clause = CLAUSE.split(text[:start])[-1] + CLAUSE.split(text[end:])[0]
        if NAMED.search(text[:start]) or not re.search(r"\w", clause):
            return named
    return {index: named[index]}


def _find(said: Sequence[Word], options: Sequence[Sequence[Word]]) -> dict[int, list[tuple[int, int]]]:
    """Return option -> its places in the text, for every option that occurs.

    No word counts for two options; longer options come first.
    """
    named, left = dict[int, list[tuple[int, int]]](), [w.key for w in said]
    for index in sorted(range(len(options)), key=lambda k: (-len(options[k]), -sum(len(w.key) for w in options[k]))):
        keys = [w.key for w in options[index]]
        for at in range(len(left) - len(keys) + 1) if keys else ():
            if left[at : at + len(keys)] == keys:
                named.setdefault(index, []).append((said[at].start, said[at + len(keys) - 1].end))
                left[at : at + len(keys)] = [""] * len(keys)
    return named


def _read(text: str, options: Sequence[str] = ()) -> list[Word]:
    """Return the words of a :func:`plain_text`, in order.

    An article or a pronoun is not a letter, and the *no* of an idiom is a different word. An option
    that consists of symbols counts as a word.
    """
    leading = {m.start() for m in LEADS_ON.finditer(text) if not NAMED.search(text, 0, m.start())}
    idioms = {m.start() for m in IDIOM.finditer(text)}
    found = [replace(w, key=f"_{fold(w.key)}", letter=False) if w.start in (leading if w.letter else idioms) else w for w in words(text)]
    for symbol in {s for o in options if (s := plain_text(o).strip()) and not words(s)}:
        around = f"[\\s{re.escape(EDGES)}]"
        alone = not symbol.strip(SENTENCE)  # punctuation occurs in every sentence
        place = rf"^\s*{re.escape(symbol)}\s*$" if alone else rf"(?:^|(?<={around})){re.escape(symbol)}(?=$|{around}|[{SENTENCE}])"
        found += [Word(key=symbol, start=m.start(), end=m.end()) for m in re.finditer(place, text)]
    return sorted(found, key=lambda w: w.start)


@functools.lru_cache(maxsize=65536)
def _option(text: str) -> tuple[Word, ...]:
    """Return the words of an option; an option of symbols is one word."""
    plain = plain_text(text)
    found = tuple(_read(plain))
    return found if found or not plain.strip() else (Word(key=plain.strip(), start=0, end=len(plain)),)


def _affirmed(text: str, option: Sequence[Word], spans: Sequence[tuple[int, int]]) -> bool:
    """Whether ``text`` answers ``option`` in one of ``spans``, and denies it in none.

    The text names no other option. A negation within the option does not deny it.
    """
    letter, bare = len(option) == 1 and option[0].letter, tuple(w.key for w in option) in BARE
    others = text
    for start, end in spans:
        others = others[:start] + " " * (end - start) + others[end:]
    said, others = False, IDIOM.sub(lambda m: " " * len(m[0]), others)
    for start, end in spans:
        before, after = text[:start], text[end:]
        first, last = not re.search(r"\w", before), not re.search(r"\w", after)
        in_phrase = letter and PHRASE.match(after) and not (first and after.lstrip()[:1].isupper())  # as in "B The dog barks."
        if (in_phrase or (bare and not first and not last)) and not NAMED.search(before):
            continue
        if NEGATION.search(CLAUSE.split(others[:start])[-1]) or DENIED_AFTER.search(CLAUSE.split(others[end:])[0]):
            return False
        said = True
    return said


def same_to_the_matcher(options: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of option texts that no generated answer can distinguish."""
    first, pairs = dict[tuple[str, ...], str](), list[tuple[str, str]]()
    for text in options:
        keys = tuple(w.key for w in _option(text))
        if keys in first:
            pairs.append((first[keys], text))
        first.setdefault(keys, text)
    return pairs


def check_told_apart(items: ItemSet, problems: ErrorCollector, prompt: str | None = None) -> None:
    """Add to ``problems`` every pair of an item's options that the matcher cannot distinguish.

    Args:
        prompt: prompt of the items, if it is not the run's own.
    """
    asked, seen = f" in the prompt {prompt!r}" if prompt else "", dict[tuple[str, ...], str]()
    for item in items:
        seen.setdefault(tuple(o.text for o in item.options), item.id)
    for texts, ident in seen.items():
        for one, other in same_to_the_matcher(texts):
            problems.add(
                f"{items.where}: item {ident!r}{asked}: no generated answer could tell option {one!r} from option {other!r}, which are the "
                "same number, or the same words without case and punctuation; change one of them"
            )


def unmentioned(text: str, options: Sequence[str]) -> list[str]:
    """Return the options that a text does not name as complete words.

    A letter counts in its own case, wherever it stands alone.
    """
    plain = plain_text(text)
    said, letters = _read(plain, options), {w.key for w in words(plain) if w.letter}
    read = [_option(o) for o in options]
    found = [w[0].key in letters if len(w) == 1 and w[0].letter else bool(_find(said, [w])) for w in read]
    return [option for option, named in zip(options, found, strict=True) if not named]


def parse_all(answers: Sequence[str], items: Sequence[Item], *, lenient: bool = False) -> np.ndarray:
    """Return option indices (N,), -1 where the answer does not parse."""
    parse = parse_lenient if lenient else parse_strict
    parsed = (parse(a, i) for a, i in zip(answers, items, strict=True))
    return np.array([-1 if p is None else p for p in parsed], dtype=int)


def parse_leading(answer: str, item: Item) -> int | None:
    """Return the index of the option that begins ``answer`` ("No, there is a yes-man"), or None.

    The longest option wins.
    """
    said = [fold(w.key) for w in _read(plain_text(answer), [o.text for o in item.options])]
    options = [[fold(w.key) for w in _option(o.text)] for o in item.options]
    found = [k for k, option in enumerate(options) if option and said[: len(option)] == option]
    return max(found, key=lambda k: len(options[k])) if found else None


@dataclass(frozen=True, kw_only=True)
class AnswerMatcher:
    """Matches generated answers to options: exactly, then normalised, then by ``judge``."""

    leading: bool = False
    """whether answers begin with their option and continue; the first words are then matched before
    anything else"""
    judge: Callable[[str, Item], Any] | None = None
    """(answer, item) -> text of an option, or None; called for answers that name no option"""

    def __call__(self, answers: Sequence[str], items: Sequence[Item]) -> np.ndarray:
        """Return option indices (N,), -1 where nothing matches.

        Raises:
            ValueError: when ``judge`` fails, or returns a text that is not an option of the item.
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
