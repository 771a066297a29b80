"""Write the adapter alone, or the measured model with the adapter merged in."""

from __future__ import annotations

import copy
from pathlib import Path

from gapclose.core.files import new_folder, read_json, write_json
from gapclose.export.rehearsal import fit_to_save
from gapclose.models.config import ModelConfig
from gapclose.models.loading import LoadedModel, load_processor


def write_adapter(loaded: LoadedModel, folder: Path, revision: str | None = None) -> None:
    """Write the adapter alone in PEFT's format, and replace an earlier one.

    Adapters are shared, so a base in a local directory is recorded by the directory's name only.
    Users pass the base themselves: ``PeftModel.from_pretrained(base, folder)``.

    Args:
        revision: configured revision of the base on the hub, or None.
    """
    with new_folder(folder) as place:
        loaded.model.save_pretrained(str(place), save_embedding_layers=False)
        path = place / "adapter_config.json"
        write_json(path, read_json(path) | {"base_model_name_or_path": checkpoint_name(loaded.path), "revision": revision})


def checkpoint_name(path: str) -> str:
    """Return a checkpoint's name on the hub, or the last part of its local directory."""
    return Path(path).name if Path(path).exists() else path


def write_merged(loaded: LoadedModel, config: ModelConfig, folder: Path) -> None:
    """Write the model with the adapter merged in, and its processor, in transformers' format.

    An earlier export is replaced. The processor is read from the checkpoint again, because a used
    one may have stored the padding of its last batch.
    """
    with new_folder(folder) as place:
        merged = copy.deepcopy(loaded.model).merge_and_unload()
        if merged.can_generate():
            fit_to_save(merged.generation_config)
        merged.save_pretrained(str(place))
        load_processor(config).save_pretrained(str(place))
