"""Load a transformers multimodal LM with its processor, and set both right for everything else."""

from __future__ import annotations

import copy
import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from gapclose.architecture import attention_of, auto_class, build_on_meta, read_architecture, refuse_no_directory
from gapclose.chat import answer_tokens, set_variables, tokenizer_of
from gapclose.checkpoint import (
    checkpoint_fingerprint,
    checkpoint_folder,
    end_turns,
    refuse_incomplete,
    refuse_parts_apart,
    unreadable_weights,
)
from gapclose.checks import Checks
from gapclose.families import mend, part_for
from gapclose.items import Item, ItemSet
from gapclose.media import Media
from gapclose.prompts import make_prompts, written_tokens
from gapclose.quantise import BYTES, quantised_loading, refuse_quantisation
from gapclose.structure import decoder_layers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

ATTENTION = ("eager", *sorted(n for n in transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS.valid_keys() if not n.startswith("paged|")))
"""attention implementations that transformers has for a forward of whole prompts"""

SHIPPED = {"digits": "base", "digits-never-taught": "never"}
"""name of a tiny model -> its folder in gapclose/digits"""


@dataclass(kw_only=True)
class ModelConfig:
    """Which model to load, and how."""

    path: str = "digits"
    """checkpoint directory or hub name; ``digits`` and ``digits-never-taught`` are the tiny models that ship with the package"""
    revision: str | None = None
    """branch, tag or commit of a hub name; null: its main branch"""
    dtype: str = "auto"
    """auto (what the checkpoint holds), float32, bfloat16 or float16"""
    attention: str = "sdpa"
    """attention implementation of transformers: sdpa, eager, flash_attention_2"""
    template: dict[str, Any] | None = None
    """variables of the chat template, e.g. ``{enable_thinking: false}``; what it does not know is refused"""
    trust_remote_code: bool = False
    """run code that the checkpoint brings along; leave off unless you have read it"""
    quantisation: str | None = None
    """4bit or 8bit: the decoder's linear modules through bitsandbytes, on a CUDA GPU; null: none"""
    sharded: bool = False
    """under launch/fsdp2.yaml, never hold the whole model on one GPU: the base model is observed in shards and read again for training"""
    architecture: str | None = None
    """directory with a config.json, of which ``gapclose validate`` takes the model's sizes while ``path`` cannot be reached; nothing else
    looks at it"""

    def __post_init__(self) -> None:
        with Checks(self, "model") as check:
            check.choice("dtype", ("auto", *DTYPES))
            check.choice("quantisation", BYTES, null="none")
            if check.sound("attention") and self.attention not in ATTENTION and not re.fullmatch(r"[\w.-]+/[\w.:@-]+", self.attention):
                check.add(f"{check.named('attention')}; choose one of {list(ATTENTION)}, or a kernel on the hub, OWNER/NAME", "attention")
            for name, value in (self.template or {}).items() if check.sound("template") else ():
                plain = isinstance(value, str | int | bool | None) or (isinstance(value, float) and math.isfinite(value))
                if not str(name).isidentifier() or not plain:
                    message = f"model.template has {name!r}: {value!r}; give names of variables with a text, number, true, false or null"
                    check.add(message, "template")

    @property
    def known(self) -> dict[str, Any]:
        """What every loader of transformers is told beside the path."""
        return {"trust_remote_code": self.trust_remote_code, "revision": self.revision}

    @property
    def apart(self) -> dict[str, Any]:
        """The settings other than the default that change what a checkpoint computes or is shown, and that its fingerprint does not see."""
        attention = {} if self.attention == "sdpa" else {"attention": self.attention}
        return {**attention, **({"template": self.template} if self.template else {})}

    @property
    def resolved_path(self) -> str:
        """The directory or hub name that transformers is given."""
        folder = SHIPPED.get(self.path)
        return self.path if folder is None else str(Path(__file__).parent / "digits" / folder)


def near_shipped(path: str) -> str:
    """What is meant where a path is nearly the name of a shipped model."""
    near = difflib.get_close_matches(path, SHIPPED, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


@dataclass(kw_only=True)
class LoadedModel:
    """A model with its processor. ``model`` may become a PEFT or engine-wrapped module; the rest looks through the wrapping."""

    model: Any
    processor: Any
    path: str
    fingerprint: str
    apart: dict[str, Any] = field(default_factory=dict)
    """:attr:`ModelConfig.apart`"""
    answers: dict[str, list[int]] = field(default_factory=dict, repr=False)
    """the token ids of options that were asked for before"""

    @property
    def tokenizer(self) -> Any:
        return tokenizer_of(self.processor)

    @property
    def sampling_rate(self) -> int:
        """What the audio encoder expects, in Hz; 16,000 when the model hears nothing."""
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
        """Token ids of an answer as the model would generate it right after the prompt: :func:`gapclose.chat.answer_tokens`."""
        if text not in self.answers:
            self.answers[text] = answer_tokens(self.processor, text)
        return self.answers[text]

    def media(self, items: ItemSet, *, blank: Sequence[str] = ()) -> Media:
        return Media(items.root, self.sampling_rate, framing=items.framing, decoding=items.decoding, blank=blank)

    def prompts(self, items: Sequence[Item], media: Media) -> dict[str, torch.Tensor]:
        """Processor output for a batch of items that carry the same kinds of media: :func:`gapclose.prompts.make_prompts`."""
        return make_prompts(self.processor, items, media)

    def written(self, items: Sequence[Item]) -> list[list[int]] | None:
        """Token ids of prompts as the chat template writes them: :func:`gapclose.prompts.written_tokens`."""
        return written_tokens(self.processor, items)


def load_model(config: ModelConfig) -> LoadedModel:
    """Load model and processor in eval mode on the CPU; accelerate moves it.

    Raises:
        ValueError: when the directory is no checkpoint, has no safetensors or not all of its weights, cannot run with
            ``config.attention`` or ``config.quantisation`` here, needs a package that is not there, or no decoder layers can be found.
    """
    refuse_quantisation(config.quantisation)
    path = config.resolved_path
    architecture = read_architecture(config)
    dtype = config.dtype if config.dtype == "auto" else DTYPES[config.dtype]
    attention = attention_of(config)
    loading: dict[str, Any] = {"config": architecture, "dtype": dtype, "attn_implementation": attention, "use_safetensors": True}
    telling = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # they are refused here, by name
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
    return joined(model.eval(), processor, path=path, fingerprint=fingerprint, apart=config.apart)


def joined(model: Any, processor: Any, *, path: str, fingerprint: str, apart: dict[str, Any] | None = None) -> LoadedModel:
    """Model and processor as everything else expects them: set right where a family needs it, padding on the left.

    Raises:
        ValueError: when the model has no decoder layers.
    """
    mend(model, processor)
    loaded = LoadedModel(model=model, processor=processor, path=path, fingerprint=fingerprint, apart=apart or {})
    loaded.tokenizer.padding_side = "left"
    if loaded.tokenizer.pad_token is None:  # Llama has none; what stands there is masked
        loaded.tokenizer.pad_token = loaded.tokenizer.eos_token
    end_turns(model, loaded.tokenizer)
    decoder_layers(model)
    return loaded


def load_processor(config: ModelConfig) -> Any:
    """The processor alone (a tokenizer where a model only reads text): enough to check options and sounds before any weight is read.

    Raises:
        ValueError: when it cannot be read, needs a package that is not there, its chat template does not know what ``config.template``
            sets, or the checkpoint keeps what it needs for media apart from its weights.
    """
    path = config.resolved_path
    refuse_no_directory(path)
    try:
        processor = transformers.AutoProcessor.from_pretrained(path, **config.known)
    except ImportError as error:
        raise ValueError(f"the processor of model.path {config.path!r} needs a package that is not installed: {error}") from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.path {config.path!r} has no processor or tokenizer that transformers can read ({error}); give a checkpoint directory"
            f"{near_shipped(config.path)}"
        ) from error
    refuse_parts_apart(processor, path, config.revision)
    set_variables(processor, config.template or {})
    return processor
