"""Find the parts of any transformers model: decoder layers, output embedding, linear modules.

Shapes: B batch, T tokens, D width of the residual stream, P answer positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from gapclose.models.families import NO_ADAPTER_MODULES


def unwrap(model: Any) -> Any:
    """The transformers model inside engine (DDP) and PEFT wrapping."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder(model: Any) -> Any:
    """The module that holds the decoder blocks of the language model.

    It is found through ``get_decoder()``, or ``language_model`` or ``model``, never by a fixed
    path.

    Raises:
        ValueError: when there are none, naming the class.
    """
    module, seen = unwrap(model), set()
    while not isinstance(getattr(module, "layers", None), nn.ModuleList):
        seen.add(id(module))
        deeper = module.get_decoder() if hasattr(module, "get_decoder") else None
        if deeper is None or id(deeper) in seen:
            deeper = getattr(module, "language_model", None) or getattr(module, "model", None)
        if deeper is None or id(deeper) in seen:
            raise ValueError(
                f"{type(unwrap(model)).__name__}: found no decoder layers; gapclose needs a decoder with a ModuleList `layers`"
            )
        module = deeper
    return module


def decoder_layers(model: Any) -> nn.ModuleList:
    """The decoder blocks of the language model. Raises: as :func:`decoder`."""
    return decoder(model).layers


def train_adapters_alone(model: Any) -> None:
    """Set training mode for the adapters, with their dropout, and evaluation mode for all else.

    Frozen modules must compute the same as when they were observed. In training mode, dropout in a
    tower or in the attention of an adapted block would add noise, and batch normalisation (in
    Nemotron-H-Omni's audio tower) would update its statistics, which no adapter stores.

    An adapted block whose activations are recomputed has its own training flag set, but not those
    of its modules, since transformers recomputes nothing without that flag. Dropout that the
    block's own ``forward`` applies by that flag is then active.
    """
    base = unwrap(model)
    base.eval()
    for block in decoder_layers(base):
        if not any(p.requires_grad for p in block.parameters()):
            continue
        block.training = bool(getattr(block, "gradient_checkpointing", False))
        for module in block.modules():
            dropout = getattr(module, "lora_dropout", None)
            if isinstance(dropout, nn.ModuleDict):  # PEFT's layer around the frozen one; with DoRA it also reads its own flag
                module.training = True
                dropout.train()


def output_embedding(model: Any) -> Any:
    """The module that maps the last hidden states to logits.

    It is the model's own, or that of the language model inside it.

    Raises:
        ValueError: when there is none, naming the class.
    """
    base = unwrap(model)
    inner: Any = getattr(base, "language_model", None)  # Nemotron-H-Omni's is a complete causal LM
    for module in (base, inner):
        head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
        if head is not None:
            return head
    raise ValueError(f"{type(base).__name__}: found no output embedding; gapclose needs a model with get_output_embeddings()")


def linear_names(model: Any, layers: Sequence[int]) -> list[str]:
    """Full names of ``nn.Linear`` modules in decoder layers ``layers`` that can hold an adapter.

    Layers count from 1. Names are full, because leaf names such as ``q_proj`` also match the audio
    and vision towers of most families.
    """
    bare = NO_ADAPTER_MODULES.get(decoder(model).config.model_type, ())
    return [n for n, m in _inside(model, layers) if isinstance(m, nn.Linear) and n.rpartition(".")[2] not in bare]


def expert_names(model: Any, layers: Sequence[int]) -> list[str]:
    """Full names of the fused experts in decoder layers ``layers``.

    These are parameters (experts, out, in) of a module with ``num_experts``.
    """
    found = []
    for name, module in _inside(model, layers):
        if hasattr(module, "num_experts"):
            found += [f"{name}.{n}" for n, p in module.named_parameters(recurse=False) if p.dim() == 3]
    return found


def _inside(model: Any, layers: Sequence[int]) -> list[tuple[str, nn.Module]]:
    """Name and module of everything inside decoder layers ``layers``."""
    blocks = decoder_layers(model)
    inside = {id(m) for layer in layers for m in blocks[layer - 1].modules()}
    return [(name, module) for name, module in unwrap(model).named_modules() if id(module) in inside]
