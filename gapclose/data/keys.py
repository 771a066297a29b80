"""Keys of items (id, clip, split, twin, modality, tags), in one form for all types of columns.

Keys distinguish and group items. A patient may be ``3`` in a column of integers, ``3.0`` once a
cell of that column is empty, and ``"3"`` in a CSV file. All three give the key ``3``. A missing
value gives the empty key, which the readers refuse or leave out.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np

from gapclose.core.errors import ItemError, shown

MISSING = frozenset(("nan", "NaN", "NAN", "NaT", "None", "<NA>", "null", "NULL"))
"""texts that programs write for a missing value"""
EXACT = 2**53
"""from here on a float no longer distinguishes neighbouring integers"""
WHOLE = re.compile(r"(-?\d+)\.0+", re.ASCII)
MOMENT = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:?\d\d)?", re.ASCII)
UNSEEN = "\ufeff\u200b\u2060"
"""zero-width characters that Python does not count as white space"""


def text_of(value: Any) -> str:
    """Return the text of a table's cell, empty for a missing one (None, NaN, NaT).

    Texts lose only surrounding white space. Numbers without a fraction are written without one.

    Raises:
        ItemError: for a list, an object, bytes that are not UTF-8, infinity, and a float too large
            to be exact.
    """
    value = value.item() if isinstance(value, np.generic) and not isinstance(value, np.datetime64) else value
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    if isinstance(value, str):
        return value.strip()
    if _is_missing(value):
        return ""
    if isinstance(value, bool | int | UUID):
        return str(value)
    if isinstance(value, float | Decimal):
        return _number(value)
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            return bytes(value).decode().strip()
        except UnicodeDecodeError as error:
            raise ItemError(f"is {shown(bytes(value))}, bytes that are no text in UTF-8; write a name") from error
    if isinstance(value, datetime):
        return _moment(value)
    if isinstance(value, date | time):
        return value.isoformat()
    raise ItemError(f"is {shown(value)}, a {type(value).__name__}; write one text or number")


def _is_missing(value: Any) -> bool:
    if value is None:
        return True
    try:
        return bool(value != value)  # NaN and NaT differ from themselves
    except (TypeError, ValueError):  # pandas' NA has no truth value
        return type(value).__name__ == "NAType"


def _number(value: float | Decimal) -> str:
    if value in (float("inf"), float("-inf")):
        raise ItemError(f"is {value}; write a finite number, or a text")
    if value != int(value):
        return format(value.normalize(), "f") if isinstance(value, Decimal) else repr(value)
    if isinstance(value, float) and abs(value) >= EXACT:
        raise ItemError(
            f"is {value!r}, a float that no longer tells neighbouring whole numbers apart; store the column as whole numbers or texts"
        )
    return str(int(value))


def _moment(value: datetime) -> str:
    """Return ISO 8601: in UTC if the zone is known; without a zone, midnight is the date alone."""
    if value.tzinfo is not None:
        return datetime.fromtimestamp(value.timestamp(), UTC).isoformat()
    text = datetime.isoformat(value)
    return text[:10] if text[10:] == "T00:00:00" else text


def fold(value: Any) -> str:
    """Return a cell in a form in which equal names are equal.

    Unicode is composed (NFC), runs of white space become one space, the text of an integer loses
    its fraction ("3.0" is 3), and a point in time becomes ISO 8601. Unlike :func:`key`, it keeps
    texts such as "None".

    Raises:
        ItemError: as :func:`text_of`, and for control characters inside a text.
    """
    text = unicodedata.normalize("NFC", text_of(value))
    text = " ".join(text.strip(UNSEEN).split()).strip(UNSEEN)
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        raise ItemError(f"is {shown(text)}, which holds control characters; remove them")
    if whole := WHOLE.fullmatch(text):
        return whole[1] if whole[1] != "-0" else "0"
    if MOMENT.fullmatch(text):
        try:
            return _moment(datetime.fromisoformat(text))
        except ValueError:  # e.g. the 30th of February
            return text
    return text


def key(value: Any) -> str:
    """Return the key of a cell: :func:`fold`, but empty for a missing value.

    Texts that programs write for it (:data:`MISSING`) count as missing, too.

    Raises:
        ItemError: as :func:`fold`.
    """
    found = fold(value)
    return "" if found in MISSING else found


class Spellings:
    """Records how keys are spelled, to report merged keys, and similar keys that were not merged."""

    def __init__(self) -> None:
        self.spelled: dict[str, dict[str, dict[Any, None]]] = defaultdict(lambda: defaultdict(dict))
        """name of the field -> key -> its spellings"""

    def add(self, name: str, value: Any, found: str) -> None:
        """Record one value of the field ``name`` (clip, modality, ...) and its key."""
        self.spelled[name][found].setdefault(value if isinstance(value, str) else _kind(value))

    def taken_for_one(self) -> list[str]:
        """Describe texts with one key that differ by more than surrounding white space."""
        found = []
        for name, keys in self.spelled.items():
            several = {of: texts for of, how in keys.items() if len(texts := sorted({t.strip() for t in how if isinstance(t, str)})) > 1}
            for of, texts in list(several.items())[:3]:
                found.append(f"{name}: {' and '.join(map(shown, texts))} are taken for one, {of!r}" + _more(several, 3))
        return found

    def taken_for_two(self) -> list[str]:
        """Describe keys that differ only in case, leading zeros, or equal-looking letter forms."""
        found = []
        for name, keys in self.spelled.items():
            alike: dict[str, list[str]] = defaultdict(list)
            for of in keys:
                alike[_loose(of)].append(of)
            several = {of: texts for of, texts in alike.items() if len(texts) > 1}
            for texts in list(several.values())[:3]:
                found.append(f"{name}: {' and '.join(map(repr, texts))} are taken for different ones" + _more(several, 3))
        return found

    def lost_zeros(self, name: str) -> list[tuple[str, str]]:
        """Return pairs of keys of ``name``: a text with leading zeros, and its number without."""
        keys = self.spelled[name]
        padded = {_loose(of): of for of, how in keys.items() if of != _loose(of) and any(isinstance(t, str) for t in how)}
        return [(padded[of], of) for of, how in keys.items() if of in padded and any(t in (int, float) for t in how)]


def _kind(value: Any) -> type:
    return int if isinstance(value, int | np.integer) else float if isinstance(value, float | np.floating) else type(value)


def _more(several: dict[str, list[str]], told: int) -> str:
    return f" (and so are {len(several) - told} more pairs)" if len(several) > told else ""


def _loose(found: str) -> str:
    text = unicodedata.normalize("NFKC", found).casefold()
    return text.lstrip("0") or "0" if re.fullmatch(r"\d+", text, re.ASCII) else text
