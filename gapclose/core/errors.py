"""Collect everything that is wrong and report it at once, before costly work starts."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

NAMES = re.compile(r"'[^']*'|\"[^\"]*\"|\S*/\S*|\d+(?:\.\d+)?")
"""the parts in which two messages of one kind differ: names in quotes, paths, numbers"""


class ErrorCollector:
    """Collects messages; :meth:`raise_if_any` raises them together as one ``ValueError``."""

    def __init__(self, subject: str, most: int = 50, alike: int = 5) -> None:
        self.subject, self.most, self.alike = subject, most, alike
        self.messages: list[str] = []

    def add(self, message: str) -> None:
        self.messages.append(message)

    def __len__(self) -> int:
        return len(self.messages)

    def raise_if_any(self) -> None:
        """Raise all messages as one error.

        Raises:
            ValueError: one line per problem. It shows the first ``alike`` of each kind and the
                first ``most`` kinds, and counts the rest.
        """
        if not self.messages:
            return
        count, kinds = len(self.messages), defaultdict[str, list[str]](list)
        for message in self.messages:
            message = shortened(message)  # before the search for names, whose time grows with the square of a word's length
            kinds[NAMES.sub("", message)].append(message)
        lines = []
        for alike in list(kinds.values())[: self.most]:
            lines += [f"  - {m}" for m in alike[: self.alike]]
            if len(alike) > self.alike:
                lines.append(f"    ... and {len(alike) - self.alike} more like it")
        if len(kinds) > self.most:
            lines.append(f"  ... and {len(kinds) - self.most} more kinds of them")
        raise ValueError(f"{count} problem{'s' if count > 1 else ''} with {self.subject}:\n" + "\n".join(lines))


class ItemError(ValueError):
    """An error in one file, with the remedy. The caller adds the names of the file and the item."""


def shortened(message: str, most: int = 1_500) -> str:
    """Cut the middle out of a long message: the place comes first, the remedy last."""
    if len(message) <= most:
        return message
    return f"{message[: most - 500]} ... ({len(message) - most:,} characters more) ... {message[-500:]}"


def shown(value: Any, most: int = 60) -> str:
    """Format a value for a message: its ``repr`` on one line, cut to its start where it is long."""
    if isinstance(value, str | bytes) and len(value) > most:
        return f"{value[:most]!r}... ({len(value):,} {'characters' if isinstance(value, str) else 'bytes'})"
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep; a number of thousands of digits
        return f"a {type(value).__name__}"
    text = " ".join(text.splitlines())
    return text if len(text) <= 4 * most else f"{text[: 4 * most]}... ({len(text):,} characters)"


class LossNotFinite(FloatingPointError):
    """The loss or a weight of the adapter is not finite, so the guard stops training.

    Other numbers that are not finite raise errors of their own.
    """


def in_one_line(error: Exception) -> str:
    """Return an error's message without line breaks, cut after 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."
