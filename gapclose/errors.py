"""One way to tell a user everything that is wrong, at once, before costly work starts."""

from __future__ import annotations


class Problems:
    """Collects messages; :meth:`raise_if_any` raises them together as one ``ValueError``."""

    def __init__(self, subject: str, most: int = 50) -> None:
        self.subject, self.most = subject, most
        self.messages: list[str] = []

    def add(self, message: str) -> None:
        self.messages.append(message)

    def __len__(self) -> int:
        return len(self.messages)

    def raise_if_any(self) -> None:
        """Raises: ValueError, one line per problem (the first ``most``, with a count of the rest)."""
        if not self.messages:
            return
        count = len(self.messages)
        lines = [f"  - {m}" for m in self.messages[: self.most]]
        if count > self.most:
            lines.append(f"  ... and {count - self.most} more")
        raise ValueError(f"{count} problem{'s' if count > 1 else ''} with {self.subject}:\n" + "\n".join(lines))


class Fault(ValueError):
    """What is wrong with one file, and the remedy; whoever catches it adds which file and which item."""
