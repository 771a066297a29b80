"""Parse what a model generated into one of the item's options.

*Strict*: the text is an option, letter for letter, up to surrounding white space. *Lenient*: after lower-casing and dropping
punctuation, exactly one option occurs in it as whole words, counting the longest match first (so "not odd" is no "odd" where both
are options). A single letter keeps its case, so that "a dog" does not name option "A"; an answer that is nothing but the letter does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from gapclose.items import Item


def parse_strict(answer: str, item: Item) -> int | None:
    """Index of the option that ``answer`` is, or None."""
    texts = [o.text.strip() for o in item.options]
    return texts.index(answer.strip()) if answer.strip() in texts else None


def parse_lenient(answer: str, item: Item) -> int | None:
    """Index of the one option that ``answer`` names, or None when it names none or several."""
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
    return found[0] if len(found) == 1 else None


def _words(text: str) -> str:
    """Lower-case words (a single letter stays as it is), each between single spaces, so that ``in`` finds whole words only."""
    return " " + " ".join(w if len(w) == 1 else w.lower() for w in re.findall(r"\w+", text)) + " "


def parse_all(answers: Sequence[str], items: Sequence[Item], *, lenient: bool = False) -> np.ndarray:
    """Option indices (N,), -1 where the answer does not parse."""
    parse = parse_lenient if lenient else parse_strict
    parsed = (parse(a, i) for a, i in zip(answers, items, strict=True))
    return np.array([-1 if p is None else p for p in parsed], dtype=int)
