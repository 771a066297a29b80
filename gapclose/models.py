"""Load a transformers multimodal LM and find in it what the rest needs: decoder layers, answer positions, option tokens.

Shapes: B batch, T tokens, D width of the residual stream, P answer positions, V vocabulary.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from gapclose.architecture import attention_of, auto_class, build_on_meta, read_architecture
from gapclose.families import BARE, mend, part_for
from gapclose.items import Item, ItemSet
from gapclose.media import Media
from gapclose.prompts import make_prompts, tokenizer_of
from gapclose.quantise import BYTES, quantised_loading, refuse_quantisation

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

SHIPPED = {"digits": "base", "digits-never-taught": "never"}
"""name of a tiny model -> its folder in gapclose/digits"""


@dataclass(kw_only=True)
class ModelConfig:
    """Which model to load, and how."""

    path: str = "digits"
    """checkpoint directory or hub name; ``digits`` and ``digits-never-taught`` are the tiny models that ship with the package"""
    dtype: str = "auto"
    """auto (what the checkpoint holds), float32, bfloat16 or float16"""
    attention: str = "sdpa"
    """attention implementation of transformers: sdpa, eager, flash_attention_2"""
    trust_remote_code: bool = False
    """run code that the checkpoint brings along; leave off unless you have read it"""
    quantisation: str | None = None
    """4bit or 8bit: the decoder's linear modules through bitsandbytes, on a CUDA GPU; null: none"""
    architecture: str | None = None
    """directory with a config.json, of which ``gapclose validate`` takes the model's sizes while ``path`` cannot be reached; nothing else
    looks at it"""

    def __post_init__(self) -> None:
        if self.dtype != "auto" and self.dtype not in DTYPES:
            raise ValueError(f"model.dtype is {self.dtype!r}; choose auto, {', '.join(DTYPES)}")
        if self.quantisation not in (None, *BYTES):
            raise ValueError(f"model.quantisation is {self.quantisation!r}; choose 4bit or 8bit, or null for none")

    @property
    def resolved_path(self) -> str:
        """The directory or hub name that transformers is given."""
        folder = SHIPPED.get(self.path)
        return self.path if folder is None else str(Path(__file__).parent / "digits" / folder)


@dataclass(kw_only=True)
class LoadedModel:
    """A model with its processor. ``model`` may become a PEFT or engine-wrapped module; the rest looks through the wrapping."""

    model: Any
    processor: Any
    path: str
    fingerprint: str
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
        """Token ids of an answer as the model would generate it right after the prompt."""
        if text not in self.answers:
            self.answers[text] = self.tokenizer(text, add_special_tokens=False).input_ids
        return self.answers[text]

    def media(self, items: ItemSet, *, blank: Sequence[str] = ()) -> Media:
        return Media(items.root, self.sampling_rate, framing=items.framing, blank=blank)

    def prompts(self, items: Sequence[Item], media: Media) -> dict[str, torch.Tensor]:
        """Processor output for a batch of items that carry the same kinds of media: :func:`gapclose.prompts.make_prompts`."""
        return make_prompts(self.processor, items, media)


def load_model(config: ModelConfig) -> LoadedModel:
    """Load model and processor in eval mode on the CPU; accelerate moves it.

    Raises:
        ValueError: when the directory is no checkpoint, has no safetensors, cannot run with ``config.attention`` or
            ``config.quantisation`` here, or no decoder layers can be found.
    """
    refuse_quantisation(config.quantisation)
    path = config.resolved_path
    known = {"trust_remote_code": config.trust_remote_code}
    architecture = read_architecture(config)
    dtype = config.dtype if config.dtype == "auto" else DTYPES[config.dtype]
    loading: dict[str, Any] = {"config": architecture, "dtype": dtype, "attn_implementation": attention_of(config), "use_safetensors": True}
    if config.quantisation:
        empty = build_on_meta(copy.deepcopy(architecture), config)
        loading |= quantised_loading(config.quantisation, empty, decoder_layers(empty))
    try:
        model = auto_class(architecture).from_pretrained(path, **loading, **known).eval()
    except OSError as error:
        raise ValueError(
            f"model.path {path!r} has no weights in safetensors; save them so (other formats can run code): {error}"
        ) from error
    except ImportError as error:
        raise ValueError(f"model.attention {config.attention!r} cannot be used here ({error}); choose sdpa or eager") from error
    return joined(model, load_processor(config), path=path, fingerprint=checkpoint_fingerprint(path, model))


def joined(model: Any, processor: Any, *, path: str, fingerprint: str) -> LoadedModel:
    """Model and processor as everything else expects them: set right where a family needs it, padding on the left.

    Raises:
        ValueError: when the model has no decoder layers.
    """
    mend(model, processor)
    loaded = LoadedModel(model=model, processor=processor, path=path, fingerprint=fingerprint)
    loaded.tokenizer.padding_side = "left"
    if loaded.tokenizer.pad_token is None:  # Llama has none; what stands there is masked
        loaded.tokenizer.pad_token = loaded.tokenizer.eos_token
    decoder_layers(model)
    return loaded


def load_processor(config: ModelConfig) -> Any:
    """The processor alone (a tokenizer where a model only reads text): enough to check options and sounds before any weight is read."""
    return transformers.AutoProcessor.from_pretrained(config.resolved_path, trust_remote_code=config.trust_remote_code)


def unwrap(model: Any) -> Any:
    """The transformers model inside engine (DDP) and PEFT wrapping."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder(model: Any) -> Any:
    """The module that holds the decoder blocks of the language model, found through ``get_decoder()`` and never by a fixed path.

    Raises:
        ValueError: when there are none, naming the class.
    """
    module, seen = unwrap(model), set()
    while not isinstance(getattr(module, "layers", None), nn.ModuleList):
        seen.add(id(module))
        deeper = module.get_decoder() if hasattr(module, "get_decoder") else None
        if deeper is None or id(deeper) in seen:
            deeper = getattr(module, "language_model", None) or getattr(module, "model", None)
        if deeper is None or id(deeper) in seen:
            raise ValueError(
                f"{type(unwrap(model)).__name__}: found no decoder layers; gapclose needs a decoder with a ModuleList `layers`"
            )
        module = deeper
    return module


def decoder_layers(model: Any) -> nn.ModuleList:
    """The decoder blocks of the language model. Raises: as :func:`decoder`."""
    return decoder(model).layers


def train_adapters_alone(model: Any) -> None:
    """Training mode for the decoder blocks that hold trainable parameters, evaluation mode for everything else.

    What is frozen must compute what it computed when it was observed: in training mode, dropout in a tower would make noise of it, and
    batch normalisation (Nemotron-H-Omni hears through one) would even change it, by statistics that no adapter carries.
    """
    base = unwrap(model)
    base.eval()
    for block in decoder_layers(base):
        block.train(any(p.requires_grad for p in block.parameters()))


def output_embedding(model: Any) -> Any:
    """The module that turns the last hidden states into logits: the model's own, or that of the language model inside it.

    Raises:
        ValueError: when there is none, naming the class.
    """
    base = unwrap(model)
    inner: Any = getattr(base, "language_model", None)  # Nemotron-H-Omni's is a whole causal LM
    for module in (base, inner):
        head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
        if head is not None:
            return head
    raise ValueError(f"{type(base).__name__}: found no output embedding; gapclose needs a model with get_output_embeddings()")


def linear_names(model: Any, layers: Sequence[int]) -> list[str]:
    """Full names of the ``nn.Linear`` modules inside decoder layers ``layers`` (counted from 1) that can hold an adapter.

    Full names, because leaf names such as ``q_proj`` also match the audio and vision towers of most families.
    """
    bare = BARE.get(decoder(model).config.model_type, ())
    return [n for n, m in _inside(model, layers) if isinstance(m, nn.Linear) and n.rpartition(".")[2] not in bare]


def expert_names(model: Any, layers: Sequence[int]) -> list[str]:
    """Full names of the fused experts inside decoder layers ``layers``: parameters (experts, out, in) of a module with ``num_experts``."""
    found = []
    for name, module in _inside(model, layers):
        if hasattr(module, "num_experts"):
            found += [f"{name}.{n}" for n, p in module.named_parameters(recurse=False) if p.dim() == 3]
    return found


def _inside(model: Any, layers: Sequence[int]) -> list[tuple[str, nn.Module]]:
    """Name and module of everything inside decoder layers ``layers``."""
    blocks = decoder_layers(model)
    inside = {id(m) for layer in layers for m in blocks[layer - 1].modules()}
    return [(name, module) for name, module in unwrap(model).named_modules() if id(module) in inside]


@contextmanager
def answer_logits(model: Any, rows: torch.Tensor, positions: torch.Tensor) -> Iterator[None]:
    """Inside, the model computes logits only for ``(rows[p], positions[p])``: its ``logits`` are (1, P, V).

    Done by slicing what enters the output embedding, since several families ignore ``logits_to_keep``, and full logits of a long
    clip cost more than the rest of a step.
    """

    def keep(module: nn.Module, args: tuple) -> tuple:
        hidden = args[0]  # (B, T, D)
        return (hidden[rows.to(hidden.device), positions.to(hidden.device)][None], *args[1:])

    handle = output_embedding(model).register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def residuals_at(model: Any, layers: Sequence[int], positions: torch.Tensor) -> Iterator[dict[int, torch.Tensor]]:
    """Inside, every forward fills the yielded dict: layer -> residual stream at ``positions``, (B, D).

    Layer *l* counts decoder blocks from 1 and is what leaves block *l*; 0 is what enters the first block (the embedding). Unlike
    ``hidden_states[-1]``, the last layer comes before the final norm.
    """
    found: dict[int, torch.Tensor] = {}
    blocks = decoder_layers(model)

    def pool(hidden: torch.Tensor) -> torch.Tensor:
        if hidden.dim() == 4:  # AltUp keeps several streams (S, B, T, D); the active one is first
            hidden = hidden[0]
        return hidden[torch.arange(len(hidden), device=hidden.device), positions.to(hidden.device)].detach()

    def after(layer: int):
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            found[layer] = pool(output[0] if isinstance(output, tuple | list) else output)

        return hook

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        found[0] = pool(args[0] if args else kwargs["hidden_states"])

    handles = [blocks[0].register_forward_pre_hook(before, with_kwargs=True)] if 0 in layers else []
    handles += [blocks[layer - 1].register_forward_hook(after(layer)) for layer in layers if layer > 0]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def checkpoint_fingerprint(path: str, model: Any) -> str:
    """Hash that tells checkpoints apart without reading all of a 60 GB file: the config, the start of every tensor, the processor.

    Of every tensor, since an adapter merged into the upper layers leaves both ends of a file as they were. For a hub name, whose files
    live in a cache, the resolved commit stands for the files.
    """
    digest = hashlib.sha256(json.dumps(model.config.to_diff_dict(), sort_keys=True, default=str).encode())
    folder = Path(path)
    if not folder.is_dir():
        digest.update(f"{path}@{getattr(model.config, '_commit_hash', None)}".encode())
        return digest.hexdigest()[:16]
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = handle.read(length)
            digest.update(file.name.encode() + header)
            for name, entry in sorted(json.loads(header).items()):
                if name != "__metadata__":
                    start, end = entry["data_offsets"]
                    handle.seek(8 + length + start)
                    digest.update(handle.read(min(4096, end - start)))
    for pattern in ("tokenizer*", "*processor_config.json", "chat_template*", "generation_config.json"):
        for file in sorted(f for f in folder.glob(pattern) if f.is_file()):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]
