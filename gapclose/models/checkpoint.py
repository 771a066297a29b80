"""The files of a checkpoint: where they lie, what tells two checkpoints apart, and what is wrong when they do not load."""

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

HASHED = (
    "tokenizer*",
    "*processor_config.json",
    "chat_template*",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
HASHED += ("vocab.json", "merges.txt", "tekken.json", "*.model", "*.py")
"""files beside config and weights that decide what a model is shown and says"""
BLOCK, BLOCKS = 4096, 16
"""bytes of a block, and how many of them are hashed of a tensor; one of at most their product, 64 KiB, is hashed whole"""


def checkpoint_folder(path: str, revision: str | None = None) -> Path:
    """The directory that holds a checkpoint's files; of a hub name, its snapshot in the cache. Raises: OSError where there is none."""
    if Path(path).is_dir():
        return Path(path)
    return Path(str(cached_file(path, "config.json", revision=revision))).parent


def checkpoint_fingerprint(folder: Path, model: Any) -> str:
    """Hash that tells checkpoints apart without reading all of a 60 GB file: the config, parts of every tensor, the processor.

    Of every tensor, since an adapter merged into the upper layers leaves both ends of a file as they were. Of a tensor, :data:`BLOCKS`
    blocks of :data:`BLOCK` bytes at even distances, the first and the last included, so at most 64 KiB. A change of a whole row range is
    seen for certain where it spans a fifteenth of the tensor; one that touches a share f of the blocks, at random, with probability
    1 - (1 - f)^16: 0.81 for a tenth, 0.99998 for a half. A change of one number in a large tensor is not seen.
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
    """Hash that tells models in memory apart: config, attention and generation settings, the processor's settings and vocabulary, and of every parameter and
    buffer the blocks that :func:`checkpoint_fingerprint` reads of a file."""
    generation = getattr(model, "generation_config", None)
    stated = [_lasting(of.to_diff_dict()) for of in (model.config, generation) if of is not None]
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True, default=str).encode())
    digest.update(str(getattr(model.config, "_attn_implementation", "")).encode())
    parts = {name: getattr(processor, name, None) for name in ("image_processor", "video_processor", "feature_extractor")}
    settings = {name: part.to_dict() for name, part in parts.items() if part is not None}
    tokenizer = getattr(processor, "tokenizer", processor)  # not its files: they hold how the last batch was padded
    settings |= {"template": getattr(processor, "chat_template", None), "vocabulary": sorted(tokenizer.get_vocab().items())}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        for place, size in _blocks(len(raw)):
            digest.update(raw[place : place + size].cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _lasting(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that a training sets: transformers' Trainer aligns ids of special tokens with the tokenizer's."""
    kept = {k: v for k, v in settings.items() if not k.endswith("_token_id") and k != "use_cache"}
    return {k: _lasting(v) if isinstance(v, dict) else v for k, v in kept.items()}


def _blocks(size: int) -> list[tuple[int, int]]:
    """First byte and length of what is hashed of a tensor of ``size`` bytes, in order."""
    if size <= BLOCK * BLOCKS:
        return [(0, size)]
    return [(n * (size - BLOCK) // (BLOCKS - 1), BLOCK) for n in range(BLOCKS)]


def unreadable_weights(folder: Path, error: Exception) -> str:
    """What keeps the weights in ``folder`` from loading, with the remedy."""
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
    """Refuse a checkpoint that lacks weights, by what transformers tells of the loading: it fills them with random numbers.

    Raises:
        ValueError: naming three of the tensors that are not there, or have another shape than the config says.
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
    """Refuse a checkpoint that keeps adapters for its media beside its weights: they would not be loaded, and it would see or hear without.

    Raises:
        ValueError: naming the adapters and how to merge one.
    """
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False, "revision": revision}
    folders = KEPT_APART.get(type(processor).__name__, {})
    found = [name for name in folders if cached_file(path, "adapter_config.json", subfolder=name, **quiet) is not None]
    if found:
        raise ValueError(
            f"model.path {path!r} keeps adapters beside its weights ({', '.join(f'{n} for {folders[n]}' for n in found)}), which are not "
            "loaded with it; merge the one for your items into a checkpoint of your own: docs/your-model.md, *Adapters that a checkpoint "
            "brings along*"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
