"""What a training step costs: targets against plain LoRA SFT, layers after the probe against all layers, and that from a frozen trunk.

The digits model's geometry, on whatever is there (about a minute on two CPU cores):
    OMP_NUM_THREADS=1 python benchmarks/step.py
The same with clips of 16 image and 100 audio tokens:
    OMP_NUM_THREADS=1 python benchmarks/step.py --image_tokens 16 --audio_tokens 100 --batch 12
Qwen2.5-Omni-7B's geometry in bfloat16 on one GPU (random weights made on the device: no download, 18 GB before any step):
    python benchmarks/step.py --size 7b  (or 3b: Qwen2.5-Omni-3B's geometry)
    python benchmarks/step.py --size 7b --gradient_checkpointing --batch 8

Five variants take turns inside one run, in random order, on the same batches; a step is forward, backward, gradient clipping and
AdamW. A step's floating-point operations are counted by torch and set against the rate of a large matrix product on the same device. Ratios of time are medians over rounds of the ratio within a round, so that whatever else the machine does cancels. Both sides
get the same prompts: plain SFT adds one answer token and takes the model's own loss (full logits, as ordinary SFT does), targets go
through gapclose's collator and loss with a share of retain items, as in training. Reading media and collating lie outside the step; so
does reading stored states, whose time is told beside it.

Peak memory is measured before, with one variant alive at a time. On a GPU it is ``torch.cuda.max_memory_allocated``; on a CPU it is
what torch's allocator holds at most during a step (the profiler's allocations and frees, summed) on top of weights and optimizer
state; the interpreter and thread pools are left out.

Shapes: B batch, T prompt tokens, V vocabulary, K kept tokens.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from rich.console import Console
from rich.table import Table
from synthetic import (
    LARGE,
    LETTERS,
    PROBE_LAYERS,
    Synthetic,
    between,
    build_base,
    describe,
    make_parser,
    matrix_rate,
    operations,
    quartiles,
    read_arguments,
    take_turns,
)
from torch import nn

from gapclose.data.items import Item, Option
from gapclose.models.hooks import answer_logits
from gapclose.models.structure import decoder_layers
from gapclose.observe.frozen_cache import HiddenStateCache
from gapclose.observe.frozen_capture import capture_hidden
from gapclose.observe.frozen_writer import write_states
from gapclose.training.collator import Collator
from gapclose.training.config import TERMS, LoraConfig, TrainConfig
from gapclose.training.lora import add_lora, enable_checkpointing
from gapclose.training.sampler import Example
from gapclose.training.trainer import term_sums

VARIANTS = {
    "sft_all": ("plain SFT", "all"),
    "targets_all": ("targets", "all"),
    "sft_after": ("plain SFT", "after_probe"),
    "targets_after": ("targets", "after_probe"),
    "targets_stored": ("targets, trunk stored", "after_probe"),
}
RATIOS = {
    "targets / plain SFT, all layers": ("targets_all", "sft_all", 1.1),
    "targets / plain SFT, layers after the probe": ("targets_after", "sft_after", 1.1),
    "layers after the probe / all layers, targets": ("targets_after", "targets_all", 1.0),
    "targets, layers after the probe / plain SFT, all layers": ("targets_after", "sft_all", 0.8),
    "the same from the stored trunk / plain SFT, all layers": ("targets_stored", "sft_all", 0.5),
}
# tiny: a micro-batch, the usual prompt and the layer of configs/digits.yaml
TINY = {"batch": 36, "repeats": 40, "text_tokens": 26, "image_tokens": 1, "audio_tokens": 9, "probe_layer": PROBE_LAYERS["tiny"]}
DEFAULTS = {"tiny": TINY, **{s: {"batch": 2, "repeats": 12, **LARGE, "probe_layer": PROBE_LAYERS[s]} for s in ("3b", "7b")}}


@dataclass(kw_only=True)
class Batch:
    """The same items as plain SFT sees them, as targets see them, and as they are stored."""

    sft: dict[str, torch.Tensor]
    targets: dict[str, Any]
    stored: dict[str, Any]
    read_seconds: float
    """to read the stored states and collate them"""
    file: Path


def make_batches(
    synthetic: Synthetic, size: int, number: int, retain_share: float, device: torch.device, *, frozen: int, folder: Path
) -> list[Batch]:
    """``number`` batches of ``size`` items, on the device; their states that enter decoder layer ``frozen + 1`` lie in ``folder``."""
    batches = []
    for b in range(number):
        draw = np.random.default_rng(b)
        options = [Option(text=letter, concept="standard") for letter in LETTERS]
        content = [{"type": "image", "path": "-"}, {"type": "audio", "path": "-"}]
        items = [
            Item(id=f"{b}-{i}", clip="-", split="train", modality="-", messages=[{"role": "user", "content": content}], options=options)
            for i in range(size)
        ]
        prompt = synthetic.prompts(items, None)
        fixed: Any = copy.copy(synthetic)
        fixed.prompts = lambda items, media, prompt=prompt: dict(prompt)
        retained = round(size * retain_share)
        examples = [Example(item=i, term="consistency", weights=draw.dirichlet(np.ones(len(options)))) for i in items[retained:]]
        if retained:
            logps, tokens = base_distribution(synthetic.model, send_to_device(prompt, device), retained)
            kept = zip(items[:retained], logps, tokens, strict=True)
            examples = [Example(item=i, term="retain", base_logps=p, base_tokens=t) for i, p, t in kept] + examples
        media: Any = argparse.Namespace()  # the prompts need none
        collated, file = Collator(fixed, media)(examples), folder / f"{b}.safetensors"
        write_states(file, [(item, []) for item in items], capture_hidden(fixed, [(item, []) for item in items], media, frozen))
        start = time.perf_counter()
        stored = Collator(fixed, None, HiddenStateCache([file], frozen))(examples)
        read_seconds = time.perf_counter() - start
        answers = torch.tensor([synthetic.option_tokens(LETTERS[a]) for a in draw.integers(len(LETTERS), size=size)])
        ignored = torch.full_like(prompt["input_ids"], -100)
        sft = {
            **prompt,
            "input_ids": torch.cat([prompt["input_ids"], answers], 1),
            "attention_mask": torch.cat([prompt["attention_mask"], torch.ones_like(answers)], 1),
            "labels": torch.cat([ignored, answers], 1),
        }
        there = {name: send_to_device(of, device) for name, of in (("sft", sft), ("targets", collated), ("stored", stored))}
        batches.append(Batch(**there, read_seconds=read_seconds, file=file))
    return batches


@torch.inference_mode()
def base_distribution(model: Any, prompt: dict[str, torch.Tensor], rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The base model's most probable next tokens at the first ``rows`` answer positions, (rows, K) twice."""
    places = torch.arange(rows)
    with answer_logits(model, places, torch.full_like(places, prompt["input_ids"].shape[1] - 1)):
        logp = model(**prompt, use_cache=False).logits[0].float().log_softmax(-1)
    top = logp.topk(min(TrainConfig().retain_tokens, logp.shape[-1]), dim=-1)
    return top.values.cpu().clone(), top.indices.cpu().clone()


class Variant:
    """One way to train: its own adapters and optimizer around the shared, frozen weights."""

    def __init__(self, name: str, base: nn.Module, probe_layer: int, rank: int, checkpointing: bool) -> None:
        self.objective, where = VARIANTS[name]
        # a second module tree over the same weights, so that no variant pays for another one's adapters
        memo: dict[int, Any] = {id(t): t for t in [*base.parameters(), *base.buffers()]}
        loaded: Any = argparse.Namespace(model=copy.deepcopy(base, memo))
        config = LoraConfig(layers=where, r=rank, alpha=2 * rank)
        layers = config.chosen(len(decoder_layers(base)), probe_layer)
        add_lora(loaded, config, layers, seed=0)
        self.model = loaded.model.train()
        if checkpointing:
            enable_checkpointing(loaded)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, fused=True)
        self.weights = torch.tensor([getattr(TrainConfig(), t) for t in TERMS], device=self.trained[0].device)

    def loss(self, batch: Batch) -> torch.Tensor:
        if self.objective == "plain SFT":
            return self.model(**batch.sft, use_cache=False).loss
        seen = batch.stored if "stored" in self.objective else batch.targets
        sums = torch.stack([term_sums(self.model, part) for part in seen["parts"]]).sum(0)
        return (sums / seen["counts"].clamp_min(1) * self.weights).sum()

    def step(self, batch: Batch) -> None:
        self.loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def held(self) -> int:
        """Bytes of weights, adapters and optimizer state: what lives between steps."""
        state = [t for s in self.optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
        tensors = {id(t): t for t in [*self.model.parameters(), *self.model.buffers(), *state]}
        return sum(t.numel() * t.element_size() for t in tensors.values())


def peak_memory(variant: Variant, batch: Batch, device: torch.device) -> tuple[int, int]:
    """Bytes at the height of one step: all that is allocated, and what comes on top of weights and optimizer state."""
    variant.step(batch)  # optimizer state appears in the first step
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        variant.step(batch)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_allocated() - before
    height = cpu_height(lambda: variant.step(batch))
    return variant.held() + height, height


def cpu_height(work: Callable[[], None]) -> int:
    """The most bytes that torch's CPU allocator held during ``work`` beyond what it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    assert profile.profiler is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert events, "this build of torch records no memory events"
    return int(np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).max())


def main() -> None:
    parser = make_parser(__doc__, DEFAULTS)
    parser.add_argument("--rank", type=int, default=16, help="of the adapters")
    parser.add_argument("--retain_share", type=float, default=TrainConfig().retain_share, help="share of retain items among targets")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    args = read_arguments(parser, DEFAULTS)
    device = torch.device(args.device)
    base = build_base(args.size, args.layers, device).requires_grad_(False)
    n_layers = len(decoder_layers(base))
    if not 1 <= args.probe_layer < n_layers:
        parser.error(f"--probe_layer {args.probe_layer}: the model has layers 1..{n_layers}, and some must remain above the probe")
    synthetic = Synthetic(model=base, text_tokens=args.text_tokens, image_tokens=args.image_tokens, audio_tokens=args.audio_tokens)
    folder = tempfile.TemporaryDirectory()
    number = 4 if args.size == "tiny" else 2
    batches = make_batches(synthetic, args.batch, number, args.retain_share, device, frozen=args.probe_layer, folder=Path(folder.name))
    rate = matrix_rate(base, device)
    setting = describe(
        args, base, tokens=synthetic.length, matrix_gflops=round(rate / 1e9),
        stored_kb_an_item=round(batches[0].file.stat().st_size / args.batch / 1e3, 1),
        read_stored_ms=round(1000 * float(np.median([b.read_seconds for b in batches])), 2),
    )  # fmt: skip

    def build(name: str) -> Variant:
        return Variant(name, base, args.probe_layer, args.rank, args.gradient_checkpointing)

    memory: dict[str, tuple[int, int]] = {}
    for name in VARIANTS:
        memory[name] = peak_memory(build(name), batches[0], device)
        gc.collect()
    variants = {name: build(name) for name in VARIANTS}
    work = {name: operations(lambda v=v: v.step(batches[0])) for name, v in variants.items()}
    turn = dict.fromkeys(VARIANTS, 0)

    def step(name: str) -> None:
        turn[name] += 1
        variants[name].step(batches[turn[name] % len(batches)])

    taken = take_turns({name: lambda name=name: step(name) for name in VARIANTS}, args.repeats, device, warm_up=2)
    seconds = {name: rows[:, 0] for name, rows in taken.items()}

    result: dict[str, Any] = {"setting": setting, "variants": {}, "ratios": {}}
    console = Console(width=140)  # one line per row in logs too
    table = Table(
        "variant", "LoRA layers", "trained", "step, ms", "quartiles", "tokens/s", "of matrix rate", "peak, MB", "of it the step's"
    )
    for name, (objective, where) in VARIANTS.items():
        spread = quartiles(1000 * seconds[name])
        total, height = (round(m / 1e6, 2) for m in memory[name])
        trained = sum(p.numel() for p in variants[name].trained)
        median = spread["median"] / 1000
        speed, share = args.batch * synthetic.length / median, work[name] / median / rate
        result["variants"][name] = {
            "milliseconds": spread, "peak_mb": total, "step_mb": height, "trained": trained, "tokens_per_second": round(speed),
            "gflop": round(work[name] / 1e9, 3), "share_of_matrix_rate": round(share, 4),
        }  # fmt: skip
        table.add_row(objective, where, f"{trained:,}", f"{spread['median']:.1f}", between(spread, 1), f"{speed:,.0f}", f"{share:.2f}",
                      f"{total:,.1f}", f"{height:,.1f}")  # fmt: skip
    console.print(table)
    table = Table("ratio", "at most", "time", "quartiles", "peak memory", "the step's memory")
    for label, (above, below, limit) in RATIOS.items():
        spread = quartiles(seconds[above] / seconds[below])
        total, height = (memory[above][i] / memory[below][i] for i in (0, 1))
        result["ratios"][label] = {"time": spread, "peak_memory": round(total, 4), "step_memory": round(height, 4), "at_most": limit}
        table.add_row(label, f"{limit:g}", f"{spread['median']:.3f}", between(spread), f"{total:.3f}", f"{height:.3f}")
    console.print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
