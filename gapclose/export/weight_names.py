"""What a model's tensors are called in its checkpoint: transformers renames some, and cuts or joins some, while it loads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.core_model_loading import revert_weight_conversion

from gapclose.models.structure import unwrap


def on_disk(model: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of the transformers model, by their names in it, as they lie in the checkpoint that it was loaded from.

    Works on the ``meta`` device too, for names and shapes alone.
    """
    return dict(revert_weight_conversion(unwrap(model), dict(tensors)))


def module_on_disk(model: Any, module: str) -> str | None:
    """The name in the checkpoint of a module whose weight lies there whole; None where it is cut, or is one of several."""
    weight = getattr(unwrap(model).get_submodule(module), "weight", None)
    if weight is None:
        return None
    found = list(on_disk(model, {f"{module}.weight": torch.empty(weight.shape, device="meta")}))
    return found[0].removesuffix(".weight") if len(found) == 1 and found[0].endswith(".weight") else None
