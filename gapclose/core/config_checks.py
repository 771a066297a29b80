"""Checks of one group of the configuration.

An error names the key, the value and the allowed values; all are raised together.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
PLURAL = {int: "whole numbers", float: "numbers", str: "texts"}


@dataclasses.dataclass(frozen=True)
class Complaint:
    """One error and the keys that it concerns."""

    message: str
    keys: frozenset[str]
    """full keys, such as train.epochs"""


class Faults(ValueError):
    """All errors of a group of the configuration, one line each."""

    def __init__(self, found: Sequence[Complaint]) -> None:
        super().__init__("\n".join(fault.message for fault in found))
        self.found = list(found)


class Checks:
    """Collects the errors of one group. As a context manager it raises them at its end.

    The constructor checks the type of every field, that numbers are finite and that texts are not
    blank. A field that fails gets no further checks.

    Raises:
        Faults: at the end of the ``with`` block.
    """

    def __init__(self, config: Any, group: str = "", *, infinite: Collection[str] = ()) -> None:
        """``infinite``: fields that may be infinite."""
        self.config, self.prefix, self.found = config, f"{group}." if group else "", list[Complaint]()
        for name, hint in hints_of(type(config)).items():
            value = getattr(config, name)
            if not fits(value, hint):
                self.add(f"{self.named(name)}; it must be {in_words(hint)}", name)
            else:
                for number in value if isinstance(value, list) else [value]:
                    if isinstance(number, float) and not math.isfinite(number) and not (name in infinite and number > 0):
                        self.add(f"{self.named(name)}; it must be finite", name)
                        break
                    if isinstance(number, str) and (reason := unusable(number)):
                        self.add(f"{self.named(name)}; {reason}", name)
                        break

    def __enter__(self) -> Checks:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self.found:
            raise Faults(self.found)

    def named(self, name: str) -> str:
        """Return ``group.key is VALUE``."""
        return f"{self.prefix}{name} is {getattr(self.config, name)!r}"

    def add(self, message: str, *names: str) -> None:
        """Add an error about these fields.

        An error about several fields is left out if one of them has an error of its own.
        """
        if len(names) < 2 or self.sound(*names):
            self.found.append(Complaint(message, frozenset(f"{self.prefix}{name}" for name in names)))

    def sound(self, *names: str) -> bool:
        """Whether none of these fields has an error of its own so far."""
        bad = {key for fault in self.found if len(fault.keys) == 1 for key in fault.keys}
        return not bad & {f"{self.prefix}{name}" for name in names}

    def number(
        self,
        *names: str,
        least: float | None = None,
        above: float | None = None,
        most: float | None = None,
        below: float | None = None,
        why: str = "",
    ) -> None:
        """Check that numbers, and the numbers of lists, lie in an interval; null passes."""
        for name in names:
            value = getattr(self.config, name)
            numbers = value if isinstance(value, list) else [] if value is None else [value]
            if self.sound(name) and not all(_within(n, least, above, most, below) for n in numbers):
                each = "every one" if isinstance(value, list) else "it"
                self.add(f"{self.named(name)}; {each} must {_interval(least, above, most, below)}{why and f' ({why})'}", name)

    def choice(self, name: str, allowed: Iterable[str | bool], *, null: str = "") -> None:
        """Check that a value is one of ``allowed``, or that a list holds different ones.

        Args:
            null: the meaning of null, where null is allowed.
        """
        allowed, value = list(allowed), getattr(self.config, name)
        given = value if isinstance(value, list) else [] if value is None else [value]
        if not self.sound(name):
            return
        if unknown := [v for v in given if v not in allowed]:
            one = f" ({unknown})" if isinstance(value, list) else ""
            self.add(f"{self.named(name)}; choose {'some' if one else 'one'} of {allowed}{null and f', or null for {null}'}{one}", name)
        elif len(set(given)) < len(given):
            self.add(f"{self.named(name)}; name each once", name)


@lru_cache(maxsize=64)
def hints_of(kind: type) -> dict[str, Any]:
    """Return field -> type of a dataclass."""
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


def _options(hint: Any) -> tuple[Any, ...]:
    """Return the alternatives of a union, or the type itself."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else (hint,)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has a type of the configuration.

    A boolean is not a number; an integer fits a float.
    """
    for option in _options(hint):
        origin, arguments = typing.get_origin(option), typing.get_args(option)
        if origin is list:
            found = isinstance(value, list) and all(fits(v, arguments[0]) for v in value)
        elif origin is dict:
            found = isinstance(value, dict) and all(isinstance(k, str) for k in value)
        elif option in (int, float):
            found = isinstance(value, int if option is int else int | float) and not isinstance(value, bool)
        else:
            found = isinstance(value, option)
        if found:
            return True
    return False


def in_words(hint: Any) -> str:
    """Describe a type of the configuration for users."""
    words = []
    for option in _options(hint):
        origin, arguments = typing.get_origin(option), typing.get_args(option)
        if origin is list:
            words.append(f"a list of {PLURAL[arguments[0]]} such as {'[a, b]' if arguments[0] is str else '[1, 2]'}")
        else:
            words.append("names with values" if origin is dict else WORDS.get(option, f"a {getattr(option, '__name__', option)}"))
    return " or ".join(words)


def unusable(text: str) -> str:
    """Explain why the configuration refuses a text; empty if it is accepted."""
    if not text.strip():
        return "it is empty; write a text, or leave the key out"
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        return "it has characters that no file can hold; write it without them"
    return ""


def _within(n: float, least: float | None, above: float | None, most: float | None, below: float | None) -> bool:
    return not (
        (least is not None and not n >= least)
        or (above is not None and not n > above)
        or (most is not None and not n <= most)
        or (below is not None and not n < below)
    )


def _interval(least: float | None, above: float | None, most: float | None, below: float | None) -> str:
    low, high = least if above is None else above, most if below is None else below
    if low is not None and high is not None:
        if above is None and below is None:
            return f"lie in {low:g}..{high:g}" if high < 1e6 else f"lie in {low:g}..{high}"
        return f"lie in {'[' if above is None else '('}{low:g}, {high:g}{']' if below is None else ')'}"
    if high is not None:
        return f"be at most {high:g}" if below is None else f"be below {high:g}"
    if above is not None:
        return f"be above {above:g}"
    return "not be negative" if least == 0 else f"be at least {least:g}"
