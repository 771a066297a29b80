"""Write into the residual stream: replace what decoder layers hand on at one position of every row.

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from gapclose.structure import decoder_layers


@contextmanager
def patched_at(model: Any, positions: torch.Tensor, donors: Mapping[int, torch.Tensor]) -> Iterator[None]:
    """Inside, what leaves decoder layer l (counted from 1) at ``positions`` (B,) is ``donors[l]`` (B, D), for every forward.

    An interchange intervention (Geiger et al. 2021, arXiv 2106.02997) on one position: all layers above, and the key-value cache that
    they leave, see the donor there and the recipient everywhere else.

    Raises:
        ValueError: when the decoder has no such layer, or keeps several residual streams, of which a donor is only one.
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
