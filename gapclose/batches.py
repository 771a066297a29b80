"""Training batches: items under the terms of the loss, mixed in fixed proportion, with the places where the loss looks.

Shapes: P answer positions, G (position, token) pairs, K kept tokens, O options.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import Sampler

from gapclose.families import PER_TOKEN
from gapclose.items import Item
from gapclose.media import Media
from gapclose.models import LoadedModel
from gapclose.prompts import media_signature

if TYPE_CHECKING:
    from gapclose.trunk import Trunk

TERMS = ("consistency", "gold", "retain")


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
    """(K,) their vocabulary ids"""

    def __post_init__(self) -> None:
        """Raises: ValueError for what would turn the loss into no number, or be left out of it in silence."""
        if not np.all(np.isfinite(self.weights) & (self.weights >= 0)):
            raise ValueError(f"item {self.item.id}: the target {self.weights.tolist()} has a weight that is negative or not finite")
        if self.base_logps is not None and bool((self.base_logps.isnan() | self.base_logps.isposinf()).any()):
            raise ValueError(f"item {self.item.id}: a log-probability of the base model is not a number; observe it again in a wider dtype")


class MixedSampler(Sampler[int]):
    """Indices whose every run of ``global_batch_size`` holds exactly ``counts`` items of each term.

    An epoch is ``steps`` global batches; every term goes round as often as that needs, in its own shuffled order, which depends on seed and
    epoch alone.

    With ``twins`` both items of a pair are in the same global batch, under every term that has both, as far as the counts let them: under an
    odd one, pairs are parted once no single item is left to go between them.
    """

    def __init__(self, examples: Sequence[Example], counts: dict[str, int], seed: int, *, steps: int, twins: bool = False) -> None:
        members: dict[str, list[int]] = {t: [i for i, e in enumerate(examples) if e.term == t] for t in TERMS if counts[t]}
        empty = [t for t, m in members.items() if not m]
        if empty:
            raise ValueError(f"no items for the loss term(s) {empty}; set train.{empty[0]} to 0 or add such items")
        self.counts, self.seed, self.epoch, self.steps = {t: counts[t] for t in members}, seed, 0, steps
        self.units = {t: pairs(examples, m) if twins else [[i] for i in m] for t, m in members.items()}

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of every epoch."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return self.steps * sum(self.counts.values())

    def _stream(self, term: str) -> Iterator[int]:
        """Items of a term, pass after pass; where a pair would be cut by the end of a batch, the next single item goes first."""
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


def pairs(examples: Sequence[Example], members: Sequence[int]) -> list[list[int]]:
    """The members of one term, both of a pair of twins together."""
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


class Collator:
    """Examples -> processor inputs and the places where the loss looks.

    One row per example when all its options are single tokens; otherwise one per distinct context, so that every answer token is
    predicted from the prompt and the tokens before it. Items that carry different kinds of media go into separate parts.
    """

    def __init__(self, loaded: LoadedModel, media: Media | None, trunk: Trunk | None = None, examples: Sequence[Example] = ()) -> None:
        """``trunk``: take what is stored of the items, and read no media. ``examples``: all that batches are made of; needed where processes
        hold a model together."""
        self.loaded, self.media, self.trunk = loaded, media, trunk
        self.carriers = {"+".join(media_signature(e.item)): e for e in reversed(examples)}
        """what a part carries -> the first example that does"""

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        groups: dict[str, list[Example]] = defaultdict(list)
        for example in examples:
            groups["+".join(media_signature(example.item))].append(example)
        counts = torch.tensor([sum(e.term == t for e in examples) for t in TERMS])
        return {"parts": [self._part(group) | {"carries": carried} for carried, group in groups.items()], "counts": counts}

    def level(self, batches: Sequence[dict[str, Any]]) -> None:
        """Give every micro-batch of a step, in place, the parts of all processes' in one order: those that are not its own count for nothing.

        Processes that hold a model together have to run equally many forwards, over the same media.
        """
        mine = [[part["carries"] for part in batch["parts"]] for batch in batches]
        everyones: list[list[list[str]]] = gather_object([mine])
        for place, batch in enumerate(batches):
            own = {part["carries"]: part for part in batch["parts"]}
            carried = sorted({name for of_one in everyones for name in of_one[place]})
            batch["parts"] = [own.get(name) or self._idle(name) for name in carried]

    def _idle(self, carried: str) -> dict[str, Any]:
        """A part of one example whose sums are all zero."""
        part = self._part([self.carriers[carried]])
        return {k: v for k, v in part.items() if k != "base_logps"} | {"weight": torch.zeros_like(part["weight"]), "carries": carried}

    def _part(self, examples: Sequence[Example]) -> dict[str, Any]:
        rows: list[tuple[Example, list[int]]] = []
        positions: dict[tuple[int, int], int] = {}  # (row, tokens after the prompt) -> P
        pairs: list[tuple[int, int, float, int]] = []  # place, token, weight, term
        retained: list[tuple[int, Example]] = []
        for example in examples:
            term = TERMS.index(example.term)
            if example.term == "retain":
                rows.append((example, []))
                retained.append((positions.setdefault((len(rows) - 1, 0), len(positions)), example))
                continue
            options, given = len(example.item.options), example.weights
            if len(given) < options or np.any(given[options:]):
                raise ValueError(f"item {example.item.id}: a target of {len(given)} weights for {options} options: {given.tolist()}")
            weighted = zip((self.loaded.option_tokens(o.text) for o in example.item.options), example.weights, strict=False)
            answers = [(tokens, float(w)) for tokens, w in weighted if w > 0]
            contexts = longest_contexts([tokens[:-1] for tokens, _ in answers])
            first = len(rows)
            rows += [(example, context) for context in contexts]
            for tokens, weight in answers:
                row = first + next(i for i, c in enumerate(contexts) if c[: len(tokens) - 1] == tokens[:-1])
                for t, token in enumerate(tokens):
                    pairs.append((positions.setdefault((row, t), len(positions)), token, weight, term))
        prompt, length = self._prompt([(e.item, context) for e, context in rows])
        part: dict[str, Any] = {
            "prompt": prompt,
            "frozen": 0 if self.trunk is None else self.trunk.frozen,
            "rows": torch.tensor([row for row, _ in positions]),
            "positions": torch.tensor([length - 1 + offset for _, offset in positions]),
            "place": torch.tensor([p[0] for p in pairs], dtype=torch.long),
            "token": torch.tensor([p[1] for p in pairs], dtype=torch.long),
            "weight": torch.tensor([p[2] for p in pairs]),
            "term": torch.tensor([p[3] for p in pairs], dtype=torch.long),
            "retain_place": torch.tensor([p for p, _ in retained], dtype=torch.long),
        }
        if retained:
            part["base_logps"] = torch.stack([e.base_logps for _, e in retained])  # type: ignore[misc]
            part["base_tokens"] = torch.stack([e.base_tokens.long() for _, e in retained])  # type: ignore[union-attr]
        return part

    def _prompt(self, rows: Sequence[tuple[Item, list[int]]]) -> tuple[dict[str, torch.Tensor], int]:
        """What the model is given for prompts with answer tokens behind them, and the length of the padded prompts."""
        if self.trunk is not None:
            return self.trunk.batch(rows)
        assert self.media is not None
        return prompt_with_answers(self.loaded, self.media, rows)


def prompt_with_answers(loaded: LoadedModel, media: Media, rows: Sequence[tuple[Item, list[int]]]) -> tuple[dict[str, torch.Tensor], int]:
    """A processor's output for items with answer tokens behind their prompts, and the length of the padded prompts."""
    prompt = loaded.prompts([item for item, _ in rows], media)
    length = prompt["input_ids"].shape[1]
    append_tokens(prompt, [context for _, context in rows])
    return prompt, length


def longest_contexts(contexts: list[list[int]]) -> list[list[int]]:
    """The distinct token lists that are no prefix of another one; ``[[]]`` when all are empty."""
    distinct = sorted({tuple(c) for c in contexts})
    keep = [c for i, c in enumerate(distinct) if i + 1 == len(distinct) or distinct[i + 1][: len(c)] != c]
    return [list(c) for c in keep]


def append_tokens(prompt: dict[str, torch.Tensor], contexts: Sequence[list[int]]) -> None:
    """Append each row's tokens behind its prompt in place; shorter rows are padded on the right and masked."""
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
