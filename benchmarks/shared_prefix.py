"""What one reading of the media for all questions of a clip saves: observing with ``observe.share_prefix`` against whole prompts.

The digits model's geometry with 16 image and 100 audio tokens a clip, on whatever is there (some minutes on two CPU cores):
    OMP_NUM_THREADS=1 python benchmarks/shared_prefix.py
    OMP_NUM_THREADS=1 python benchmarks/shared_prefix.py --generate
    OMP_NUM_THREADS=1 python benchmarks/shared_prefix.py --profile            which operations take the time at four questions a clip
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

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from synthetic import LARGE, Clips, between, build_base, describe, make_parser, peak_mb, quartiles, questions, read_arguments, take_turns

from gapclose.data.items import Item
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import _forward
from gapclose.observe.prefix_cache import PrefixCache
from gapclose.observe.request import ObservationRequest

ASKED = (1, 2, 4, 8)
PROFILED, SHOWN = 4, 15
WANTED = {4: 0.40}
LARGE_CLIPS = {"batch": 8, "repeats": 10, **LARGE}
DEFAULTS = {
    "tiny": {"batch": 32, "repeats": 15, "text_tokens": 26, "image_tokens": 16, "audio_tokens": 100},
    "3b": LARGE_CLIPS,
    "7b": LARGE_CLIPS,
}


class Side:
    """Observing with shared or with whole prompts."""

    def __init__(self, clips: Clips, shared: bool, generate: bool) -> None:
        self.clips, self.reader = clips, PrefixCache(clips) if shared else None  # type: ignore[arg-type]
        self.config = ObserveConfig(share_prefix=shared)
        self.wanted = ObservationRequest(layers=(len(clips.layers) // 2,), generate=generate)

    def observe(self, batch: list[Item]) -> dict[str, Any]:
        return _forward(self.clips, batch, None, self.config, self.wanted, self.reader)  # type: ignore[arg-type]


def profile(ways: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Operation -> side -> milliseconds of its own in one turn, for those that take longest on either side; their sum ``all``, and the turn
    ``by the clock``."""
    kind = torch.profiler.ProfilerActivity.CPU if device.type == "cpu" else torch.profiler.ProfilerActivity.CUDA
    taken: dict[str, dict[str, float]] = {}
    for name, way in ways.items():
        with torch.profiler.profile(activities=[kind]) as found:
            begun = time.perf_counter()
            for _ in range(repeats):
                way()
            taken.setdefault("by the clock", {})[name] = (time.perf_counter() - begun) * 1000 / repeats
        for event in found.key_averages():
            spent = event.self_cpu_time_total if device.type == "cpu" else event.self_device_time_total
            for key in (event.key.removeprefix("aten::"), "all"):
                taken.setdefault(key, dict.fromkeys(ways, 0.0))[name] += spent / 1000 / repeats
    longest = sorted(taken, key=lambda key: -max(taken[key].values()))[: SHOWN + 2]
    return {key: {name: round(ms, 2) for name, ms in taken[key].items()} for key in longest}


def main() -> None:
    parser = make_parser(__doc__, DEFAULTS)
    parser.add_argument("--generate", action="store_true", help="greedy answers of 8 tokens beside the scores")
    parser.add_argument("--profile", action="store_true", help=f"also profile both sides at {PROFILED} questions a clip")
    args = read_arguments(parser, DEFAULTS)
    if args.batch % max(ASKED):
        parser.error(f"--batch {args.batch} is no multiple of {max(ASKED)}")
    device = torch.device(args.device)
    base = build_base(args.size, args.layers, device).eval().requires_grad_(False)
    clips = Clips(model=base, text_tokens=args.text_tokens, image_tokens=args.image_tokens, audio_tokens=args.audio_tokens)
    setting = describe(args, base, tokens=clips.length)

    sides = {name: Side(clips, name == "shared", args.generate) for name in ("whole", "shared")}
    result: dict[str, Any] = {"setting": setting, "questions": {}}
    table = Table("questions a clip", "whole, ms", "shared, ms", "ratio", "quartiles", "CPU time", "peak, MB", "at most", "scores off by")
    for each in ASKED:
        batch = questions(args.batch, each)
        first, second = (side.observe(batch)["scores"] for side in sides.values())  # warms up as well
        ways = {name: partial(side.observe, batch) for name, side in sides.items()}
        memory = {name: peak_mb(way, device) for name, way in ways.items()}
        taken = take_turns(ways, args.repeats, device, warm_up=0)
        ratio, cpu = (quartiles(taken["shared"][:, i] / taken["whole"][:, i]) for i in (0, 1))
        milliseconds = {name: quartiles(1000 * t[:, 0]) for name, t in taken.items()}
        off, limit = float((first - second).abs().max()), WANTED.get(each)
        found = {"milliseconds": milliseconds, "ratio": ratio, "at_most": limit, "largest_difference": off, "peak_mb": memory}
        result["questions"][each] = found | ({"cpu_ratio": cpu} if device.type == "cpu" else {})
        times = [f"{milliseconds[name]['median']:.1f}" for name in sides]
        spent = f"{cpu['median']:.3f}" if device.type == "cpu" else ""
        heights = " / ".join(f"{m:,.0f}" for m in memory.values() if m)
        table.add_row(
            str(each), *times, f"{ratio['median']:.3f}", between(ratio), spent, heights, f"{limit:g}" if limit else "", f"{off:.1g}"
        )
        if args.profile and each == PROFILED:
            result["profile"] = profile(ways, args.repeats, device)
    console = Console(width=140)
    console.print(table)
    if args.profile:
        operations = Table("operation", "whole, ms", "shared, ms", "ratio", title=f"{PROFILED} questions a clip, profiled")
        for key, of in result["profile"].items():
            operations.add_row(key, f"{of['whole']:.1f}", f"{of['shared']:.1f}", f"{of['shared'] / of['whole']:.2f}" if of["whole"] else "")
        console.print(operations)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
