"""Write the adapter alone, or the measured model with the adapter folded in."""

from __future__ import annotations

import copy
from pathlib import Path

from gapclose.core.files import new_folder, read_json, write_json
from gapclose.export.rehearsal import fit_to_save
from gapclose.models.config import ModelConfig
from gapclose.models.loading import LoadedModel, load_processor


def write_adapter(loaded: LoadedModel, folder: Path, revision: str | None = None) -> None:
    """The adapter alone, as PEFT loads it, in place of what was there.

    Of a base that lies in a directory only that directory's name is told, since adapters travel: ``PeftModel.from_pretrained(base, folder)``
    is given the base.

    Args:
        revision: of the base on the hub, where one was asked for.
    """
    with new_folder(folder) as place:
        loaded.model.save_pretrained(str(place))
        path = place / "adapter_config.json"
        write_json(path, read_json(path) | {"base_model_name_or_path": base_name(loaded), "revision": revision})


def base_name(loaded: LoadedModel) -> str:
    """The base's name on the hub, or the last part of the directory that it lies in."""
    return Path(loaded.path).name if Path(loaded.path).exists() else loaded.path


def write_merged(loaded: LoadedModel, config: ModelConfig, folder: Path) -> None:
    """The adapted model with the adapter folded in, and its processor, as transformers loads them, in place of what was there.

    The processor is the checkpoint's, read again: one that was used may have taken up how its last batch was padded.
    """
    with new_folder(folder) as place:
        merged = copy.deepcopy(loaded.model).merge_and_unload()
        if merged.can_generate():
            fit_to_save(merged.generation_config)
        merged.save_pretrained(str(place))
        load_processor(config).save_pretrained(str(place))
