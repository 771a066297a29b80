"""Hooks on a model's forward: capture, replace or skip layers, and limit the logits.

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from gapclose.models.structure import decoder_layers, output_embedding, unwrap


def rotary_stores(model: Any) -> list[Any]:
    """The modules that store the offset between a prompt's length and its last rotary position.

    The two differ where media have a position grid of their own.
    """
    return [m for m in unwrap(model).modules() if getattr(m, "rope_deltas", None) is not None]


def reset_rope_deltas(model: Any) -> None:
    """Drop the offsets of another batch (:func:`rotary_stores`).

    A prompt without media or without positions would otherwise use them.
    """
    for module in rotary_stores(model):
        module.rope_deltas = None


@contextmanager
def answer_logits(model: Any, rows: torch.Tensor, positions: torch.Tensor) -> Iterator[None]:
    """Inside, the model computes logits only for ``(rows[p], positions[p])``.

    Its ``logits`` are (1, P, V). The input of the output embedding is sliced, since several
    families ignore ``logits_to_keep``, and full logits of a long clip cost more than the rest of a
    step.
    """

    def keep(module: nn.Module, args: tuple) -> tuple:
        hidden = args[0]  # (B, T, D)
        return (hidden[rows.to(hidden.device), positions.to(hidden.device)][None], *args[1:])

    handle = output_embedding(model).register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def last_logits(model: Any) -> Iterator[None]:
    """Inside, every forward computes logits for its last position alone, (B, 1, V).

    Generation needs no others. Like :func:`answer_logits`, for forwards over a prompt of many
    tokens or over the last generated one.
    """
    handle = output_embedding(model).register_forward_pre_hook(lambda _, args: (args[0][:, -1:], *args[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def skip_layers(model: Any, layers: Iterable[int], hidden: torch.Tensor | None = None) -> Iterator[None]:
    """Inside, decoder layers ``layers`` (counted from 1) compute nothing.

    Each returns its input, or ``hidden`` (B, T, D). Their modules are still called, so hooks on
    them fire and the number of layers stays the model's.
    """

    def hand_on(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states if hidden is None else hidden

    blocks = [decoder_layers(model)[layer - 1] for layer in layers]
    own = [vars(block).get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = hand_on
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is None:
                vars(block).pop("forward", None)
            else:
                block.forward = forward


@contextmanager
def capture_residuals(
    model: Any, layers: Sequence[int], positions: torch.Tensor, *, once: bool = False
) -> Iterator[dict[int, torch.Tensor]]:
    """Inside, every forward fills the yielded dict: layer -> residuals at ``positions``, (B, D).

    Layer *l* is the output of decoder block *l*, counted from 1; 0 is the input of the first block
    (the embedding). Unlike ``hidden_states[-1]``, the last layer comes before the final norm.

    Args:
        once: only the first forward fills the dict. In generation that is the forward of the prompt.
    """
    found: dict[int, torch.Tensor] = {}
    blocks = decoder_layers(model)

    def pool(hidden: torch.Tensor) -> torch.Tensor:
        if hidden.dim() == 4:  # AltUp keeps several streams (S, B, T, D); the active one is first
            hidden = hidden[0]
        return hidden[torch.arange(len(hidden), device=hidden.device), positions.to(hidden.device)].detach()

    def after(layer: int):
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            if not (once and layer in found):
                found[layer] = pool(output[0] if isinstance(output, tuple | list) else output)

        return hook

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if not (once and 0 in found):
            found[0] = pool(args[0] if args else kwargs["hidden_states"])

    handles = [blocks[0].register_forward_pre_hook(before, with_kwargs=True)] if 0 in layers else []
    handles += [blocks[layer - 1].register_forward_hook(after(layer)) for layer in layers if layer > 0]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def patched_at(model: Any, positions: torch.Tensor, donors: Mapping[int, torch.Tensor]) -> Iterator[None]:
    """Inside, ``donors[l]`` (B, D) replaces the output of decoder layer l at ``positions`` (B,).

    Layers count from 1; every forward is patched. An interchange intervention (Geiger et al. 2021,
    arXiv 2106.02997) on one position: all layers above, and their key-value cache, see the donor
    there and the recipient everywhere else.

    Raises:
        ValueError: when the decoder has no such layer, or has several residual streams, of which a
            donor is only one.
    """
    blocks = decoder_layers(model)
    for layer in donors:
        if not 1 <= layer <= len(blocks):
            raise ValueError(f"layer {layer} cannot be patched: this decoder has layers 1..{len(blocks)}")

    def replace(donor: torch.Tensor, module: nn.Module, args: tuple, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple | list) else output
        if hidden.dim() != 3:
            raise ValueError(f"a residual of {hidden.dim()} dimensions cannot be patched; only one stream (B, T, D) is supported")
        hidden = hidden.clone()  # the layer's own output may be shared with others
        rows = torch.arange(len(hidden), device=hidden.device)
        hidden[rows, positions.to(hidden.device)] = donor.to(hidden.device, hidden.dtype)
        return (hidden, *output[1:]) if isinstance(output, tuple | list) else hidden

    handles = [blocks[layer - 1].register_forward_hook(partial(replace, donor)) for layer, donor in donors.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
