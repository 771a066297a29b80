"""Networks of the same shape with random weights: a loaded model's parameters, drawn anew.

They are drawn as the model's class draws them before training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gapclose.models.structure import decoder, unwrap

PARTS = ("decoder", "everything")
"""parts that :func:`draw_anew` replaces: decoder layers and final norm, keeping the trained
embeddings and towers; or all parameters"""


@torch.no_grad()
def draw_anew(model: Any, part: str, seed: int) -> None:
    """Replace the parameters of ``part`` in place by draws of the class's own initialisation.

    ``seed`` decides every draw. Buffers of the replaced modules are set to their initial values
    too. A parameter that the class does not initialise is drawn from a normal distribution with its
    previous mean and standard deviation.

    Args:
        model: an unwrapped, unquantised transformers model with complete parameters (not sharded).
        part: one of :data:`PARTS`.

    Raises:
        ValueError: for another ``part``.
    """
    if part not in PARTS:
        raise ValueError(f"part is {part!r}; choose one of {list(PARTS)}")
    base = unwrap(model)
    module = base if part == "everything" else _decoder_stack(base)
    drawn = {id(t): t for t in module.parameters()}
    # transformers (5.23) marks tensors loaded from a checkpoint, and its initialisation skips them
    for one in base.modules():
        one._is_hf_initialized = False
    for tensor in [*base.parameters(), *base.buffers()]:
        tensor._is_hf_initialized = True
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor._is_hf_initialized = False
    spread = {key: _moments(tensor) for key, tensor in drawn.items()}
    devices = [base.device] if base.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for tensor in drawn.values():
            tensor.fill_(torch.nan)  # the class does not initialise tensors that keep nan
        base.initialize_weights()
        for key, tensor in drawn.items():
            if torch.isnan(tensor).any():
                tensor.normal_(*spread[key])
    base.tie_weights()


def _decoder_stack(model: Any) -> nn.Module:
    """The decoder layers and the norm after them, without the embedding."""
    of = decoder(model)
    norms = [child for name, child in of.named_children() if "norm" in name.lower()]
    return nn.ModuleList([*of.layers, *norms])


def _moments(tensor: torch.Tensor, most: int = 4096) -> tuple[float, float]:
    """Mean and standard deviation of evenly spaced entries of a tensor, fewer than twice ``most``."""
    flat = tensor.detach().reshape(-1)
    values = flat[:: max(1, flat.numel() // most)].float()
    return float(values.mean()), float(values.std(correction=0))
