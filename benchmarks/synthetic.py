"""What the benchmarks share: Qwen2.5-Omni's thinker with random weights, prompts of random media, sizes, and how numbers are told.

Shapes: B batch, T prompt tokens.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.models.architecture import read_architecture
from gapclose.models.config import ModelConfig
from gapclose.models.structure import decoder_layers

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))
from digits_model import tiny_model

LETTERS = "ABCDEF"  # six options, as in IMAVB
ARCHITECTURES = Path(__file__).parent.parent / "configs" / "architectures"
HELP = {
    "batch": "items a batch",
    "repeats": "timed rounds",
    "text_tokens": "per item",
    "image_tokens": "per item, after merging; 0: no image",
    "audio_tokens": "per item, 40 ms each; 0: no sound",
    "probe_layer": "what is above it is trained",
}
# 3b and 7b: an image of 900,000 pixels and 30 s of sound an item; probes at the peak layer of arXiv 2605.13737, as deep for 3b
LARGE = {"text_tokens": 128, "image_tokens": 1152, "audio_tokens": 750}
PROBE_LAYERS = {"tiny": 6, "3b": 22, "7b": 17}


def make_parser(doc: str | None, defaults: Mapping[str, Mapping[str, int]]) -> argparse.ArgumentParser:
    """Arguments that every benchmark takes; those of ``defaults`` depend on the size."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(defaults), default="tiny")
    for name in defaults["tiny"]:
        each = ", ".join(f"{size} {values[name]}" for size, values in defaults.items())
        parser.add_argument(f"--{name}", type=int, help=f"{HELP.get(name, name.replace('_', ' '))} ({each})")
    parser.add_argument("--layers", type=int, help="decoder layers, to try a smaller model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def read_arguments(parser: argparse.ArgumentParser, defaults: Mapping[str, Mapping[str, int]]) -> argparse.Namespace:
    args = parser.parse_args()
    for name, value in defaults[args.size].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    return args


def describe(args: argparse.Namespace, base: nn.Module, **more: Any) -> dict[str, Any]:
    """What was measured on what; printed, and part of a benchmark's result."""
    on_gpu = torch.device(args.device).type == "cuda"
    setting = {
        **vars(args),
        "device": torch.cuda.get_device_name() if on_gpu else f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} thread(s)",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dtype": str(next(base.parameters()).dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in base.parameters()),
        "layers": len(decoder_layers(base)),
        "load_average": round(os.getloadavg()[0], 2),
        **more,
    }
    for name, value in setting.items():
        print(f"{name.replace('_', ' ')}: {value}", flush=True)
    return setting


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Seconds, and seconds of CPU time, until ``work`` is done on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begun, spent = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun, time.process_time() - spent


def take_turns(ways: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device, *, warm_up: int = 1) -> dict[str, np.ndarray]:
    """Way -> (repeats, 2) seconds and CPU seconds; the ways take turns in random order, so that other work on the machine meets all."""
    draw, taken = np.random.default_rng(0), {name: list[tuple[float, float]]() for name in ways}
    for repeat in range(-warm_up, repeats):
        for name in draw.permutation(list(ways)):
            found = timed(ways[name], device)
            if repeat >= 0:
                taken[name].append(found)
    return {name: np.array(rows) for name, rows in taken.items()}


def geometry(size: str, layers: int | None) -> Any:
    """The thinker of Qwen2.5-Omni."""
    config = read_architecture(ModelConfig(path=str(ARCHITECTURES / f"qwen2_5_omni_{size}")))
    if layers:
        config.text_config.num_hidden_layers, config.text_config.layer_types = layers, config.text_config.layer_types[:layers]
    return config


def build_base(size: str, layers: int | None, device: torch.device) -> nn.Module:
    """Random weights of the asked size, made on the device."""
    if size == "tiny":
        return tiny_model.build_model(tiny_model.build_tokenizer(), **({"layers": layers} if layers else {})).to(device)
    with device:
        return transformers.Qwen2_5OmniThinkerForConditionalGeneration._from_config(geometry(size, layers), dtype=torch.bfloat16)


@dataclass(kw_only=True)
class Synthetic:
    """Stands in for :class:`gapclose.models.loading.LoadedModel`: a model, and prompts of random tokens, patches and mel frames."""

    model: Any
    text_tokens: int
    image_tokens: int
    audio_tokens: int
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __post_init__(self) -> None:
        c = self.model.config
        start, end = c.vision_start_token_id, getattr(c, "vision_end_token_id", c.vision_start_token_id + 1)
        media = [start, *[c.image_token_index] * self.image_tokens, end] if self.image_tokens else []
        if self.audio_tokens:
            media += [c.audio_start_token_id, *[c.audio_token_index] * self.audio_tokens, c.audio_end_token_id]
        self.media_ids = torch.tensor(media, dtype=torch.long)
        self.first_text = 50  # ids below are ordinary tokens in both vocabularies; special ones come later or earlier
        height = max(d for d in range(1, int(self.image_tokens**0.5) + 1) if self.image_tokens % d == 0) if self.image_tokens else 0
        self.grid = [1, 2 * height, 2 * self.image_tokens // height] if height else None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def length(self) -> int:
        return self.text_tokens + len(self.media_ids)

    def option_tokens(self, text: str) -> list[int]:
        return [self.first_text + LETTERS.index(text)]

    def prompts(self, items: list[Item], media: Any) -> dict[str, torch.Tensor]:
        """What a processor would give for one image and one sound per item, all prompts equally long."""
        c, n = self.model.config, len(items)
        text = torch.randint(self.first_text, self.first_text + 200, (n, self.text_tokens), generator=self.generator)
        ids = torch.cat([text[:, :2], self.media_ids.expand(n, -1), text[:, 2:]], dim=1)  # (B, T)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.grid:
            patch = c.vision_config.patch_size**2 * c.vision_config.temporal_patch_size * 3
            inputs["pixel_values"] = torch.randn(n * 4 * self.image_tokens, patch, generator=self.generator)
            inputs["image_grid_thw"] = torch.tensor([self.grid] * n)
        if self.audio_tokens:
            frames = 4 * self.audio_tokens  # 10 ms each; the encoder halves them twice
            inputs["input_features"] = torch.randn(n, c.audio_config.num_mel_bins, frames, generator=self.generator)
            inputs["feature_attention_mask"] = torch.ones(n, frames, dtype=torch.long)
        return inputs


@dataclass(kw_only=True)
class Clips(Synthetic):
    """A model with the prompts of item ``clip/question``: media by the clip, text behind them by both, all prompts equally long."""

    def __post_init__(self) -> None:
        super().__post_init__()
        c = self.model.config
        special = set(self.media_ids.tolist())
        self.processor = SimpleNamespace(image_token_id=c.image_token_index, audio_token_id=c.audio_token_index)
        self.tokenizer = SimpleNamespace(
            all_special_ids=sorted(special),
            pad_token_id=0,
            eos_token_id=None,
            batch_decode=lambda rows, **_: [str(r.tolist()) for r in rows],
        )
        self.made: dict[str, torch.Tensor] = {}
        self.fingerprint, self.apart = "synthetic", {}

    @property
    def layers(self) -> Any:
        return decoder_layers(self.model)

    def media(self, items: Any, *, blank: Any = ()) -> Any:
        return SimpleNamespace(ahead=lambda batch: None)

    def _tokens(self, item: Item, media: torch.Tensor) -> torch.Tensor:
        text = self._once(
            item.id, lambda: torch.randint(self.first_text, self.first_text + 200, (self.text_tokens - 2,), generator=self.generator)
        )
        start = torch.full((2,), self.first_text)
        return torch.cat([start, media, text])

    def _once(self, name: str, make: Any) -> torch.Tensor:
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    def written(self, items: list[Item]) -> list[list[int]]:
        return [self._tokens(item, self.media_ids.unique_consecutive()).tolist() for item in items]

    def prompts(self, items: list[Item], media: Any) -> dict[str, torch.Tensor]:
        if (key := "batch " + "+".join(i.id for i in items)) not in self.made:
            given = super().prompts(items, media)
            clips = [i.clip for i in items]
            for name, each in (("pixel_values", 4 * self.image_tokens), ("input_features", 1)):
                if name in given:
                    parts = given[name].split(each)
                    given[name] = torch.cat([self._once(f"{name}-{c}", lambda p=p: p.clone()) for c, p in zip(clips, parts, strict=True)])
            given["input_ids"] = torch.stack([self._tokens(i, self.media_ids) for i in items])
            dtype = next(self.model.parameters()).dtype
            self.made[key] = {k: v.to(self.device, dtype if v.is_floating_point() else None) for k, v in given.items()}  # type: ignore[assignment]
        return dict(self.made[key])  # type: ignore[arg-type]


class Questions(ItemSet):
    """Questions as a set whose media are made, not read."""

    def __init__(self, items: list[Item]) -> None:
        super().__init__(root=Path(), name="synthetic", concepts=("standard",), alarm=(), items=tuple(items))

    def fingerprint(self, *, labels: bool = False) -> str:
        return "synthetic"


def questions(number: int, each: int) -> list[Item]:
    """``number`` questions, ``each`` a clip."""
    options = [Option(text=letter, concept="standard") for letter in LETTERS]

    def item(n: int) -> Item:
        clip, text = f"{each}-{n // each}", {"type": "text", "text": str(n)}
        content = [{"type": "image", "path": f"{clip}.png"}, {"type": "audio", "path": f"{clip}.wav"}, text]
        messages = [{"role": "user", "content": content}]
        return Item(id=f"{clip}/{n}", clip=clip, split="-", modality="-", messages=messages, options=options)

    return [item(n) for n in range(number)]


def quartiles(values: np.ndarray) -> dict[str, float]:
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": round(float(median), 6), "lower_quartile": round(float(low), 6), "upper_quartile": round(float(high), 6)}


def between(spread: Mapping[str, float], digits: int = 3) -> str:
    return f"{spread['lower_quartile']:.{digits}f}-{spread['upper_quartile']:.{digits}f}"


def matrix_rate(base: nn.Module, device: torch.device) -> float:
    """Floating-point operations per second of a square matrix product in the model's dtype, measured here: the median of ten."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=next(base.parameters()).dtype) for _ in range(2))
    taken = take_turns({"product": lambda: a @ b}, 10, device, warm_up=3)["product"][:, 0]
    return 2 * side**3 / float(np.median(taken))


def attention_operations(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Of shapes (B, heads, T, D): two products; keys and values may have fewer heads, which torch's own counter refuses."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[2] * (width + value[3])


def attention_gradients(_: Any, query: Any, key: Any, value: Any, *__: Any, **___: Any) -> int:
    """Backward: five products in place of two."""
    return attention_operations(query, key, value) * 5 // 2


def operations(work: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products, convolutions and attention in ``work``, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode, flop_registry

    aten = torch.ops.aten
    attention = [op for op in flop_registry if "scaled_dot_product" in str(op)]
    attention += [aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_flash_attention_for_cpu_backward]
    mine = {op: attention_gradients if "backward" in str(op) else attention_operations for op in attention}
    with FlopCounterMode(display=False, custom_mapping=mine) as counter:
        work()
    return counter.get_total_flops()


def peak_mb(work: Callable[[], Any], device: torch.device) -> float | None:
    """The most that torch holds on a GPU during ``work``, in MB; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return round(torch.cuda.max_memory_allocated() / 1e6, 1)
