"""Write the complete omni checkpoint with the adapter merged into the trained part.

Each file of the base checkpoint is copied, and the tensors that an adapter changes are overwritten
in the copy. All other tensors keep their bytes, and no tensor is renamed. Memory holds the loaded
part and a copy of one of its modules, never the complete model.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.utils import cached_file

from gapclose.core.errors import ErrorCollector
from gapclose.core.files import write_in_place
from gapclose.export.weight_names import on_disk
from gapclose.models.config import ModelConfig
from gapclose.models.families import EXTRA_FILES, part_name
from gapclose.models.loading import LoadedModel, load_processor
from gapclose.models.structure import unwrap

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""dtypes by name in a safetensors header; adapters cannot be merged into other, quantised types"""
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def check_whole(config: ModelConfig) -> None:
    """Refuse a checkpoint that is not an omni model or has missing files.

    Raises:
        ValueError: with the remedy.
    """
    _files(config)


def write_omni(loaded: LoadedModel, config: ModelConfig, folder: Path) -> None:
    """Write the complete checkpoint with the adapter merged in, and its processor.

    An earlier export is deleted first.

    Raises:
        ValueError: when the checkpoint is not the one that was adapted, or stores a changed tensor
            in a type that cannot be written.
    """
    weights, others = _files(config)
    owners = _owners(loaded.model)
    headers = {path: read_header(path) for path in weights}
    problems = ErrorCollector(f"the checkpoint {config.path}")
    for name in sorted(set(owners) - {n for header in headers.values() for n in header}):
        problems.add(f"holds no tensor {name!r}, which the adapter changes; it is not the checkpoint that was adapted")
    for header in headers.values():
        for name in sorted(set(owners) & set(header)):
            if header[name]["dtype"] not in DTYPES:
                problems.add(f"tensor {name!r} is of type {header[name]['dtype']}; only {', '.join(DTYPES)} can be written")
    problems.raise_if_any()
    shutil.rmtree(folder, ignore_errors=True)
    for path, header in headers.items():
        changed = {name: entry for name, entry in header.items() if name in owners}
        write_in_place(folder / path.name, lambda p, path=path, changed=changed: _fold(loaded.model, path, p, changed, owners))
    for name, path in others.items():  # config.json last: a folder without it is not a checkpoint
        write_in_place(folder / name, lambda p, path=path: shutil.copyfile(path, p))
    load_processor(config).save_pretrained(str(folder))


def compare_parts(config: ModelConfig, folder: Path) -> dict[str, int]:
    """Compare the written checkpoint with its base, byte by byte.

    Returns:
        ``changed``: number of changed tensors; ``same``: number of equal ones in other parts.

    Raises:
        ValueError: when a tensor of another part, a copied file, or the names, shapes or types of
            tensors differ.
    """
    weights, others = _files(config)
    prefix, counts, problems = f"{_part(config)[0]}.", {"changed": 0, "same": 0}, ErrorCollector(f"the omni export {folder}")
    for name, path in others.items():
        if not (folder / name).is_file() or (folder / name).read_bytes() != path.read_bytes():
            problems.add(f"{name} is not that of the base checkpoint")
    for path in weights:
        before, after = read_header(path), read_header(folder / path.name)
        if before != after:
            problems.add(f"{path.name} holds other names, shapes or types than that of the base checkpoint")
            continue
        for name, entry in before.items():
            if read_tensor(path, entry) == read_tensor(folder / path.name, entry):
                counts["same"] += not name.startswith(prefix)
            elif name.startswith(prefix):
                counts["changed"] += 1
            else:
                problems.add(f"tensor {name!r} differs from the base checkpoint's, and only {prefix}* may")
    problems.raise_if_any()
    return counts


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Return name -> ``dtype``, ``shape``, ``place`` (first byte, end) of a file's tensors."""
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        entries = json.loads(handle.read(length))
    start = 8 + length
    return {
        name: {"dtype": e["dtype"], "shape": e["shape"], "place": [start + n for n in e["data_offsets"]]}
        for name, e in entries.items()
        if name != "__metadata__"
    }


def read_tensor(path: Path, entry: Mapping[str, Any]) -> bytes:
    """Return the bytes of one tensor of :func:`read_header`."""
    with path.open("rb") as handle:
        handle.seek(entry["place"][0])
        return handle.read(entry["place"][1] - entry["place"][0])


def _part(config: ModelConfig) -> tuple[str, str]:
    """Return the name of the trained part in the checkpoint, and the model type of the checkpoint.

    Raises:
        ValueError: when the checkpoint is a single model.
    """
    found = transformers.AutoConfig.from_pretrained(config.resolved_path, **config.known)
    name = part_name(found)
    if name is None:
        raise ValueError(
            f"export.omni: model.path {config.path!r} is a single model ({found.model_type}), not an omni checkpoint of several parts; "
            "export.merged writes it with the adapter folded in"
        )
    return name, found.model_type


def _files(config: ModelConfig) -> tuple[list[Path], dict[str, Path]]:
    """Return the checkpoint's weight files, and the files to copy unchanged, config.json last."""
    _, kind = _part(config)
    index = _file(config, INDEX)
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index else [SINGLE]
    weights = {name: _file(config, name) for name in names}
    needed = {name: _file(config, name) for name in EXTRA_FILES.get(kind, ())}
    missing = [name for name, path in (weights | needed).items() if path is None]
    if missing:
        raise ValueError(
            f"export.omni: the checkpoint {config.path!r} has no {', '.join(missing)}, which the whole model needs; "
            "put it there (for a name on the hub, download the whole checkpoint)"
        )
    optional = {INDEX: index, "generation_config.json": _file(config, "generation_config.json")}
    others = {**needed, **optional, "config.json": _file(config, "config.json")}
    return [p for p in weights.values() if p], {name: path for name, path in others.items() if path}


def _file(config: ModelConfig, name: str) -> Path | None:
    """Return a file of the checkpoint, from its directory or the hub's cache, or None."""
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    found = cached_file(config.resolved_path, name, revision=config.revision, **quiet)
    return Path(found) if found else None


def _owners(model: Any) -> dict[str, str]:
    """Return tensor of the checkpoint -> adapted module of the model that holds it."""
    found: dict[str, str] = {}
    for module, layer in unwrap(model).named_modules():
        if isinstance(layer, BaseTunerLayer) and ".base_layer" not in module:
            shapes = {n: torch.empty(p.shape, device="meta") for n, p in _adapted(module, layer).items()}
            found.update((name, module) for name in on_disk(model, shapes))
    return found


def _adapted(module: str, layer: Any) -> dict[str, torch.Tensor]:
    """Return the parameters that a module's adapters change, by name in the unadapted model."""
    names = []
    while isinstance(layer, ParamWrapper):  # nested wrappers, one per parameter
        names.append(layer.parameter_name)
        layer = layer.base_layer
    base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    return {f"{module}.{name}": base.get_parameter(name).data for name in names or ["weight"]}


def _folded(module: str, layer: Any) -> dict[str, torch.Tensor]:
    """Return these parameters with merged adapters, in float32: rounded once, when written."""
    whole = copy.deepcopy(layer).float()
    inner: Any = whole
    while hasattr(inner, "base_layer"):  # nested wrappers
        inner.merge()
        inner = inner.base_layer
    return _adapted(module, whole)


@torch.no_grad()
def _fold(model: Any, source: Path, target: Path, changed: Mapping[str, Mapping[str, Any]], owners: Mapping[str, str]) -> None:
    """Copy a file of weights, then overwrite the tensors that adapters change in the copy."""
    shutil.copyfile(source, target)
    with target.open("r+b") as handle:
        for module in dict.fromkeys(owners[name] for name in changed):
            layer = unwrap(model).get_submodule(module)
            before, after = on_disk(model, _adapted(module, layer)), on_disk(model, _folded(module, layer))
            for name in (n for n in changed if owners[n] == module):
                entry = changed[name]
                held = torch.frombuffer(bytearray(read_tensor(source, entry)), dtype=DTYPES[entry["dtype"]]).reshape(entry["shape"])
                known = before[name].cpu()
                if held.shape != known.shape or not torch.equal(held.to(known.dtype), known):
                    raise ValueError(f"{source}: tensor {name!r} is not what the adapted model holds; was the checkpoint changed since?")
                handle.seek(entry["place"][0])
                handle.write(after[name].cpu().to(held.dtype).contiguous().view(torch.uint8).numpy().tobytes())
