"""Prompts followed by answer tokens: the rows of a batch, and the positions that predict answers.

Shapes: B rows, S tokens behind the prompts, P answer positions, G (position, token) pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from gapclose.data.items import Item
from gapclose.data.media import MediaLoader
from gapclose.models.families import PER_TOKEN
from gapclose.models.loading import LoadedModel

Row = tuple[Item, list[list[int]]]
"""an item, and the branches behind its prompt: lists of answer tokens, each blind to the others
(:mod:`gapclose.models.branches`)"""


@dataclass(kw_only=True)
class AnswerRows:
    """The rows of a batch under construction, and the positions that predict answer tokens.

    Every answer token is predicted from the prompt and the answer tokens before it, its *context*.
    The distinct contexts of an item's answers are branches of one row, or else have a row each.
    """

    branching: bool
    """whether a row may have several branches"""
    rows: list[Row] = field(default_factory=list)
    positions: dict[tuple[int, int], int] = field(default_factory=dict)
    """(row, columns from the end of its prompt) -> P"""
    pairs: list[tuple[int, int]] = field(default_factory=list)
    """(G,) a position and the token that it predicts"""

    def position(self, row: int, column: int = 0) -> int:
        """The number of the position ``column`` columns behind the end of a row's prompt."""
        return self.positions.setdefault((row, column), len(self.positions))

    def add_prompt(self, item: Item) -> int:
        """Add an item without answers; return the position at the end of its prompt."""
        self.rows.append((item, []))
        return self.position(len(self.rows) - 1)

    def add_answers(self, item: Item, answers: Sequence[Sequence[int]]) -> None:
        """Add an item with its answers: one pair per answer token, answer after answer."""
        contexts = longest_contexts([list(tokens[:-1]) for tokens in answers])
        if self.branching:
            begins = [(len(self.rows), sum(map(len, contexts[:k]))) for k in range(len(contexts))]
            self.rows.append((item, [c for c in contexts if c]))
        else:
            begins = [(len(self.rows) + k, 0) for k in range(len(contexts))]
            self.rows += [(item, [c] if c else []) for c in contexts]
        for tokens in answers:
            row, begin = begins[next(k for k, c in enumerate(contexts) if c[: len(tokens) - 1] == list(tokens[:-1]))]
            self.pairs += [(self.position(row, begin + t if t else 0), token) for t, token in enumerate(tokens)]

    def tensors(self, length: int) -> dict[str, torch.Tensor]:
        """Indices for prompts padded to ``length``.

        ``rows`` and ``positions`` are (P,), ``place`` and ``token`` (G,). ``branch`` (B, S) is there
        if a row has several branches.
        """
        branch = branch_numbers(self.rows)
        return {
            "rows": torch.tensor([row for row, _ in self.positions]),
            "positions": torch.tensor([length - 1 + column for _, column in self.positions]),
            "place": torch.tensor([place for place, _ in self.pairs], dtype=torch.long),
            "token": torch.tensor([token for _, token in self.pairs], dtype=torch.long),
            **({} if branch is None else {"branch": branch}),
        }


def answer_rows(loaded: LoadedModel, batch: Sequence[Item], *, branching: bool) -> AnswerRows:
    """Lay out items with all their options."""
    laid = AnswerRows(branching=branching)
    for item in batch:
        laid.add_answers(item, [loaded.option_tokens(o.text) for o in item.options])
    return laid


def branch_numbers(rows: Sequence[Row]) -> torch.Tensor | None:
    """The branch of every token behind the prompts, (B, S); 0 for padding. None if no row has several."""
    if all(len(branches) < 2 for _, branches in rows):
        return None
    numbers = [[n for n, branch in enumerate(branches, 1) for _ in branch] for _, branches in rows]
    longest = max(map(len, numbers))
    return torch.tensor([row + [0] * (longest - len(row)) for row in numbers])


def prompt_with_answers(loaded: LoadedModel, media: MediaLoader, rows: Sequence[Row]) -> tuple[dict[str, torch.Tensor], int]:
    """Return a processor's output with the branches behind the prompts, and the prompt length."""
    prompt = loaded.prompts([item for item, _ in rows], media)
    length = prompt["input_ids"].shape[1]
    append_tokens(prompt, [[token for branch in branches for token in branch] for _, branches in rows])
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
