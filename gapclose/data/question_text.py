"""The question of an item without its options, prompts made of both, and their place in messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from gapclose.core.errors import ItemError
from gapclose.data.answer_matching import unmentioned
from gapclose.data.items import Item

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def letters_prompt(stem: str, options: Sequence[str]) -> str:
    """Return the paper's prompt: options lettered from A, answered by a letter."""
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))
    return f"Question:\n{stem}\n\nOptions:\n{listed}\n\nAnswer with the option's letter from the given choices directly."


def either_prompt(stem: str, options: Sequence[str]) -> str:
    """Return the question with two options named after it, e.g. *yes* and *no*."""
    return f"{stem} Answer with {' or '.join(options)}."


def asking_text(item: Item) -> str:
    """Return the last text of the last user message, which a prompt template replaces.

    Raises:
        ItemError: when there is none.
    """
    return _place(item)[2]


def with_text(item: Item, text: str) -> list[dict[str, Any]]:
    """Return the item's messages with that text replaced."""
    m, p, _ = _place(item)
    content = item.messages[m]["content"]
    new: Any = text if p is None else [part | {"text": text} if n == p else part for n, part in enumerate(content)]
    return [message | {"content": new} if n == m else message for n, message in enumerate(item.messages)]


def _place(item: Item) -> tuple[int, int | None, str]:
    """Return the asking text with its message and content part (None if the content is a string)."""
    users = [n for n, message in enumerate(item.messages) if message["role"] == "user"]
    content = item.messages[users[-1]]["content"] if users else []
    if isinstance(content, str):
        return users[-1], None, content
    texts = [n for n, part in enumerate(content) if part["type"] == "text"]
    if not texts:
        raise ItemError("no user message has a text at its end that could be asked otherwise; add the question as a text part")
    return users[-1], texts[-1], content[texts[-1]]["text"]


def lettered(item: Item) -> bool:
    """Whether the options are letters without a meaning."""
    return all(o.meaning is None and len(o.text.strip()) == 1 and o.text.strip().isalpha() for o in item.options)


def lists_options(text: str, item: Item) -> bool:
    """Whether every option of the item occurs in a text, as complete words."""
    return not unmentioned(text, [o.words for o in item.options])


def unnamed_options(items: Iterable[Item], prompt: str) -> list[str]:
    """Describe options that are scored but that the messages of a prompt do not name.

    There is one line per kind of question (tag ``question``) and option. A letter names its option.
    Text that a chat template adds does not count.

    Args:
        prompt: name of the items' prompt, for the line.
    """
    asked, without = Counter[str](), dict[tuple[str, str], list[str]]()
    for item in items:
        kind = item.tags.get("question", "")
        asked[kind] += 1
        for option in unmentioned(item.text, [o.text for o in item.options]):
            without.setdefault((kind, option), []).append(item.id)
    found = dict[tuple[str, str, int], list[str]]()  # options that the same items omit share a line
    for (kind, text), idents in without.items():
        found.setdefault((kind, idents[0], len(idents)), []).append(text)
    return [
        f"{count} of {asked[kind]} items{f' with the question {kind!r}' if kind else ''} in the prompt {prompt!r} do not name "
        f"{', '.join(map(repr, texts[:4]))}{f' and {len(texts) - 4} more' if len(texts) > 4 else ''}, on which they are scored, e.g. item "
        f"{ident!r}"
        for (kind, ident, count), texts in found.items()
    ]


def stem_of(item: Item) -> str:
    """Return the question without its options.

    Raises:
        ItemError: when the text cannot be separated from the options.
    """
    if item.stem is not None:
        return item.stem
    if lettered(item):
        raise ItemError(
            "its options are letters, and nothing says what they stand for; give every option its `meaning`, and the item its `stem`"
        )
    if lists_options(asking_text(item), item):
        raise ItemError("its text names every option, so it cannot be asked without them; give the item its `stem`, the question by itself")
    return asking_text(item)
