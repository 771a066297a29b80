"""Quantised base models: bitsandbytes through transformers, for the decoder's linear modules alone.

Adapters on them stay in float32.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

BYTES = {"8bit": 1.0, "4bit": 0.5 + 1 / 64}
"""kind -> bytes per weight; 4bit has 4 bits and, doubly quantised, an eighth of a bit for the
scales of blocks of 64 weights"""


def refuse_quantisation(kind: str | None) -> None:
    """Refuse quantisation that is not possible here.

    Raises:
        ValueError: naming the missing requirement.
    """
    if kind is None:
        return
    if not torch.cuda.is_available():
        raise ValueError(f"model.quantisation {kind} needs a CUDA GPU, and torch sees none; leave the key out (null) on this machine")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"model.quantisation {kind} needs bitsandbytes; `pip install bitsandbytes`, or the extra `quantised`")


def quantised_loading(kind: str, model: nn.Module, blocks: nn.ModuleList) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that quantise a model and load it to this process's GPU.

    Args:
        model: without weights, to find the modules that are not quantised: towers, embeddings and
            the output, whose rounding would reach every layer.
        blocks: the decoder's layers, inside ``model``.
    """
    settings = BitsAndBytesConfig(**quantised_settings(kind, model, blocks))
    return {"quantization_config": settings, "device_map": {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}}


def quantised_settings(kind: str, model: nn.Module, blocks: nn.ModuleList) -> dict[str, Any]:
    """Arguments of ``BitsAndBytesConfig``; parameters as in :func:`quantised_loading`."""
    how: dict[str, Any] = {"load_in_8bit": True}
    if kind == "4bit":
        how = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": torch.bfloat16,
        }
    return {**how, "llm_int8_skip_modules": outside(model, blocks)}


def outside(model: nn.Module, blocks: nn.ModuleList) -> list[str]:
    """Full names of the largest modules that lie outside the decoder's blocks."""
    found: list[str] = []

    def walk(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            if child is blocks:
                continue
            if any(inner is blocks for inner in child.modules()):
                walk(child, f"{prefix}{name}.")
            else:
                found.append(f"{prefix}{name}")

    walk(model, "")
    return found


def bytes_saved(kind: str | None, blocks: nn.ModuleList) -> int:
    """Bytes of weights that quantising saves.

    Fused experts are not linear modules and stay as they are.
    """
    if kind is None:
        return 0
    linears = [m.weight for name, m in blocks.named_modules() if isinstance(m, nn.Linear) and "lora_" not in name]
    return sum(w.nbytes - round(w.numel() * BYTES[kind]) for w in linears)
