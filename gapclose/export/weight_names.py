"""Names of tensors in a checkpoint. Transformers renames, splits or joins some when it loads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.core_model_loading import revert_weight_conversion

from gapclose.models.structure import unwrap


def on_disk(model: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert tensors of the transformers model, by name, to names and form of its checkpoint.

    On the ``meta`` device this gives names and shapes only.
    """
    return dict(revert_weight_conversion(unwrap(model), dict(tensors)))


def module_on_disk(model: Any, module: str) -> str | None:
    """Return the checkpoint's name of a module; None if its weight is split or joined there."""
    weight = getattr(unwrap(model).get_submodule(module), "weight", None)
    if weight is None:
        return None
    found = list(on_disk(model, {f"{module}.weight": torch.empty(weight.shape, device="meta")}))
    return found[0].removesuffix(".weight") if len(found) == 1 and found[0].endswith(".weight") else None
