"""Load a transformers multimodal LM with its processor, and prepare both for all other code."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item
from gapclose.data.media import MediaLoader
from gapclose.models.architecture import absent_words, attention_of, auto_class, build_on_meta, read_architecture, refuse_no_directory
from gapclose.models.chat_template import answer_tokens, set_variables, tokenizer_of
from gapclose.models.checkpoint import checkpoint_fingerprint, checkpoint_folder, refuse_incomplete, refuse_parts_apart, unreadable_weights
from gapclose.models.config import ModelConfig, near_shipped
from gapclose.models.families import apply_family_fixes, part_for
from gapclose.models.processing import make_prompts, written_tokens
from gapclose.models.quantization import quantised_loading, refuse_quantisation
from gapclose.models.structure import decoder_layers


def add_eos_tokens(model: Any, tokenizer: Any) -> None:
    """Let generation also end with the tokenizer's end token.

    The thinker of a complete Qwen-Omni checkpoint names no end token, and would continue with the
    user's next turn.
    """
    named = model.generation_config.eos_token_id
    ends = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None}
    model.generation_config.eos_token_id = sorted(ends) or None


@dataclass(kw_only=True)
class LoadedModel:
    """A model with its processor.

    ``model`` may become a PEFT or engine-wrapped module; other code looks through the wrapping.
    """

    model: Any
    processor: Any
    path: str
    fingerprint: str
    apart: dict[str, Any] = field(default_factory=dict)
    """:attr:`ModelConfig.apart`"""
    answers: dict[str, list[int]] = field(default_factory=dict, repr=False)
    """token ids of options that were requested before"""

    @property
    def tokenizer(self) -> Any:
        return tokenizer_of(self.processor)

    @property
    def sampling_rate(self) -> int:
        """The audio encoder's sampling rate in Hz; 16,000 when the model takes no audio."""
        return getattr(part_for(self.processor, "audio"), "sampling_rate", None) or 16_000

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def layers(self) -> nn.ModuleList:
        return decoder_layers(self.model)

    @property
    def width(self) -> int:
        return self.model.get_input_embeddings().weight.shape[1]

    def option_tokens(self, text: str) -> list[int]:
        """Token ids of an answer right after the prompt.

        See :func:`gapclose.models.chat_template.answer_tokens`.
        """
        if text not in self.answers:
            self.answers[text] = answer_tokens(self.processor, text)
        return self.answers[text]

    def media(self, items: ItemSet, *, blank: Sequence[str] = ()) -> MediaLoader:
        return MediaLoader(items.root, self.sampling_rate, framing=items.framing, decoding=items.decoding, blank=blank)

    def prompts(self, items: Sequence[Item], media: MediaLoader) -> dict[str, torch.Tensor]:
        """Processor output for items with the same kinds of media.

        See :func:`gapclose.models.processing.make_prompts`.
        """
        return make_prompts(self.processor, items, media)

    def written(self, items: Sequence[Item]) -> list[list[int]] | None:
        """Token ids of prompts as the chat template writes them.

        See :func:`gapclose.models.processing.written_tokens`.
        """
        return written_tokens(self.processor, items)


def load_model(config: ModelConfig) -> LoadedModel:
    """Load model and processor in eval mode on the CPU; accelerate moves it.

    Raises:
        ValueError: when the directory is no checkpoint, has no safetensors or not all of its
            weights, cannot run with ``config.attention`` or ``config.quantisation`` here, needs a
            package that is not installed, or has no decoder layers.
    """
    refuse_quantisation(config.quantisation)
    path = config.resolved_path
    architecture = read_architecture(config)
    dtype = config.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    attention = attention_of(config)
    loading: dict[str, Any] = {"config": architecture, "dtype": dtype, "attn_implementation": attention, "use_safetensors": True}
    telling = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # faults are refused below, by name
    processor = load_processor(config)
    if config.quantisation:
        empty = build_on_meta(copy.deepcopy(architecture), config)
        loading |= quantised_loading(config.quantisation, empty, decoder_layers(empty))
    try:
        read: Any = auto_class(architecture).from_pretrained(path, **loading, **telling, **config.known)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"model.path {path!r} {unreadable_weights(checkpoint_folder(path, config.revision), error)}") from error
    except ImportError as error:
        if attention is None:
            raise ValueError(f"model.path {path!r} needs a package that is not installed: {error}") from error
        raise ValueError(f"model.attention {config.attention!r} cannot be used here ({error}); choose sdpa or eager") from error
    model, info = read
    refuse_incomplete(path, info)
    fingerprint = checkpoint_fingerprint(checkpoint_folder(path, config.revision), model)
    return assemble(model.eval(), processor, path=path, fingerprint=fingerprint, apart=config.apart)


def assemble(model: Any, processor: Any, *, path: str, fingerprint: str, apart: dict[str, Any] | None = None) -> LoadedModel:
    """Combine model and processor: fix what a family needs, pad on the left, set end tokens.

    Raises:
        ValueError: when the model has no decoder layers.
    """
    apply_family_fixes(model, processor)
    loaded = LoadedModel(model=model, processor=processor, path=path, fingerprint=fingerprint, apart=apart or {})
    loaded.tokenizer.padding_side = "left"
    if loaded.tokenizer.pad_token is None:  # Llama has none; padding is masked
        loaded.tokenizer.pad_token = loaded.tokenizer.eos_token
    add_eos_tokens(model, loaded.tokenizer)
    decoder_layers(model)
    return loaded


def load_processor(config: ModelConfig) -> Any:
    """Load the processor alone, to check options and audio before any weight is read.

    Text-only models have only a tokenizer.

    Raises:
        ValueError: when it cannot be read or needs a package that is not installed, when its chat
            template does not use a variable of ``config.template``, or when the checkpoint keeps
            adapters for its media apart from its weights.
    """
    path = config.resolved_path
    refuse_no_directory(path)
    try:
        processor = transformers.AutoProcessor.from_pretrained(path, **config.known)
    except ImportError as error:
        raise ValueError(f"the processor of model.path {config.path!r} needs a package that is not installed: {error}") from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.path {config.path!r}{absent_words(path)} has no processor or tokenizer that transformers can read ({error}); give a checkpoint directory"
            f"{near_shipped(config.path)}"
        ) from error
    refuse_parts_apart(processor, path, config.revision)
    set_variables(processor, config.template or {})
    return processor
