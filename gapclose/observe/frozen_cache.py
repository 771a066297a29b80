"""The hidden-state cache: stored inputs of the first adapted layer.

Media towers and the decoder layers below the first adapted one do not change while adapters train.
Training and measurements start from their output, stored token by token in the model's own dtype.
The model's own forward runs with these layers skipped (:func:`gapclose.models.hooks.skip_layers`):
masks, rotary embeddings, the final norm and the logits are its own, no tower runs, and no media are
read.

Files are ``batch-*.safetensors``, read through memory maps. Items are stored without padding, so
any batch can be made of them. Behind the states of a prompt lie those of its answers of several
tokens, without the last token of each; they do not change the prompt's or each other's.

Shapes: B rows, T tokens, D width of the residual stream, A axes of rotary positions, V vocabulary,
O options.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from safetensors import safe_open

from gapclose.data.items import Item
from gapclose.models.hooks import capture_residuals
from gapclose.models.loading import LoadedModel
from gapclose.models.sharding import unwrap_engine
from gapclose.observe.answer_rows import AnswerRows, Row
from gapclose.observe.forward import forward_part

OPEN = 64
"""largest number of files that are mapped at once"""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of an item's states."""

    file: Path
    number: int
    """index among the items of the file"""
    start: int
    """first token of its prompt among the tokens of the file"""
    tokens: int
    contexts: list[list[int]]
    """answer tokens whose states follow, one list after the other"""

    def behind(self, context: list[int]) -> int:
        """Return where the states of ``context`` begin; it must begin one of the stored answers."""
        start = self.start + self.tokens
        for stored in self.contexts:
            if stored[: len(context)] == context:
                return start
            start += len(stored)
        raise AssertionError(f"{context} begins none of {self.contexts}")


class HiddenStateCache:
    """Stored states that batches are assembled from."""

    def __init__(self, files: Sequence[Path], frozen: int, *, branching: bool = False) -> None:
        self.frozen = frozen
        """decoder layers below the first adapted one"""
        self.branching = branching
        """whether the model reads the answers of an item in one row (:class:`AnswerRows`)"""
        self.places: dict[str, Place] = {}
        self.file: Any = lru_cache(maxsize=OPEN)(lambda path: safe_open(path, framework="pt"))
        for path in files:
            start = 0
            for number, (name, tokens, contexts) in enumerate(json.loads(self.file(path).metadata()["items"])):
                self.places[name] = Place(file=path, number=number, start=start, tokens=tokens, contexts=contexts)
                start += tokens + sum(map(len, contexts))

    def batch(self, rows: Sequence[Row]) -> tuple[dict[str, torch.Tensor], int]:
        """Return the model's inputs for rows with the same kinds of media, and the prompt length.

        Returns:
            ``inputs_embeds`` (B, T, D), ``attention_mask`` (B, T) and, if the decoder takes them,
            ``position_ids`` (B, T) or (A, B, T), instead of a processor's output. Prompts are
            padded on the left; branches follow them on the right.
        """
        places = [self.places[item.id] for item, _ in rows]
        length, longest = max(p.tokens for p in places), max(sum(map(len, branches)) for _, branches in rows)
        spans: list[tuple[int, Path, int, int, int]] = []  # row, file, from, to, first column
        for b, (place, (_, branches)) in enumerate(zip(places, rows, strict=True)):
            spans.append((b, place.file, place.start, place.start + place.tokens, length - place.tokens))
            column = length
            for tokens in branches:
                answer = place.behind(tokens)
                spans.append((b, place.file, answer, answer + len(tokens), column))
                column += len(tokens)
        shape = (len(rows), length + longest)
        mask = torch.zeros(shape, dtype=torch.long)
        for b, _, start, end, column in spans:
            mask[b, column : column + end - start] = 1
        prompt = {"inputs_embeds": self._filled("hidden", spans, shape), "attention_mask": mask}
        first = self.file(places[0].file)
        if "positions" in first.keys():  # noqa: SIM118 (a safetensors file is no dict)
            positions = self._filled("positions", spans, shape).permute(2, 0, 1).long()
            prompt["position_ids"] = positions if json.loads(first.metadata()["grid"]) else positions[0]
        return prompt, length

    def _filled(self, name: str, spans: Sequence[tuple[int, Path, int, int, int]], shape: tuple[int, int]) -> torch.Tensor:
        """(B, T, D or A): the stored rows of ``spans``, zeros elsewhere."""
        found = [self.file(path).get_slice(name)[start:end] for _, path, start, end, _ in spans]
        filled = found[0].new_zeros(*shape, found[0].shape[1])
        for (b, _, start, end, column), states in zip(spans, found, strict=True):
            filled[b, column : column + end - start] = states
        return filled

    def score(
        self, loaded: LoadedModel, batch: Sequence[Item], layers: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[int, torch.Tensor]]:
        """Score options from stored states, for items with the same kinds of media.

        Returns:
            Log-probabilities of the next token (B, V); of every option, summed over its tokens (B,
            O); residuals at the answer position by layer (B, D). Layers below the first adapted one
            are read from the files.
        """
        laid = AnswerRows(branching=self.branching)
        for item in batch:
            laid.add_answers(item, [loaded.option_tokens(o.text) for o in item.options])
        prompt, length = self.batch(laid.rows)
        sent = {key: send_to_device(value, loaded.device) for key, value in {"prompt": prompt, **laid.tensors(length)}.items()}
        part: dict[str, Any] = {**sent, "frozen": self.frozen}
        counts = [[len(loaded.option_tokens(o.text)) for o in item.options] for item in batch]
        begins = np.cumsum([0, *(sum(c) for c in counts[:-1])])  # first token of each item among those of all options
        first = part["place"][torch.from_numpy(begins).to(loaded.device)]  # (B,) its answer position among all positions
        row = part["rows"][first]
        answer = part["positions"][first[:1]].expand(len(part["prompt"]["attention_mask"]))
        above = [layer for layer in layers if layer > self.frozen]
        model = unwrap_engine(loaded.model)
        with capture_residuals(model, above, answer) as residuals:
            logp = forward_part(model, part)  # (P, V)
        each = [of.sum() for of in logp[part["place"], part["token"]].split([n for c in counts for n in c])]
        scores = torch.full((len(batch), max(map(len, counts))), -torch.inf, device=logp.device)
        for b, c in enumerate(counts):
            scores[b, : len(c)] = torch.stack([each.pop(0) for _ in c])
        stored = [(self.file(p.file), p.number) for p in (self.places[i.id] for i in batch)]
        found = {layer: value[row] for layer, value in residuals.items()}
        for layer in set(layers) - set(above):
            found[layer] = torch.cat([file.get_slice(f"layer.{layer}")[n : n + 1] for file, n in stored])
        return logp[first], scores, found
