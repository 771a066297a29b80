"""Generated answers to questions that a model does not answer: how they look, and how many are cut off.

Pure functions of stored answers and labels.

Shapes: N items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gapclose.core.results import Result
from gapclose.data.item_set import ItemSet
from gapclose.evaluation.examples import varied
from gapclose.metrics.labels import Labels

EXAMPLES = 5
"""answers that are kept of a modality"""
LONGEST = 80
"""characters that are kept of an answer"""


@dataclass(frozen=True, kw_only=True)
class AnswerLimit:
    """The length limit of generated answers."""

    tokens: int
    """``observe.max_new_tokens``"""
    count: Callable[[str], int]
    """number of tokens of a text"""

    def cut_off(self, answers: Sequence[str], parsed: np.ndarray) -> np.ndarray:
        """Return which answers name no option and reach the limit, (N,) bool.

        Stored is the text of an answer, so its tokens are counted again. An answer that ended by
        itself has one token fewer than the limit, since its end is a token too. Special tokens are
        not in the text, and an answer with some may not be counted.

        Args:
            parsed: option index of every answer (N,), -1 for none.
        """
        return np.array([k < 0 and self.count(text) >= self.tokens for text, k in zip(answers, parsed, strict=True)], dtype=bool)


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenAnswer(Result):
    """A generated answer."""

    id: str
    premise: str | None
    """``true`` or ``false``; None where no concept is an alarm"""
    text: str
    """at most :data:`LONGEST` characters; of a longer answer the first, and an ellipsis"""
    option: str | None
    """the option that it was matched to"""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenAnswers(Result):
    """The generated answers of one modality."""

    n: int
    cut_off: int | None
    """answers that name no option and reach ``observe.max_new_tokens``; None: not counted"""
    examples: tuple[WrittenAnswer, ...]
    """drawn by chance, true and false premises in turn"""


def written_answers(
    items: ItemSet,
    labels: Labels,
    answers: Sequence[str],
    parsed: np.ndarray,
    keep: np.ndarray,
    *,
    seed: int,
    cut_off: np.ndarray | None = None,
) -> WrittenAnswers:
    """Count the answers of one modality, and draw up to :data:`EXAMPLES` of them.

    Args:
        items: the N gap items of a split. parsed: option index of every answer (N,), -1 for none.
        keep: (N,) bool, the items of the modality. cut_off: of :meth:`AnswerLimit.cut_off`.
        seed: of the draw; the same seed gives the same answers.
    """
    premise = ["true" if standard else "false" for standard in labels.standard] if labels.alarm else [None] * len(labels.clip)
    questions = [item.text for item in items]
    chosen = varied(
        np.flatnonzero(keep), group=premise, question=questions, clip=labels.clip.tolist(), seed=seed, count=EXAMPLES, same=EXAMPLES
    )
    examples = tuple(
        WrittenAnswer(
            id=items.items[n].id,
            premise=premise[n],
            text=answers[n] if len(answers[n]) <= LONGEST else f"{answers[n][:LONGEST]}\N{HORIZONTAL ELLIPSIS}",
            option=None if parsed[n] < 0 else items.items[n].options[parsed[n]].text,
        )
        for n in chosen
    )
    return WrittenAnswers(n=int(keep.sum()), cut_off=None if cut_off is None else int(cut_off[keep].sum()), examples=examples)
