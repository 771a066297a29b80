"""What re-measuring after an epoch costs, as a share of the epoch.

The digits model's geometry with 16 image and 100 audio tokens an item, on whatever is there:
    OMP_NUM_THREADS=1 python benchmarks/epoch.py
Qwen2.5-Omni's geometries in bfloat16 on one GPU (random weights made on the device: no download):
    python benchmarks/epoch.py --size 7b
    python benchmarks/epoch.py --size 3b

An epoch is training on targets with adapters above the probe, by media or from the stored trunk; re-measuring is gapclose's own forward of the
adapted model: residuals of the probe's layer, scores of six one-letter options and greedy answers of ``--tokens`` tokens, for questions of which
four share a clip: with whole prompts, with ``observe.share_prefix``, and from the stored trunk, where answers alone read the media. The five take
turns in random order, a batch each; shares are of one item's time by one item's, times ``--measured`` measured items over ``--trained``
trained ones (by default those of configs/digits.yaml). Reading and preprocessing media lie outside; filling the stored trunk is told apart.

The last line printed is one JSON object.
"""

from __future__ import annotations

import copy
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from step import Variant, make_batches
from synthetic import (
    LARGE,
    PROBE_LAYERS,
    Clips,
    Synthetic,
    between,
    build_base,
    describe,
    make_parser,
    quartiles,
    questions,
    read_arguments,
    take_turns,
    timed,
)

from gapclose.data.items import Item
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import _forward
from gapclose.observe.frozen_cache import HiddenStateCache
from gapclose.observe.frozen_capture import capture_hidden
from gapclose.observe.frozen_writer import write_states
from gapclose.observe.prefix_cache import PrefixCache
from gapclose.observe.request import ObservationRequest
from gapclose.training.config import TrainConfig

EACH = 4  # questions a clip
DEFAULTS = {
    "tiny": {"batch": 32, "micro_batch": 12, "repeats": 15, "text_tokens": 26, "image_tokens": 16, "audio_tokens": 100,
             "probe_layer": PROBE_LAYERS["tiny"]},
    **{size: {"batch": 8, "micro_batch": 2, "repeats": 6, **LARGE, "probe_layer": PROBE_LAYERS[size]} for size in ("3b", "7b")},
}  # fmt: skip


def main() -> None:
    parser = make_parser(__doc__, DEFAULTS)
    parser.add_argument("--trained", type=int, default=2376, help="items of an epoch")
    parser.add_argument("--measured", type=int, default=990, help="items measured after it")
    parser.add_argument("--tokens", type=int, default=8, help="of a generated answer")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters")
    args = read_arguments(parser, DEFAULTS)
    if args.batch % EACH:
        parser.error(f"--batch {args.batch} is no multiple of {EACH}")
    device, folder = torch.device(args.device), tempfile.TemporaryDirectory()
    base = build_base(args.size, args.layers, device).eval().requires_grad_(False)
    prompt = {"text_tokens": args.text_tokens, "image_tokens": args.image_tokens, "audio_tokens": args.audio_tokens}
    batches = make_batches(
        Synthetic(model=base, **prompt),
        args.micro_batch,
        2,
        TrainConfig().retain_share,
        device,
        frozen=args.probe_layer,
        folder=Path(folder.name),
    )
    trained = {name: Variant(name, base, args.probe_layer, args.rank, checkpointing=False) for name in ("targets_after", "targets_stored")}
    adapted: Any = Clips(model=copy.copy(trained["targets_after"].model).eval(), **prompt)
    trained["targets_after"].model.train()
    asked = questions(args.batch, EACH)
    rows, file = [(item, list[list[int]]()) for item in asked], Path(folder.name) / "measured.safetensors"

    def fill() -> None:
        write_states(file, rows, capture_hidden(adapted, rows, adapted.media(asked), args.probe_layer, [args.probe_layer]))

    fill()
    filling = timed(fill, device)[0]
    setting = describe(args, base, tokens=adapted.length, questions_a_clip=EACH)
    reader, trunk = PrefixCache(adapted), HiddenStateCache([file], args.probe_layer)

    def step(name: str) -> None:
        adapted.model.train()
        trained[name].step(batches[0])

    def measured(shared: PrefixCache | None, stored: HiddenStateCache | None, items: list[Item] = asked) -> None:
        adapted.model.eval()
        wanted = ObservationRequest(layers=(args.probe_layer,), generate=True, trunk=stored)
        _forward(adapted, items, adapted.media(items), ObserveConfig(max_new_tokens=args.tokens), wanted, shared)

    training = {"training, media read": "targets_after", "training, trunk stored": "targets_stored"}
    measuring = {
        "re-measuring, whole prompts": (None, None),
        "re-measuring, clips read once": (reader, None),
        "re-measuring, trunk stored": (None, trunk),
    }
    ways = {label: partial(step, name) for label, name in training.items()} | {
        label: partial(measured, *how) for label, how in measuring.items()
    }
    taken = {
        label: rows[:, 0] / (args.micro_batch if label in training else args.batch)
        for label, rows in take_turns(ways, args.repeats, device).items()
    }

    result: dict[str, Any] = {
        "setting": setting,
        "filling_ms_an_item": round(1000 * filling / args.batch, 3),
        "milliseconds_an_item": {},
        "shares": {},
    }
    table = Table("", "ms an item", "quartiles", *(f"share of an epoch of {label}" for label in training))
    for label, seconds in taken.items():
        spread = quartiles(1000 * seconds)
        result["milliseconds_an_item"][label], cells = spread, list[str]()
        for epoch in training if label in measuring else ():
            share = quartiles(seconds * args.measured / (np.array(taken[epoch]) * args.trained))
            result["shares"][f"{label} / {epoch}"] = share
            cells.append(f"{share['median']:.3f} ({between(share)})")
        table.add_row(label, f"{spread['median']:.2f}", between(spread, 2), *cells)
    console = Console(width=150)
    console.print(table)
    console.print(f"filling the stored trunk: {1000 * filling / args.batch:.2f} ms an item, once")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
