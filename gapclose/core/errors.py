"""One way to tell a user everything that is wrong, at once, before costly work starts."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

NAMES = re.compile(r"'[^']*'|\"[^\"]*\"|\S*/\S*|\d+(?:\.\d+)?")
"""what differs between two messages of one kind: names in quotes, paths, numbers"""


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
        """Raises: ValueError, one line per problem: the first ``alike`` of a kind and the first ``most`` kinds, with counts of the rest."""
        if not self.messages:
            return
        count, kinds = len(self.messages), defaultdict[str, list[str]](list)
        for message in self.messages:
            kinds[NAMES.sub("", message)].append(message)
        lines = []
        for alike in list(kinds.values())[: self.most]:
            lines += [f"  - {shortened(m)}" for m in alike[: self.alike]]
            if len(alike) > self.alike:
                lines.append(f"    ... and {len(alike) - self.alike} more like it")
        if len(kinds) > self.most:
            lines.append(f"  ... and {len(kinds) - self.most} more kinds of them")
        raise ValueError(f"{count} problem{'s' if count > 1 else ''} with {self.subject}:\n" + "\n".join(lines))


class ItemError(ValueError):
    """What is wrong with one file, and the remedy; whoever catches it adds which file and which item."""


def shortened(message: str, most: int = 1_500) -> str:
    """A message with its middle left out where it is long, as one is that lists long names: the place stands first, the remedy last."""
    if len(message) <= most:
        return message
    return f"{message[: most - 500]} ... ({len(message) - most:,} characters more) ... {message[-500:]}"


def shown(value: Any, most: int = 60) -> str:
    """A value for a message: its ``repr``, cut to its start where it is long, on one line."""
    if isinstance(value, str | bytes) and len(value) > most:
        return f"{value[:most]!r}... ({len(value):,} {'characters' if isinstance(value, str) else 'bytes'})"
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep; a number of thousands of digits
        return f"a {type(value).__name__}"
    text = " ".join(text.splitlines())
    return text if len(text) <= 4 * most else f"{text[: 4 * most]}... ({len(text):,} characters)"


class LossNotFinite(FloatingPointError):
    """What the guard of the loss stops a training for: a loss, or an adapter's weight, that is not finite. Any other number that is not finite
    is an error of its own."""
