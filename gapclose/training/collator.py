"""Training batches: processor inputs, answer positions and weights for items under the loss terms.

Shapes: P answer positions, G (position, token) pairs, K kept tokens, O options.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from gapclose.data.media import MediaLoader
from gapclose.models.loading import LoadedModel
from gapclose.models.processing import media_signature
from gapclose.observe.answer_rows import AnswerRows, Row, prompt_with_answers
from gapclose.observe.request import HiddenStates
from gapclose.training.config import TERMS
from gapclose.training.sampler import Example


def _entropy(target: np.ndarray) -> float:
    """Return the entropy of a target in nats: the consistency loss of an item that has reached it."""
    some = target[target > 0]
    return float(-(some * np.log(some)).sum())


class Collator:
    """Turn examples into processor inputs and the positions that the loss reads.

    Every answer token is predicted from the prompt and the answer tokens before it
    (:class:`AnswerRows`). Items with different kinds of media go into separate parts.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        media: MediaLoader | None,
        trunk: HiddenStates | None = None,
        examples: Sequence[Example] = (),
        *,
        branching: bool = False,
    ) -> None:
        """``trunk``: hidden-state cache to read instead of media. ``examples``: all examples
        that batches are made of; required when the model is sharded. ``branching``: whether the
        model reads the answers of an item in one row, as the ``trunk`` was filled."""
        self.loaded, self.media, self.trunk = loaded, media, trunk
        self.branching = branching
        self.carriers = {"+".join(media_signature(e.item)): e for e in reversed(examples)}
        """kinds of media of a part -> the first example with them"""

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        groups: dict[str, list[Example]] = defaultdict(list)
        for example in examples:
            groups["+".join(media_signature(example.item))].append(example)
        counts = torch.tensor([sum(e.term == t for e in examples) for t in TERMS])
        return {"parts": [self._part(group) | {"carries": carried} for carried, group in groups.items()], "counts": counts}

    def level(self, batches: Sequence[dict[str, Any]]) -> None:
        """Give every micro-batch of a step the same parts on all processes, in place and in order.

        Sharded processes must run equally many forwards over the same kinds of media. Parts that a
        process does not have itself are added with weight zero.
        """
        mine = [[part["carries"] for part in batch["parts"]] for batch in batches]
        everyones: list[list[list[str]]] = gather_object([mine])
        for place, batch in enumerate(batches):
            own = {part["carries"]: part for part in batch["parts"]}
            carried = sorted({name for of_one in everyones for name in of_one[place]})
            batch["parts"] = [own.get(name) or self._idle(name) for name in carried]

    def _idle(self, carried: str) -> dict[str, Any]:
        """Return a part of one example whose sums are all zero."""
        part = self._part([self.carriers[carried]])
        return {k: v for k, v in part.items() if k != "base_logps"} | {
            "weight": torch.zeros_like(part["weight"]),
            "entropy": torch.zeros(()),
            "carries": carried,
        }

    def _part(self, examples: Sequence[Example]) -> dict[str, Any]:
        laid = AnswerRows(branching=self.branching)
        weights, terms = list[float](), list[int]()  # (G,)
        retained: list[tuple[int, Example]] = []
        for example in examples:
            if example.term == "retain":
                retained.append((laid.add_prompt(example.item), example))
                continue
            options, given = len(example.item.options), example.weights
            if len(given) < options or np.any(given[options:]):
                raise ValueError(f"item {example.item.id}: a target of {len(given)} weights for {options} options: {given.tolist()}")
            weighted = zip((self.loaded.option_tokens(o.text) for o in example.item.options), example.weights, strict=False)
            answers = [(tokens, float(w)) for tokens, w in weighted if w > 0]
            laid.add_answers(example.item, [tokens for tokens, _ in answers])
            weights += [weight for tokens, weight in answers for _ in tokens]
            terms += [TERMS.index(example.term)] * sum(len(tokens) for tokens, _ in answers)
        prompt, length = self._prompt(laid.rows)
        part: dict[str, Any] = {
            "prompt": prompt,
            "frozen": 0 if self.trunk is None else self.trunk.frozen,
            **laid.tensors(length),
            "weight": torch.tensor(weights),
            "term": torch.tensor(terms, dtype=torch.long),
            "entropy": torch.tensor(float(sum(_entropy(e.weights) for e in examples if e.term == "consistency"))),
            "retain_place": torch.tensor([p for p, _ in retained], dtype=torch.long),
        }
        if retained:
            part["base_logps"] = torch.stack([e.base_logps for _, e in retained])  # type: ignore[misc]
            part["base_tokens"] = torch.stack([e.base_tokens.long() for _, e in retained])  # type: ignore[union-attr]
        return part

    def _prompt(self, rows: Sequence[Row]) -> tuple[dict[str, torch.Tensor], int]:
        """Return the model's inputs for prompts followed by answer tokens, and the padded prompt
        length."""
        if self.trunk is not None:
            return self.trunk.batch(rows)
        assert self.media is not None
        return prompt_with_answers(self.loaded, self.media, rows)
