"""How much observing costs beside a bare forward of the same batches.

The digits model's geometry with 16 image and 100 audio tokens an item, on whatever is there:
    OMP_NUM_THREADS=1 python benchmarks/observe.py
Qwen2.5-Omni's geometries in bfloat16 on one GPU (random weights made on the device: no download):
    python benchmarks/observe.py --size 7b
    python benchmarks/observe.py --size 3b

Bare: the model's forward of a batch without gradients, by the prompts that a processor gave, with logits of the last position alone; and as the
model comes, with logits of all positions (beside it without its decoder layers: towers, embedding and head alone). Observing: gapclose's own ``observe`` from prompts to shards on disk and back, with residuals of one
layer or of all and the scores of six one-letter options, which come from the same forward. (An option of several tokens costs one short forward
behind the cache of its prompt.) The sides take turns in random order inside one run; ratios of throughput are medians over rounds of the ratio
within a round. Reading and preprocessing media, which both need, lie outside.

The last line printed is one JSON object.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from synthetic import (
    LARGE,
    Clips,
    Questions,
    between,
    build_base,
    describe,
    make_parser,
    matrix_rate,
    operations,
    peak_mb,
    quartiles,
    questions,
    read_arguments,
    take_turns,
)

from gapclose.models.hooks import last_logits, skip_layers
from gapclose.observe.batching import plan_batches
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import observe
from gapclose.observe.request import ObservationRequest

WANTED = 0.90
DEFAULTS = {
    "tiny": {"items": 128, "batch": 32, "repeats": 15, "text_tokens": 26, "image_tokens": 16, "audio_tokens": 100},
    **{size: {"items": 16, "batch": 4, "repeats": 6, **LARGE} for size in ("3b", "7b")},
}


def main() -> None:
    args = read_arguments(make_parser(__doc__, DEFAULTS), DEFAULTS)
    device = torch.device(args.device)
    base = build_base(args.size, args.layers, device).eval().requires_grad_(False)
    clips: Any = Clips(model=base, text_tokens=args.text_tokens, image_tokens=args.image_tokens, audio_tokens=args.audio_tokens)
    items: Any = Questions(questions(args.items, 1))
    batches, n_layers = plan_batches(items.items, args.batch), len(clips.layers)
    rate = matrix_rate(base, device)
    setting = describe(args, base, tokens=clips.length, matrix_gflops=round(rate / 1e9))
    folder, number = tempfile.TemporaryDirectory(), itertools.count()

    @torch.no_grad()
    def bare(whole: bool) -> None:
        for batch in batches:
            inputs = clips.prompts(batch, None)
            if whole:
                base(**inputs, use_cache=False)
            else:
                with last_logits(base):
                    base(**inputs, use_cache=False)

    def without_layers() -> None:
        with skip_layers(base, range(1, n_layers + 1)):
            bare(True)

    def observed(layers: list[int]) -> None:
        observe(
            clips, items, Path(folder.name) / str(next(number)), ObserveConfig(batch_size=args.batch), ObservationRequest(layers=layers)
        )

    ways = {
        "bare forward, last logits": lambda: bare(False),
        "bare forward, all logits": lambda: bare(True),
        "the same without decoder layers": without_layers,
        "observe, one layer": lambda: observed([n_layers // 2]),
        "observe, all layers": lambda: observed(list(range(1, n_layers + 1))),
    }
    taken = take_turns(ways, args.repeats, device)
    reference = taken["bare forward, last logits"]
    result: dict[str, Any] = {"setting": setting, "ways": {}}
    table = Table(
        "", "pass, ms", "items/s", "tokens/s", "of matrix rate", "peak, MB", "throughput / bare", "quartiles", "CPU time", "at least"
    )
    for name, way in ways.items():
        spread, median = quartiles(1000 * taken[name][:, 0]), float(quartiles(taken[name][:, 0])["median"])
        ratio, cpu = (quartiles(reference[:, i] / taken[name][:, i]) for i in (0, 1))
        share, height = operations(way) / median / rate, peak_mb(way, device)
        wanted = WANTED if name.startswith("observe") else None
        result["ways"][name] = {
            "milliseconds": spread, "items_per_second": round(args.items / median, 2), "tokens_per_second": round(args.items * clips.length / median),
            "share_of_matrix_rate": round(share, 4), "peak_mb": height, "throughput": ratio, "at_least": wanted,
            **({"cpu_throughput": cpu} if device.type == "cpu" else {}),
        }  # fmt: skip
        numbers = [f"{spread['median']:.1f}", f"{args.items / median:,.1f}", f"{args.items * clips.length / median:,.0f}", f"{share:.2f}"]
        tail = [
            f"{ratio['median']:.3f}",
            between(ratio),
            f"{cpu['median']:.3f}" if device.type == "cpu" else "",
            f"{wanted:g}" if wanted else "",
        ]
        table.add_row(name, *numbers, f"{height:,.0f}" if height else "", *tail)
    Console(width=160).print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
