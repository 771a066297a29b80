"""The memory that a computation takes, measured by running it on tensors without values.

Inside :class:`Meter`, floating-point tensors live on torch's meta device: they have sizes only.
Integers and booleans (token ids, masks, grids of patches) stay real, on the CPU, because models
compute shapes from them. Every storage is counted from its creation until it is freed, as an
allocator would, in the forward and the backward pass. Temporary memory inside a kernel is not
counted.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
ATTENTION = F.scaled_dot_product_attention

LARGEST_REAL = 1 << 24
"""elements up to which integer and boolean tensors stay real; a (T, T) mask of a long prompt would
fill the memory"""
CHOICES = (aten.topk.default, aten.sort.default, aten.sort.stable, aten.argsort.default, aten.max.dim, aten.min.dim, aten.argmax.default)
"""operations that return indices, which are taken as evenly spread, e.g. tokens over experts"""


class Meter(TorchDispatchMode):
    """Counts the bytes that are alive; ``peak`` is their maximum so far.

    The values of floating-point tensors are unknown. A computation that depends on them raises
    NotImplementedError or RuntimeError.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref] = {}
        self._around = contextlib.ExitStack()

    def __enter__(self) -> Meter:
        # on meta tensors torch would allocate the attention weights, which fused kernels do not
        self._around.enter_context(mock.patch.object(F, "scaled_dot_product_attention", _attend))
        # torch 2.13 has no autocast for meta tensors; PEFT turns it off around adapters of experts
        self._around.enter_context(mock.patch.object(torch, "autocast", _autocast))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._around.close()

    def count(self, *tensors: torch.Tensor) -> None:
        """Start to count the storages of tensors."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self._known:
                continue
            self._known[key] = weakref.ref(storage, self._freed(key, size))
            self.live += size
            self.peak = max(self.peak, self.live)

    def _freed(self, key: int, size: int) -> Callable[[Any], None]:
        def forget(_: Any) -> None:
            self.live -= size
            del self._known[key]

        return forget

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = _run(func, args, kwargs or {}, list(_within((args, kwargs))))
        self.count(*_within(output))
        return output


def _within(tree: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors among the arguments or results of an operation."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for part in tree:
            yield from _within(part)
    elif isinstance(tree, dict):
        yield from _within(list(tree.values()))


def _run(func: Any, args: tuple, kwargs: dict[str, Any], tensors: list[torch.Tensor]) -> Any:
    """Run ``func`` on real tensors where all are real, else on sizes alone."""
    if not any(t.is_meta for t in tensors):
        return _real(func, args, kwargs, tensors)
    if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor):
        args = (args[0], _by_place(args[1]), *args[2:])
    if func._schema.is_mutable and not args[0].is_meta:
        raise NotImplementedError(f"{func} writes what is not known into what is")
    # a tensor without values stays on the meta device
    if func is aten._to_copy.default and "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("meta")}
    if not all(t.is_meta for t in _within((args, kwargs))):
        args, kwargs = tree_map_only(torch.Tensor, _size_of, (args, kwargs))
    if func is aten._grouped_mm.default:
        return _grouped(*args)
    output = func(*args, **kwargs)
    if func in CHOICES:
        return tree_map_only(torch.Tensor, lambda t: t if t.is_floating_point() else _spread(func, t, args), output)
    return output


def _real(func: Any, args: tuple, kwargs: dict[str, Any], tensors: list[torch.Tensor]) -> Any:
    # the CPU has no kernel for integers
    if func is aten.histc.default and not tensors[0].is_floating_point():
        return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
    if not _is_meta(kwargs.get("device")):
        if any(t.numel() > 4096 for t in tensors) and not func.is_view and _too_large(func, args, kwargs):
            return func(*tree_map_only(torch.Tensor, _size_of, args), **tree_map_only(torch.Tensor, _size_of, kwargs))
        return func(*args, **kwargs)
    likely = func(*tree_map_only(torch.Tensor, _size_of, args), **kwargs)
    stays = (bool(tensors) or not likely.is_floating_point()) and likely.numel() <= LARGEST_REAL
    return func(*args, **{**kwargs, "device": torch.device("cpu")}) if stays else likely


def _too_large(func: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether the result is too large for a real tensor; False if its size depends on values."""
    try:
        sized = func(*tree_map_only(torch.Tensor, _size_of, args), **tree_map_only(torch.Tensor, _size_of, kwargs))
    except (NotImplementedError, RuntimeError):
        return False
    return any(t.numel() > LARGEST_REAL for t in _within(sized))


def _autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
    return contextlib.nullcontext() if device_type == "meta" else torch.amp.autocast_mode.autocast(device_type, *args, **kwargs)


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"


def _size_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same tensor without values."""
    return tensor if tensor.is_meta else torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _by_place(indices: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Replace real masks among the indices by the positions where they are true.

    The number of these positions is known, unlike that of a mask without values.
    """
    found: list[torch.Tensor | None] = []
    for index in indices:
        known = index is not None and index.dtype in (torch.bool, torch.uint8) and not index.is_meta
        found += index.nonzero().unbind(1) if known and index is not None else [index]
    return found


def _spread(func: Any, places: torch.Tensor, args: tuple) -> torch.Tensor:
    """Return indices that are spread evenly along the dimension in which ``func`` chooses."""
    if places.numel() > LARGEST_REAL:
        return places
    choices = args[0].shape[args[2] if func is aten.topk.default and len(args) > 2 else -1] if args[0].dim() else 1
    return (torch.arange(places.numel()) % choices).reshape(places.shape)


def _grouped(a: torch.Tensor, b: torch.Tensor, ends: torch.Tensor | None = None, *_: Any) -> torch.Tensor:
    """Return the size of a grouped product: rows (M, K) with (G, K, N), or (M, K) with (K, N).

    torch 2.13 has it for bfloat16 only.
    """
    groups = [len(ends)] if a.dim() == b.dim() == 2 and ends is not None else []
    return a.new_empty(*groups, a.shape[-2], b.shape[-1])


def _attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Replace ``scaled_dot_product_attention`` by an operation with a fused kernel's memory.

    Shapes: (B, heads, T, head width).
    """
    if not query.is_meta:
        return ATTENTION(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(attn_mask.shape, dtype=query.dtype, device="meta")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
