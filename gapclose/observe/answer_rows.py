"""Prompts followed by answer tokens: the rows of a batch, and the positions that predict answers.

Shapes: B rows, P answer positions, G (position, token) pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from gapclose.data.items import Item
from gapclose.data.media import MediaLoader
from gapclose.models.families import PER_TOKEN
from gapclose.models.loading import LoadedModel


@dataclass(kw_only=True)
class AnswerRows:
    """The rows of a batch under construction, and the positions that predict answer tokens.

    An item has one row when all its answers are single tokens; otherwise one row per distinct
    context, so that every answer token is predicted from the prompt and the answer tokens before
    it.
    """

    rows: list[tuple[Item, list[int]]] = field(default_factory=list)
    """an item, and the answer tokens behind its prompt"""
    positions: dict[tuple[int, int], int] = field(default_factory=dict)
    """(row, answer tokens before the position) -> P"""
    pairs: list[tuple[int, int]] = field(default_factory=list)
    """(G,) a position and the token that it predicts"""

    def position(self, row: int, offset: int = 0) -> int:
        """The number of the position behind ``offset`` answer tokens of a row."""
        return self.positions.setdefault((row, offset), len(self.positions))

    def add_prompt(self, item: Item) -> int:
        """Add an item without answers; return the position at the end of its prompt."""
        self.rows.append((item, []))
        return self.position(len(self.rows) - 1)

    def add_answers(self, item: Item, answers: Sequence[Sequence[int]]) -> None:
        """Add an item with its answers: one pair per answer token, answer after answer."""
        contexts = longest_contexts([list(tokens[:-1]) for tokens in answers])
        first = len(self.rows)
        self.rows += [(item, context) for context in contexts]
        for tokens in answers:
            row = first + next(i for i, c in enumerate(contexts) if c[: len(tokens) - 1] == list(tokens[:-1]))
            self.pairs += [(self.position(row, t), token) for t, token in enumerate(tokens)]

    def tensors(self, length: int) -> dict[str, torch.Tensor]:
        """Indices for prompts padded to ``length``.

        ``rows`` and ``positions`` are (P,), ``place`` and ``token`` (G,).
        """
        return {
            "rows": torch.tensor([row for row, _ in self.positions]),
            "positions": torch.tensor([length - 1 + offset for _, offset in self.positions]),
            "place": torch.tensor([place for place, _ in self.pairs], dtype=torch.long),
            "token": torch.tensor([token for _, token in self.pairs], dtype=torch.long),
        }


def prompt_with_answers(
    loaded: LoadedModel, media: MediaLoader, rows: Sequence[tuple[Item, list[int]]]
) -> tuple[dict[str, torch.Tensor], int]:
    """Return a processor's output with answer tokens behind the prompts, and the prompt length."""
    prompt = loaded.prompts([item for item, _ in rows], media)
    length = prompt["input_ids"].shape[1]
    append_tokens(prompt, [context for _, context in rows])
    return prompt, length


def longest_contexts(contexts: list[list[int]]) -> list[list[int]]:
    """The distinct token lists that are not the beginning of another; ``[[]]`` when all are empty."""
    distinct = sorted({tuple(c) for c in contexts})
    keep = [c for i, c in enumerate(distinct) if i + 1 == len(distinct) or distinct[i + 1][: len(c)] != c]
    return [list(c) for c in keep]


def append_tokens(prompt: dict[str, torch.Tensor], contexts: Sequence[list[int]]) -> None:
    """Append each row's tokens behind its prompt in place; shorter rows are masked on the right."""
    longest = max(len(c) for c in contexts)
    if not longest:
        return
    shape = prompt["input_ids"].shape
    for key in PER_TOKEN & prompt.keys():
        prompt[key] = torch.cat([prompt[key], prompt[key].new_zeros(shape[0], longest)], dim=1)
    for row, context in enumerate(contexts):
        if context:
            prompt["input_ids"][row, shape[1] : shape[1] + len(context)] = torch.tensor(context)
            prompt["attention_mask"][row, shape[1] : shape[1] + len(context)] = 1
