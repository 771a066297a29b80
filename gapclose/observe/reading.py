"""Residuals at the answer position of prompts, alone or beside a generated answer.

Shapes: B batch, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gapclose.models.hooks import answer_logits, capture_residuals, reset_rope_deltas, skip_layers
from gapclose.models.loading import LoadedModel
from gapclose.observe.forward import generate


@torch.no_grad()
def read_prompts(loaded: LoadedModel, inputs: dict[str, torch.Tensor], layers: Sequence[int]) -> dict[int, torch.Tensor]:
    """Residuals by layer (B, D) from one forward, in which no layer above the highest computes."""
    rows, last = _answer_positions(inputs)
    reset_rope_deltas(loaded.model)
    above = range(max(layers) + 1, len(loaded.layers) + 1)
    with (
        skip_layers(loaded.model, above),
        capture_residuals(loaded.model, layers, last) as residuals,
        answer_logits(loaded.model, rows, last),
    ):
        loaded.model(**inputs, use_cache=False)
    return residuals


@torch.no_grad()
def generate_and_read(
    loaded: LoadedModel,
    inputs: dict[str, torch.Tensor],
    layers: Sequence[int],
    max_new_tokens: int,
    sampling: Mapping[str, Any] | None = None,
) -> tuple[list[str], dict[int, torch.Tensor]]:
    """Generated answers, and residuals by layer (B, D) from the forward of the prompts in generation.

    Args:
        sampling: as in :func:`gapclose.observe.forward.generate`.
    """
    _, last = _answer_positions(inputs)
    reset_rope_deltas(loaded.model)
    with capture_residuals(loaded.model, layers, last, once=True) as residuals:
        return generate(loaded, loaded.model, inputs, max_new_tokens, sampling), residuals


def _answer_positions(inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (B,) and the answer position of each (B,): prompts are padded on the left."""
    size, length = inputs["input_ids"].shape
    rows = torch.arange(size, device=inputs["input_ids"].device)
    return rows, torch.full_like(rows, length - 1)
