"""The request for an observation, and the fingerprint that identifies a stored one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item
from gapclose.models.loading import LoadedModel
from gapclose.models.structure import unwrap
from gapclose.observe.config import ObserveConfig


class HiddenStates(Protocol):
    """Interface of a hidden-state cache (:mod:`gapclose.observe.frozen_cache`).

    A forward that uses it starts above the frozen layers.
    """

    @property
    def frozen(self) -> int:
        """Decoder layers below the first adapted one."""
        ...

    @property
    def branching(self) -> bool:
        """Whether the model reads the answers of an item in one row."""
        ...

    def batch(self, rows: Sequence[tuple[Item, list[list[int]]]]) -> tuple[dict[str, torch.Tensor], int]:
        """Model inputs for items with branches behind their prompts, and the prompt length."""
        ...

    def score(
        self, loaded: LoadedModel, batch: Sequence[Item], layers: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[int, torch.Tensor]]:
        """Log-probabilities of next token (B, V) and options (B, O); residuals by layer (B, D)."""
        ...


@dataclass(kw_only=True)
class ObservationRequest:
    """The quantities to observe besides the scores."""

    layers: Sequence[int] = ()
    generate: bool = False
    top_tokens: int = 0
    """number of most probable next tokens whose log-probabilities are kept (0: none)"""
    blank: Sequence[str] = ()
    """kinds of media to blank (a control): image, audio, video"""
    patch: Mapping[int, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    """decoder layer, counted from 1 -> item id -> residual (D,) that replaces the item's own after
    that layer, at the answer position"""
    extra: dict[str, Any] = field(default_factory=dict)
    """further entries that identify the observation, e.g. the adapter's fingerprint"""
    trunk: HiddenStates | None = None
    """hidden-state cache of all items, the source of scores and residuals; answers are generated
    without it"""


def request_of(loaded: LoadedModel, items: ItemSet, config: ObserveConfig, wanted: ObservationRequest) -> dict[str, Any]:
    """Return everything that identifies an observation as one JSON object.

    ``fingerprint`` is the first 16 hex digits of its SHA-256.
    """
    request = {
        "items": items.fingerprint(),
        "model": loaded.fingerprint,
        **loaded.apart,
        "dtype": str(next(unwrap(loaded.model).parameters()).dtype),
        "device": loaded.device.type,
        "batch_size": config.batch_size,
        "shard_batches": config.shard_batches,
        "layers": sorted(wanted.layers),
        "generate": config.max_new_tokens if wanted.generate else 0,
        "top_tokens": wanted.top_tokens,
        "blank": sorted(set(wanted.blank) & {kind for item in items for kind, _ in item.media}),
        "patch": [x for layer, of in sorted(wanted.patch.items()) for x in (layer, _digest([of[i.id] for i in items]))] or None,
        **({"share_prefix": True} if config.shares else {}),
        **({"trunk": wanted.trunk.frozen} if wanted.trunk else {}),
        **wanted.extra,
    }
    request["fingerprint"] = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
    return request


def _digest(residuals: Sequence[torch.Tensor]) -> str:
    return hashlib.sha256(torch.stack(list(residuals)).float().numpy().tobytes()).hexdigest()[:16]
