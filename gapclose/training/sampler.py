"""Training examples and their order: terms in fixed proportion, twins in the same batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import Sampler

from gapclose.data.items import Item
from gapclose.training.config import TERMS


@dataclass(frozen=True, kw_only=True)
class Example:
    """One item under one term of the loss."""

    item: Item
    term: str
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(O,) target over the options (consistency, gold)"""
    base_logps: torch.Tensor | None = None
    """(K,) the base model's next-token log-probabilities at the answer position (retain)"""
    base_tokens: torch.Tensor | None = None
    """(K,) vocabulary ids of ``base_logps``"""

    def __post_init__(self) -> None:
        """Raises: ValueError for a target or log-probability that would make the loss NaN or be
        ignored."""
        if not np.all(np.isfinite(self.weights) & (self.weights >= 0)):
            raise ValueError(f"item {self.item.id}: the target {self.weights.tolist()} has a weight that is negative or not finite")
        if self.base_logps is not None and bool((self.base_logps.isnan() | self.base_logps.isposinf()).any()):
            raise ValueError(f"item {self.item.id}: a log-probability of the base model is not a number; observe it again in a wider dtype")


class MixedSampler(Sampler[int]):
    """Sample indices so that each global batch holds ``counts`` items of each term.

    An epoch is ``steps`` global batches. Every term is repeated as often as necessary, in its own
    shuffled order, which depends only on seed and epoch.

    With ``twins`` both items of a pair are in the same global batch, under every term that has
    both, as far as ``counts`` permits. If a count is odd, a pair is split when no single item is
    left to fill the batch.
    """

    def __init__(self, examples: Sequence[Example], counts: dict[str, int], seed: int, *, steps: int, twins: bool = False) -> None:
        members: dict[str, list[int]] = {t: [i for i, e in enumerate(examples) if e.term == t] for t in TERMS if counts[t]}
        empty = [t for t, m in members.items() if not m]
        if empty:
            raise ValueError(f"no items for the loss term(s) {empty}; set train.{empty[0]} to 0 or add such items")
        self.counts, self.seed, self.epoch, self.steps = {t: counts[t] for t in members}, seed, 0, steps
        self.units = {t: pair_twins(examples, m) if twins else [[i] for i in m] for t, m in members.items()}

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the trainer calls it at the start of every epoch."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return self.steps * sum(self.counts.values())

    def _stream(self, term: str) -> Iterator[int]:
        """Yield items of a term without end; a single item goes first where a batch would split
        a pair."""
        generator, size = np.random.default_rng([self.seed, self.epoch, TERMS.index(term)]), self.counts[term]
        left = size
        while True:
            units = [self.units[term][place] for place in generator.permutation(len(self.units[term])).tolist()]
            while units:
                fitting = next((n for n, unit in enumerate(units) if len(unit) <= left), None)
                if fitting is None:
                    unit, units[0] = units[0][:left], units[0][left:]
                else:
                    unit = units.pop(fitting)
                yield from unit
                left = left - len(unit) or size

    def __iter__(self) -> Iterator[int]:
        streams = {t: self._stream(t) for t in self.counts}
        # spread the terms evenly over the batch, so that every micro-batch has its share of each
        order = sorted((place / n, t) for t, n in self.counts.items() for place in range(n))
        for _ in range(self.steps):
            for _, term in order:
                yield next(streams[term])


def pair_twins(examples: Sequence[Example], members: Sequence[int]) -> list[list[int]]:
    """Group the members of one term: pairs of twins together, other items alone."""
    waiting, units = dict[str, list[int]](), list[list[int]]()
    for index in members:
        item = examples[index].item
        if item.id in waiting:
            waiting.pop(item.id).append(index)
            continue
        units.append([index])
        if twin := item.tags.get("twin"):
            waiting[twin] = units[-1]
    return units
