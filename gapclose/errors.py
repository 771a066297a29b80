"""One way to tell a user everything that is wrong, at once, before costly work starts."""

from __future__ import annotations

import re
from collections import defaultdict

NAMES = re.compile(r"'[^']*'|\"[^\"]*\"|\S*/\S*|\d+(?:\.\d+)?")
"""what differs between two messages of one kind: names in quotes, paths, numbers"""


class Problems:
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
            lines += [f"  - {m}" for m in alike[: self.alike]]
            if len(alike) > self.alike:
                lines.append(f"    ... and {len(alike) - self.alike} more like it")
        if len(kinds) > self.most:
            lines.append(f"  ... and {len(kinds) - self.most} more kinds of them")
        raise ValueError(f"{count} problem{'s' if count > 1 else ''} with {self.subject}:\n" + "\n".join(lines))


class Fault(ValueError):
    """What is wrong with one file, and the remedy; whoever catches it adds which file and which item."""
