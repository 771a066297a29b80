"""Try before training whether the exports can be saved.

The model is on torch's meta device, with its configurations and its processor, without weights.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers

from gapclose.core.logging import get_logger
from gapclose.models.architecture import build_on_meta, quiet, read_architecture
from gapclose.models.config import ModelConfig
from gapclose.models.loading import assemble, load_processor

logger = get_logger(__name__)

NAMED = re.compile(r"^- `(\w+)`:", re.MULTILINE)
"""a setting in the error of a strict check of a generation configuration (transformers 5.23)"""


def rehearse(config: ModelConfig, *, model: bool) -> None:
    """Save an export without its weights into a temporary folder.

    Args:
        model: also save the model as in ``merged/``; otherwise only the processor.

    Raises:
        ValueError: with the error of saving, and the remedy.
    """
    with tempfile.TemporaryDirectory() as place, quiet(), _no_bar():
        processor = load_processor(config)
        built, unset = build_on_meta(read_architecture(config), config) if model else None, list[str]()
        try:
            if built is not None:
                built.generation_config = read_generation(config, built)
                assemble(built, processor, path=config.path, fingerprint="")
                unset = fit_to_save(built.generation_config)
                built.save_pretrained(place, state_dict={})
            load_processor(config).save_pretrained(place)
            transformers.AutoProcessor.from_pretrained(place, trust_remote_code=config.trust_remote_code)
        except Exception as error:  # any error here would end the run after its training
            raise ValueError(
                f"model.path {config.path!r} could not be exported after the training ({type(error).__name__}: {error}); fix that file of "
                "the checkpoint, or set export.merged and export.omni to false, which leaves the adapter"
            ) from error
    if unset:
        logger.info(f"export.merged leaves {', '.join(unset)} out of generation_config.json: without do_sample or beams nothing uses them")


@contextlib.contextmanager
def _no_bar() -> Iterator[None]:
    """Hide the progress bar of transformers."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.logging.enable_progress_bar()


def read_generation(config: ModelConfig, model: Any) -> Any:
    """Return the generation configuration of the loaded model: the checkpoint's file, else its own.

    Raises:
        ValueError: when the file cannot be read.
    """
    try:
        return transformers.GenerationConfig.from_pretrained(config.resolved_path, revision=config.revision or "main")
    except OSError as error:
        file = Path(config.resolved_path) / "generation_config.json"
        if file.is_file():
            raise ValueError(f"{file}: {error}; copy or download it again") from error
        return model.generation_config


def fit_to_save(settings: Any) -> list[str]:
    """Unset generation settings that have no effect and prevent saving; return their names.

    Published checkpoints set a temperature together with ``do_sample: false``. Transformers saves
    such a configuration only unchanged, and here its end tokens may have changed
    (:func:`gapclose.models.loading.add_eos_tokens`).

    Raises:
        ValueError: when the configuration has any other fault.
    """
    unset = list[str]()
    while True:
        try:
            settings.validate(strict=True)
            return unset
        except ValueError as error:
            names = [name for name in NAMED.findall(str(error)) if getattr(settings, name, None) is not None]
            if not names:
                raise ValueError(f"generation_config.json: {error}") from error
            for name in names:
                setattr(settings, name, None)
            unset += names
