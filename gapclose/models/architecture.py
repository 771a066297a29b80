"""A model's architecture: its transformers class, and the model without weights on the meta device."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from gapclose.core.files import near_sibling
from gapclose.models.families import trained_part
from gapclose.models.known_checkpoints import GRAFT, recipe, remedy

if TYPE_CHECKING:
    from gapclose.models.config import ModelConfig


def read_architecture(config: ModelConfig, path: str | None = None) -> Any:
    """The transformers config of the part of a checkpoint that is measured and trained.

    Args:
        path: read it from here instead of ``config.path``.

    Raises:
        ValueError: when there is no checkpoint that transformers has a class for; the message adds
            known facts on a published model of that name.
    """
    known = config.known if path is None else {}
    path = path or config.resolved_path
    refuse_no_directory(path)
    try:
        with quiet():
            found = transformers.AutoConfig.from_pretrained(path, **known)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.path {path!r}{absent_words(path)} cannot be read as a transformers checkpoint: {error}{remedy(path)}"
        ) from error
    return trained_part(found)


def refuse_no_directory(path: str) -> None:
    """Refuse a path that cannot be a hub name and is no directory. Raises: ValueError."""
    if is_local(path) and not Path(path).is_dir():
        raise ValueError(
            f"model.path {path!r}: no such directory{recipe(path) or f'; is it mistyped? A name on the hub is OWNER/NAME{remedy(path)}'}"
        )


def is_local(path: str) -> bool:
    """Whether a path is a directory rather than a hub name.

    It begins like a path, has more than one slash, or is the :data:`GRAFT` of a shipped
    configuration.
    """
    return path.startswith((".", "/", "~")) or path.rstrip("/").count("/") > 1 or path.rstrip("/") == GRAFT


def absent_words(path: str) -> str:
    """Return that a path is no directory here, so that the hub was asked; empty where it is one."""
    near = near_sibling(Path(path)).removeprefix("; ")
    return "" if Path(path).is_dir() else f" is no directory here{f' ({near})' if near else ''}, and as a name on the hub it"


def why_absent(config: ModelConfig) -> str | None:
    """Return why ``config.architecture`` replaces a checkpoint: its hub name cannot be reached.

    None where it does not replace one. A directory that exists is never replaced, nor is a missing
    one that cannot be a hub name; :func:`read_architecture` reports their errors.
    """
    path = config.resolved_path
    if config.architecture is None or is_local(path) or Path(path).exists():
        return None
    try:
        read_architecture(config)
    except ValueError as error:
        return " ".join(str(error.__cause__).split()) if isinstance(error.__cause__, OSError) else None
    return None


def auto_class(architecture: Any) -> Any:
    """The auto class of transformers that builds a model of this config."""
    multimodal = transformers.AutoModelForMultimodalLM
    return multimodal if type(architecture) in multimodal._model_mapping else transformers.AutoModelForCausalLM


def attention_of(config: ModelConfig) -> str | None:
    """The attention implementation to request from transformers; None for sdpa.

    transformers uses sdpa by itself except in towers that do not support it (Gemma 4's for audio),
    where requesting it is an error.
    """
    return None if config.attention == "sdpa" else config.attention


def dtype_of(architecture: Any, config: ModelConfig) -> torch.dtype:
    """The dtype that a model of this config is loaded in."""
    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    return getattr(architecture, "dtype", None) or getattr(architecture.get_text_config(), "dtype", None) or torch.float32


def build_on_meta(architecture: Any, config: ModelConfig) -> Any:
    """The model of ``architecture`` in evaluation mode, with all sizes and no weights.

    Raises:
        ValueError: when its class cannot be built here.
    """
    dtype = dtype_of(architecture, config)
    # sizes do not depend on fused kernels, which may not be installed here
    attention = "eager" if config.attention == "eager" else None
    try:
        with quiet(), torch.device("meta"):
            model = auto_class(architecture).from_config(
                architecture, dtype=dtype, attn_implementation=attention, trust_remote_code=config.trust_remote_code
            )
    except (ImportError, ValueError) as error:
        raise ValueError(f"{type(architecture).__name__}: the model cannot be built here: {' '.join(str(error).split())}") from error
    return model.eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, warnings of transformers and every ``FutureWarning`` are silent."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers.logging.set_verbosity(before)
