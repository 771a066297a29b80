"""Split a text into words and numbers, so that a generated answer can be compared with an option.

- The text is normalised: compatibility characters (full-width letters, ligatures) and decomposed
  accents (Unicode NFKC), one kind of apostrophe and of minus, decimal digits of every script as 0
  to 9, no invisible characters, no Arabic or Hebrew vowel points.
- Words are compared after full case folding; dotted and dotless i are equal. A single letter keeps
  its case.
- Scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) are read
  character by character. The end of a Korean word is open, because particles follow it.
- Symbols that belong to a word are part of it: ``C++``, ``C#``, ``A+``, ``.NET``.
- Numbers are compared by value: sign, decimals, thousands (``5,000``, ``5.000.000``, ``5 000``,
  ``1,00,000``), ``1e3``, ``10^3``, ``1/2``, ``1 1/2``, ``5 million``, ``minus 5``. A comma is
  decimal where it cannot separate thousands (``2,5``, ``0,500``); a single point is always decimal.
- A unit sign (``$5``, ``5 %``, ``5 °C``, ``18+``) and a comparison (``< 5``) are part of the
  number. Times, dates, versions and ranges (``5:30``, ``2-3``) are one word each.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from fractions import Fraction

SPACELESS = (
    "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"  # kana
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e80-\u0eff\u1000-\u109f\u1780-\u17d3"  # Thai, Lao, Burmese, Khmer
)
HANGUL = "\uac00-\ud7a3\u3131-\u318e"
APART, SYLLABLE = re.compile(f"[{SPACELESS}]"), re.compile(f"[{HANGUL}]")
WORD_BEFORE = f"(?<![^\\W{SPACELESS}{HANGUL}])"
"""not after a word of a script with spaces"""

APOSTROPHES = dict.fromkeys(map(ord, "\u00b4\u02bc\u2018\u2019\uff07"), "'")
PLAIN = {ord("\u2044"): "/", ord("\u2212"): "-", ord("\u066b"): ".", ord("\u066c"): ",", ord("\u066a"): "%"}
UNSEEN = re.compile("[\ufe00-\ufe0f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0640\u064b-\u0652\u0670]")
"""variation selectors, Hebrew and Arabic vowel points, the Arabic lengthening stroke"""
RAISED = re.compile("(?<=\\d)([\u207a\u207b]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+)")
ANSWER_IS = re.compile(r"(?:正[确確])?答案[是为為選选]?|答えは?|정답은?|답은|(?:[选選][择擇项項]?|[选選])(?=\s*[(\[\"「『]?[A-Za-z0-9])")
"""words that precede the answer in Chinese, Japanese and Korean"""

LEADING_SIGN = re.compile(
    rf"(?P<compare>(?<![\w\"'/=-])(?:<=|>=|[<>≤≥])\s*)?(?P<sign>{WORD_BEFORE}(?<![)\]}}.%-])[-+\u2013])?"
    r"(?P<money>[$€£¥₹₩₽₺฿])?(?P<inner>(?<=[$€£¥₹₩₽₺฿])-)?(?=\.?\d)"
)
GROUPED = re.compile(
    r"(?:[1-9]\d{0,2}(?:,\d{2,3})*,\d{3}(?:\.\d+)?|[1-9]\d{0,2}(?:\.\d{3}){2,}(?:,\d+)?|[1-9]\d{0,2}(?:\.\d{3})+,\d+"
    r"|[1-9]\d{0,2}(?P<gap>['_ ])\d{3}(?:(?P=gap)\d{3})*(?:[.,]\d+)?)(?!\d|[.,]\d)"
)
COMPOUND = re.compile(r"\d+(?:(?P<by>[:/-])\d+(?:(?P=by)\d+)+|(?:[.,]\d+){2,}|:\d+)(?!\d)")
DIGITS = re.compile(r"[\d.,]+")
DECIMAL = re.compile(r"\d*[.,]\d+|\d+")
POWER = re.compile(r"[eE]([+-]?\d{1,3})(?!\w)|\s*[\u00d7x*·]\s*10\s*\^\s*([+-]?\d{1,3})(?!\w)")
RAISED_TO, OVER, MIXED = (
    re.compile(r"\^([+-]?\d{1,2})(?!\d)"),
    re.compile(r"/(\d{1,9})(?![\d/])"),
    re.compile(r" (\d{1,9})/(\d{1,9})(?!\d)"),
)
SCALE = re.compile(r"\s(hundred|thousand|million|billion)\b", re.IGNORECASE)
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
UNIT = re.compile(r"\s?\\?([%‰])|\s?([$€£¥₹₩₽₺฿])(?![\d])|\s?(°(?:\s?[CFK]\b)?)|(\+)(?!\s*\d)")
MEASURE = re.compile(r"(?:[mcdk]?m|[mk]?g|m?s|min|h|[kM]?Hz|dB|m?l|px|k?[VW])(?!\w)")
"""units that may follow a number without a space; with other letters, number and letters are one
word, as in *3D* and *1st*"""
SUFFIX, PREFIX = re.compile(r"[+#]+(?!\w)"), re.compile(r"(?<![\w.)\]])\.(?=[^\W\d]{2})")
LONGEST = 300
"""digits of a number; longer ones are read as a word"""


@dataclass(frozen=True, slots=True)
class Word:
    """One word or number of a text, and its position."""

    key: str
    """the compared form"""
    start: int
    end: int
    number: str | None = None
    """value of a number, without unit and comparison"""
    share: str | None = None
    """value of a percentage as a fraction of 1 (``50 %``: that of 0.5)"""
    letter: bool = False
    """a single letter of a script with spaces"""


def plain_text(text: str) -> str:
    """Return the text in the normalised form that :func:`words` reads; letters keep their case."""
    text = RAISED.sub(lambda m: "^" + unicodedata.normalize("NFKC", m[1]), text.translate(APOSTROPHES))
    text = re.sub("(?<=\\d)[\u00a0\u2009\u202f](?=\\d{3}(?!\\d))", "", text)
    text = re.sub("(?<=\\d)(?=[\u00bc-\u00be\u2150-\u215e])", " ", text)
    text = "".join(c for c in UNSEEN.sub("", text) if unicodedata.category(c) != "Cf")
    text = unicodedata.normalize("NFKC", text).translate(PLAIN)
    text = "".join(c if c.isascii() else str(unicodedata.decimal(c, c)) for c in text)
    return ANSWER_IS.sub(" answer is ", text)


def fold(word: str) -> str:
    """Return a word without case."""
    return word.casefold().replace("i\u0307", "i").replace("\u0131", "i")


def words(text: str) -> list[Word]:
    """Return the words and numbers of a :func:`plain_text`, in order."""
    found, at = list[Word](), 0
    while at < len(text):
        word = _number(text, at) or _word(text, at)
        if word is None:
            at += 1
            continue
        last = found[-1] if found else None
        if word.number and last and last.key in ("minus", "negative") and not (len(found) > 1 and found[-2].number):
            found[-1] = _negated(word, last.start)
        else:
            found.append(word)
        at = word.end
    return found


def _word(text: str, at: int) -> Word | None:
    dot = PREFIX.match(text, at)
    start = at + (dot is not None)
    if not _in_word(text[start]):
        return None
    if APART.match(text[start]):
        return Word(key=text[start], start=start, end=start + 1)
    if SYLLABLE.match(text[start]):
        begins = "" if start and SYLLABLE.match(text[start - 1]) else "^"
        return Word(key=begins + text[start], start=start, end=start + 1)
    end = start
    while end < len(text) and _in_word(text[end]) and not APART.match(text[end]) and not SYLLABLE.match(text[end]):
        end += 1
    suffix = SUFFIX.match(text, end)
    end = suffix.end() if suffix else end
    single = end - start == 1 and dot is None
    return Word(key=text[start] if single else fold(text[at:end]), start=at, end=end, letter=single and not text[start].isdigit())


def _in_word(character: str) -> bool:
    return character == "_" or unicodedata.category(character)[0] in "LMN"


def _number(text: str, at: int) -> Word | None:
    """Return the number, or the range of numbers, that begins at a position, or None."""
    first = _single(text, at)
    if first is None or first.number is None:
        return first
    keys, numbers, end = [first.key], [first.number], first.end
    while text[end : end + 1] in ("-", "\u2013") and text[end + 1 : end + 2].isdigit():
        other = _single(text, end + 1)
        if other is None or other.number is None:
            break
        keys.append(other.key)
        numbers.append(other.number)
        end = other.end
    return first if len(keys) == 1 else Word(key="\u2013".join(keys), start=at, end=end, number="\u2013".join(numbers))


def _single(text: str, at: int) -> Word | None:
    """Return the one number that begins at a position, or None.

    A time, a date or a version is a word without a value.
    """
    lead = LEADING_SIGN.match(text, at)
    if lead is None or (text[lead.end()] == "." and at and (text[at - 1].isalnum() or text[at - 1] == ".")):
        return None
    read = _value(text, lead.end())
    if read is None:
        return None
    value, end = read
    if isinstance(value, str):
        return Word(key=value, start=at, end=end)
    value = -value if (lead["sign"] or lead["inner"] or "") in ("-", "\u2013") else value
    unit, compare = lead["money"] or "", (lead["compare"] or "").strip().replace("<=", "≤").replace(">=", "≥")
    if after := UNIT.match(text, end):
        unit += re.sub(r"\s", "", next(g for g in after.groups() if g)).lower()
        end = after.end()
    share = {"%": 100, "‰": 1000}.get(unit)
    return Word(key=f"{compare}{value}{unit}", start=at, end=end, number=str(value), share=str(value / share) if share else None)


def _value(text: str, at: int) -> tuple[Fraction | str, int] | None:
    """Return the value and the end of the digits that begin at a position, or None.

    The value is a text for a time, a date, a version, or too many digits. Digits within a word
    (*3D*) give None.
    """
    if (long := DIGITS.match(text, at)) is not None and len(long[0]) > LONGEST:
        return long[0], long.end()
    if (grouped := GROUPED.match(text, at)) is not None:
        digits, end = grouped[0], grouped.end()
        point = "," if re.search(r"\.\d{3}.*,\d+$|\.\d{3}\.", digits) or (grouped["gap"] and "," in digits) else "."
        value = Fraction("".join("." if c == point else c for c in digits if c.isdigit() or c == point))
    elif (compound := COMPOUND.match(text, at)) is not None:
        return compound[0], compound.end()
    else:
        found = DECIMAL.match(text, at)
        if found is None:
            return None
        value, end = Fraction(found[0].replace(",", ".")), found.end()
    if power := POWER.match(text, end):
        value, end = value * Fraction(10) ** int(power[1] or power[2]), power.end()
    elif (raised := RAISED_TO.match(text, end)) and 0 < value < 10**6:
        value, end = value ** int(raised[1]), raised.end()
    elif (over := OVER.match(text, end)) and int(over[1]):
        value, end = value / int(over[1]), over.end()
    elif (mixed := MIXED.match(text, end)) and value.denominator == 1 and 0 < int(mixed[1]) < int(mixed[2]):
        value, end = value + Fraction(int(mixed[1]), int(mixed[2])), mixed.end()
    if scale := SCALE.match(text, end):
        value, end = value * SCALES[scale[1].lower()], scale.end()
    goes_on = end < len(text) and _in_word(text[end]) and not APART.match(text[end]) and not SYLLABLE.match(text[end])
    return None if goes_on and not MEASURE.match(text, end) else (value, end)


def _negated(word: Word, start: int) -> Word:
    """Return the number after the word *minus*."""
    assert word.number is not None
    turned = word.number[1:] if word.number.startswith("-") else f"-{word.number}"
    return replace(word, key=word.key.replace(word.number, turned, 1), number=turned, start=start, share=None)
