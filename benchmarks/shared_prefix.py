"""What one reading of the media for all questions of a clip saves: observing with ``observe.share_prefix`` against whole prompts.

The digits model's geometry with 16 image and 100 audio tokens a clip, on whatever is there (some minutes on two CPU cores):
    OMP_NUM_THREADS=1 python benchmarks/shared_prefix.py
    OMP_NUM_THREADS=1 python benchmarks/shared_prefix.py --generate
Qwen2.5-Omni's geometries in bfloat16 on one GPU (random weights made on the device: no download):
    python benchmarks/shared_prefix.py --size 7b
    python benchmarks/shared_prefix.py --size 3b --generate

Both sides observe the same batch of questions through gapclose's own forward (towers, decoder, residuals of one layer, scores of six
one-letter options; with ``--generate`` greedy answers too), at 1, 2, 4 and 8 questions a clip. They take turns inside one run, in random order;
ratios of time are medians over rounds of the ratio within a round, so that whatever else the machine does cancels. On a CPU the ratio of
CPU time is given beside them. Prompts are of random tokens, patches and mel frames, prepared before: reading and preprocessing media,
which the shared side does once a clip as well, lie outside. Clips with one question are run whole on both sides.

The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from step import LETTERS, Synthetic, build_base, quartiles

from gapclose.items import Item, Option
from gapclose.observe import ObserveConfig, Wanted, _forward
from gapclose.shared_prefix import SharedPrefix
from gapclose.structure import decoder_layers

ASKED = (1, 2, 4, 8)
WANTED = {4: 0.40}
# questions a batch, rounds, text, image and audio tokens a prompt. tiny: what the project asks of this benchmark; else an image of 900,000
# pixels and 30 s of sound
DEFAULTS = {"tiny": (32, 15, 26, 16, 100), "3b": (8, 10, 128, 1152, 750), "7b": (8, 10, 128, 1152, 750)}


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
        self.device = next(self.model.parameters()).device

    @property
    def layers(self) -> Any:
        return decoder_layers(self.model)

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
        if (key := "+".join(i.id for i in items)) not in self.made:
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


def questions(number: int, each: int) -> list[Item]:
    """``number`` questions, ``each`` a clip."""
    options = [Option(text=letter, concept="standard") for letter in LETTERS]

    def item(n: int) -> Item:
        clip, text = f"{each}-{n // each}", {"type": "text", "text": str(n)}
        content = [{"type": "image", "path": f"{clip}.png"}, {"type": "audio", "path": f"{clip}.wav"}, text]
        messages = [{"role": "user", "content": content}]
        return Item(id=f"{clip}/{n}", clip=clip, split="-", modality="-", messages=messages, options=options)

    return [item(n) for n in range(number)]


class Side:
    """Observing with shared or with whole prompts."""

    def __init__(self, clips: Clips, shared: bool, generate: bool) -> None:
        self.clips, self.reader = clips, SharedPrefix(clips) if shared else None  # type: ignore[arg-type]
        self.config = ObserveConfig(share_prefix=shared)
        self.wanted = Wanted(layers=(len(clips.layers) // 2,), generate=generate)

    def observe(self, batch: list[Item]) -> dict[str, Any]:
        return _forward(self.clips, batch, None, self.config, self.wanted, self.reader)  # type: ignore[arg-type]

    def timed(self, batch: list[Item]) -> tuple[float, float]:
        """Seconds, and seconds of CPU time; results come back to the CPU, which waits for the device."""
        begun, spent = time.perf_counter(), time.process_time()
        self.observe(batch)
        return time.perf_counter() - begun, time.process_time() - spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(DEFAULTS), default="tiny")
    parser.add_argument("--batch", type=int, help="questions a batch, a multiple of 8 (tiny 32, else 8)")
    parser.add_argument("--repeats", type=int, help="timed rounds of both sides (tiny 15, else 10)")
    parser.add_argument("--text_tokens", type=int, help="per prompt, two of them before the media (tiny 26, else 128)")
    parser.add_argument("--image_tokens", type=int, help="per clip, after merging (tiny 16, else 1152); 0: no image")
    parser.add_argument("--audio_tokens", type=int, help="per clip, 40 ms each (tiny 100, else 750); 0: no sound")
    parser.add_argument("--layers", type=int, help="decoder layers, to try a smaller model")
    parser.add_argument("--generate", action="store_true", help="greedy answers of 8 tokens beside the scores")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    names = ("batch", "repeats", "text_tokens", "image_tokens", "audio_tokens")
    for name, default in zip(names, DEFAULTS[args.size], strict=True):
        if getattr(args, name) is None:
            setattr(args, name, default)
    if args.batch % max(ASKED):
        parser.error(f"--batch {args.batch} is no multiple of {max(ASKED)}")

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    device = torch.device(args.device)
    base = build_base(args.size, args.layers, device).eval().requires_grad_(False)
    clips = Clips(model=base, text_tokens=args.text_tokens, image_tokens=args.image_tokens, audio_tokens=args.audio_tokens)
    on = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} thread(s)"
    setting = {
        "size": args.size, "device": on, "torch": torch.__version__, "dtype": str(next(base.parameters()).dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in base.parameters()), "layers": len(clips.layers), "tokens": clips.length,
        "load_average": round(os.getloadavg()[0], 2), "generate": args.generate, **{k: getattr(args, k) for k in names},
    }  # fmt: skip
    for name, value in setting.items():
        print(f"{name.replace('_', ' ')}: {value}")

    sides = {name: Side(clips, name == "shared", args.generate) for name in ("whole", "shared")}
    result: dict[str, Any] = {"setting": setting, "questions": {}}
    table = Table("questions a clip", "whole, ms", "shared, ms", "ratio", "quartiles", "CPU time", "at most", "scores off by")
    draw = np.random.default_rng(0)
    for each in ASKED:
        batch = questions(args.batch, each)
        first, second = (side.observe(batch)["scores"] for side in sides.values())  # warms up as well
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for _ in range(args.repeats):
            for name in draw.permutation(list(sides)):
                taken[name].append(sides[name].timed(batch))
        whole, shared = (np.array(taken[name]) for name in sides)
        ratio, cpu = (quartiles(shared[:, i] / whole[:, i]) for i in (0, 1))
        milliseconds = {name: quartiles(1000 * np.array(t)[:, 0]) for name, t in taken.items()}
        off, limit = float((first - second).abs().max()), WANTED.get(each)
        found = {"milliseconds": milliseconds, "ratio": ratio, "at_most": limit, "largest_difference": off}
        result["questions"][each] = found | ({"cpu_ratio": cpu} if device.type == "cpu" else {})
        between = f"{ratio['lower_quartile']:.3f}-{ratio['upper_quartile']:.3f}"
        times = [f"{milliseconds[name]['median']:.1f}" for name in sides]
        spent = f"{cpu['median']:.3f}" if device.type == "cpu" else ""
        table.add_row(str(each), *times, f"{ratio['median']:.3f}", between, spent, f"{limit:g}" if limit else "", f"{off:.1g}")
    Console(width=120).print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
