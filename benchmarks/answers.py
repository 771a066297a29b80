"""What answers cost that continue the forward of the scores, against answers whose prompts are read again.

On whatever is there, a tiny model on the CPU:
    OMP_NUM_THREADS=1 python benchmarks/answers.py
On one GPU:
    python benchmarks/answers.py --size 7b

Both sides observe the same items, one question a clip: residuals of a layer, scores of six options, a greedy answer of 8 tokens. ``apart`` runs
the prompts for the scores and again for the answers, ``together`` once. The two take turns in random order; the ratio is the median over rounds
of the ratio within a round, with quartiles. On a CPU the ratio of their CPU times is given too, which waiting for a core does not add to.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from synthetic import LARGE, Clips, between, build_base, describe, make_parser, peak_mb, quartiles, questions, read_arguments, take_turns

from gapclose.data.items import Item
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import _forward
from gapclose.observe.prompt_reuse import PromptReuse, reuse_refusal
from gapclose.observe.request import ObservationRequest

WANTED = 0.65
LARGE_CLIPS = {"batch": 8, "repeats": 10, **LARGE}
DEFAULTS = {
    "tiny": {"batch": 32, "repeats": 15, "text_tokens": 26, "image_tokens": 16, "audio_tokens": 100},
    "3b": LARGE_CLIPS,
    "7b": LARGE_CLIPS,
}


def main() -> None:
    parser = make_parser(__doc__, DEFAULTS)
    parser.add_argument("--new_tokens", type=int, default=8, help="tokens of an answer")
    args = read_arguments(parser, DEFAULTS)
    device = torch.device(args.device)
    base = build_base(args.size, args.layers, device).eval().requires_grad_(False)
    clips: Any = Clips(model=base, text_tokens=args.text_tokens, image_tokens=args.image_tokens, audio_tokens=args.audio_tokens)
    batch: list[Item] = questions(args.batch, 1)
    config, media = ObserveConfig(share_prefix=False, max_new_tokens=args.new_tokens), clips.media(batch)
    if reason := reuse_refusal(clips, batch[:2], media):
        parser.error(f"answers do not continue the scores here: {reason}")
    wanted = ObservationRequest(layers=(len(clips.layers) // 2,), generate=True)
    reuse = PromptReuse(clips, media)
    ways = {
        "apart": partial(_forward, clips, batch, media, config, wanted),
        "together": partial(_forward, clips, batch, media, config, wanted, None, reuse),
        "scores alone": partial(_forward, clips, batch, media, config, ObservationRequest(layers=wanted.layers)),
    }
    first, second = ways["apart"](), ways["together"]()  # warms up as well
    memory = {name: peak_mb(way, device) for name, way in ways.items()}
    taken = take_turns(ways, args.repeats, device, warm_up=0)
    table = Table("side", "ms", "by apart", "quartiles", "CPU time", "peak, MB")
    result: dict[str, Any] = {"setting": describe(args, base, tokens=clips.length), "at_most": WANTED, "sides": {}}
    for name, times in taken.items():
        ms, ratio, cpu = quartiles(1000 * times[:, 0]), *(quartiles(times[:, i] / taken["apart"][:, i]) for i in (0, 1))
        result["sides"][name] = {"milliseconds": ms, "ratio": ratio, "cpu_ratio": cpu, "peak_mb": memory[name]}
        table.add_row(
            name, f"{ms['median']:.1f}", f"{ratio['median']:.3f}", between(ratio), f"{cpu['median']:.3f}", f"{memory[name] or 0:,.0f}"
        )
    result["same_answers"] = first["answers"] == second["answers"]
    result["largest_difference"] = float((first["scores"] - second["scores"]).abs().max())
    Console(width=140).print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
