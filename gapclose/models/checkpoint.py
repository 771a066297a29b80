"""The files of a checkpoint: location, fingerprints, and refusal of files that do not load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from gapclose.models.families import KEPT_APART
from gapclose.models.sharding import gathered
from gapclose.models.structure import unwrap

HASHED = (
    "tokenizer*",
    "*processor_config.json",
    "chat_template*",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
HASHED += ("vocab.json", "merges.txt", "tekken.json", "*.model", "*.py")
"""files besides config and weights that determine a model's input and output"""
BLOCK, BLOCKS = 4096, 16
"""bytes of a block, and number of blocks that are hashed of a tensor; one of at most their product,
64 KiB, is hashed completely"""


def checkpoint_folder(path: str, revision: str | None = None) -> Path:
    """Return the directory of a checkpoint's files; for a hub name, its snapshot in the cache.

    Raises:
        OSError: when there is none.
    """
    if Path(path).is_dir():
        return Path(path)
    return Path(str(cached_file(path, "config.json", revision=revision))).parent


def checkpoint_fingerprint(folder: Path, model: Any) -> str:
    """Hash that distinguishes checkpoints without reading all of a 60 GB file.

    It covers the config, parts of every tensor, and the processor. Every tensor is included, since
    an adapter merged into the upper layers leaves both ends of a file unchanged. Of a tensor,
    :data:`BLOCKS` blocks of :data:`BLOCK` bytes are read at even distances, the first and the last
    included, so at most 64 KiB. A change of a range of rows is always detected if it spans a
    fifteenth of the tensor. A change of a share f of the blocks, at random, is detected with
    probability 1 - (1 - f)^16: 0.81 for a tenth, 0.99998 for a half. A change of one number in a
    large tensor is usually not detected.
    """
    digest = hashlib.sha256(json.dumps(model.config.to_diff_dict(), sort_keys=True, default=str).encode())
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = handle.read(length)
            digest.update(file.name.encode() + header)
            for name, entry in sorted(json.loads(header).items()):
                if name != "__metadata__":
                    start, end = entry["data_offsets"]
                    for place, size in _blocks(end - start):
                        handle.seek(8 + length + start + place)
                        digest.update(handle.read(size))
    for pattern in HASHED:
        for file in sorted(f for f in folder.glob(pattern) if f.is_file()):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def memory_fingerprint(model: Any, processor: Any) -> str:
    """Hash that distinguishes models in memory.

    It covers config, attention and generation settings, the processor's settings and vocabulary,
    and the blocks of every parameter and buffer that :func:`checkpoint_fingerprint` reads of a
    file. LoRA adapters of PEFT do not count: a model has the same hash with and without them. Under
    an engine that shards the model, all processes must call it.
    """
    model = unwrap(model)
    generation = getattr(model, "generation_config", None)
    stated = [_lasting(of.to_diff_dict()) for of in (model.config, generation) if of is not None]
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True, default=str).encode())
    digest.update(str(getattr(model.config, "_attn_implementation", "")).encode())
    parts = {name: getattr(processor, name, None) for name in ("image_processor", "video_processor", "feature_extractor")}
    settings = {name: part.to_dict() for name, part in parts.items() if part is not None}
    tokenizer = getattr(processor, "tokenizer", processor)  # not its files, which store the padding of the last batch
    settings |= {"template": getattr(processor, "chat_template", None), "vocabulary": sorted(tokenizer.get_vocab().items())}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    weights = {name.replace(".base_layer.", "."): t for name, t in model.state_dict(keep_vars=True).items() if ".lora_" not in name}
    for name, parameter in sorted(weights.items()):
        with gathered(parameter) as tensor:
            raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            for place, size in _blocks(len(raw)):
                digest.update(raw[place : place + size].cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _lasting(settings: dict[str, Any]) -> dict[str, Any]:
    """Drop the settings that training changes.

    These are ``use_cache`` and the ids of special tokens, which transformers' Trainer aligns with
    the tokenizer's.
    """
    kept = {k: v for k, v in settings.items() if not k.endswith("_token_id") and k != "use_cache"}
    return {k: _lasting(v) if isinstance(v, dict) else v for k, v in kept.items()}


def _blocks(size: int) -> list[tuple[int, int]]:
    """First byte and length of the hashed blocks of a tensor of ``size`` bytes, in order."""
    if size <= BLOCK * BLOCKS:
        return [(0, size)]
    return [(n * (size - BLOCK) // (BLOCKS - 1), BLOCK) for n in range(BLOCKS)]


def unreadable_weights(folder: Path, error: Exception) -> str:
    """Return why the weights in ``folder`` do not load, with the remedy."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return f"has no weights in safetensors; save them so (other formats can run code): {error}"
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as fault:
            return f"has a file of weights that is damaged or was copied halfway, {file.name} ({fault}); copy or download it again"
    return f"has weights that cannot be read ({error}); copy or download what is missing"


def refuse_incomplete(path: str, info: Mapping[str, Any]) -> None:
    """Refuse a checkpoint with missing or misshapen weights, by the loading info of transformers.

    transformers would fill these with random numbers.

    Raises:
        ValueError: naming up to three tensors that are missing, and three with another shape than
            the config's.
    """
    found = []
    if missing := sorted(info["missing_keys"]):
        found.append(f"{len(missing)} tensors are not there ({_some(missing)})")
    if other := [f"{name} {list(there)} for {list(wanted)}" for name, there, wanted in sorted(info["mismatched_keys"])]:
        found.append(f"{len(other)} have another shape than config.json says ({_some(other)})")
    if found:
        raise ValueError(
            f"model.path {path!r} lacks weights, which transformers would fill with random numbers: {'; '.join(found)}; copy or save the "
            "whole checkpoint again"
        )


def refuse_parts_apart(processor: Any, path: str, revision: str | None) -> None:
    """Refuse a checkpoint that keeps adapters for its media beside its weights.

    They would not be loaded, and the model would read the media without them.

    Raises:
        ValueError: naming the adapters and how to merge one.
    """
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False, "revision": revision}
    folders = KEPT_APART.get(type(processor).__name__, {})
    found = [name for name in folders if cached_file(path, "adapter_config.json", subfolder=name, **quiet) is not None]
    if found:
        raise ValueError(
            f"model.path {path!r} keeps adapters beside its weights ({', '.join(f'{n} for {folders[n]}' for n in found)}), which are not "
            "loaded with it; merge the one for your items into a checkpoint of your own: docs/how-to/families.md, *Adapters that a checkpoint "
            "brings along*"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
