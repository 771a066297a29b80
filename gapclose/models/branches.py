"""Several continuations of one prompt in one row, each blind to the others.

Behind a prompt lie its *branches*, one after another: the beginnings of its answers. A token of a
branch attends to the prompt and to the earlier tokens of its branch. Positions of a branch count on
from the end of the prompt. Every branch then has the results of a row of its own, and the prompt is
computed once.

Shapes: B rows, T tokens of prompt and branches, S of the branches alone, A axes of rotary positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DummyLayer, DynamicLayer

from gapclose.models.structure import decoder, unwrap

MASKED_ATTENTION = ("sdpa", "eager")
"""implementations of attention that take a mask of (B, 1, T, T)"""


def branches_unsupported(model: Any) -> str | None:
    """Return why the branches of a row would see each other in this model, or None.

    What its settings tell; a trial finds other reasons (:func:`gapclose.observe.branch_trial`).
    """
    config = unwrap(model).config
    layers = DynamicCache(config=config).layers
    if others := sorted({type(layer).__name__ for layer in layers if type(layer) not in (DynamicLayer, DummyLayer)}):
        return f"its layers keep {' and '.join(others)}, not keys and values of every token"
    chosen = decoder(model).config._attn_implementation
    return None if chosen in MASKED_ATTENTION else f"attention {chosen} takes no mask of its own for every token"


def branch_mask(attention: torch.Tensor, branch: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what every token may attend to, as a term (B, 1, T, T) of its attention scores.

    Args:
        attention: (B, T), 1 for tokens and 0 for padding.
        branch: (B, S), the branch of every token behind the prompt, counted from 1; 0 for padding.
    """
    tokens, behind = attention.shape[1], branch.shape[1]
    own = torch.nn.functional.pad(branch, (tokens - behind, 0))  # (B, T), 0 in the prompt
    seen = (own[:, None, :] == 0) | (own[:, :, None] == own[:, None, :])
    seen = seen & attention[:, None, :].bool() & torch.ones(tokens, tokens, dtype=torch.bool, device=attention.device).tril()
    seen = seen | torch.eye(tokens, dtype=torch.bool, device=attention.device)  # a row of padding must attend to something
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def branch_positions(positions: torch.Tensor | None, branch: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """Return positions in which every branch counts on from the end of the prompt.

    Args:
        positions: (B, T) or (A, B, T), as if the branches were one text; None: the tokens of
            ``attention`` are counted.
        branch: (B, S), as in :func:`branch_mask`.
        attention: (B, T), as in :func:`branch_mask`.
    """
    rows, behind = branch.shape
    tokens = attention.shape[1]
    if positions is None:
        positions = (attention.long().cumsum(-1) - 1).clamp_min(0)
    positions = positions.expand(*positions.shape[:-2], rows, -1)
    earlier = (branch[:, :, None] == branch[:, None, :]).tril(-1)  # (B, S, S)
    first = positions[..., tokens - behind, None]
    return torch.cat([positions[..., : tokens - behind], first + earlier.sum(-1)], -1)


@contextmanager
def branched(model: Any, branch: torch.Tensor | None) -> Iterator[None]:
    """Inside, the last S tokens of every row are its branches (B, S); None: rows are read as they are.

    Mask and positions are changed where they enter the decoder, so that media keep what the model
    computes for them.
    """
    if branch is None:
        yield
        return

    def change(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        attention = kwargs.get("attention_mask")
        if not (isinstance(attention, torch.Tensor) and attention.dim() == 2):
            raise ValueError("attention between the tokens of a prompt depends on its media")
        own = branch.to(attention.device)
        places = branch_positions(kwargs.get("position_ids"), own, attention)
        mask = branch_mask(attention, own, next(module.parameters()).dtype)
        return args, kwargs | {"attention_mask": mask, "position_ids": places}

    handle = decoder(model).register_forward_pre_hook(change, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
