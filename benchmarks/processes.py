"""What a second process gains: the same items observed, and the same global batch trained on, by one process and by two.

The digits model's geometry with 16 image and 100 audio tokens an item, two CPU processes through gloo:
    OMP_NUM_THREADS=1 python benchmarks/processes.py
Qwen2.5-Omni's geometries in bfloat16 on two GPUs of one node through NCCL (random weights made on the devices: no download):
    python benchmarks/processes.py --size 7b
    python benchmarks/processes.py --size 3b --processes 4

A team of one and a team of several are alive at once and take turns: gapclose's own ``observe``, from prompts to shards on disk and back, and steps
on targets above the probe under DDP, as many items in all for either team. Ratios are medians over rounds of one process's seconds by the team's
within a round; with W processes W is the most. Beside the gradients of adapters a run sums its losses and counts over processes, which is left out. Reading and preprocessing media lie outside.

The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from step import Variant, make_batches
from synthetic import (
    LARGE,
    PROBE_LAYERS,
    Clips,
    Questions,
    Synthetic,
    between,
    build_base,
    describe,
    make_parser,
    quartiles,
    questions,
    read_arguments,
)
from torch.nn.parallel import DistributedDataParallel

from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import observe
from gapclose.observe.request import ObservationRequest
from gapclose.training.config import TrainConfig

DEFAULTS = {
    "tiny": {"items": 128, "batch": 16, "global_batch": 24, "repeats": 12, "text_tokens": 26, "image_tokens": 16, "audio_tokens": 100,
             "probe_layer": PROBE_LAYERS["tiny"]},
    **{size: {"items": 32, "batch": 4, "global_batch": 12, "repeats": 6, **LARGE, "probe_layer": PROBE_LAYERS[size]} for size in ("3b", "7b")},
}  # fmt: skip
WORKS = ("observe", "train")


def member(rank: int, size: int, port: int, folder: str, args: argparse.Namespace, pipe: Any) -> None:
    """One process of a team: answers every word with the seconds that its work took, until it is told nothing."""
    places = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(place) for name, place in places.items()} if size > 1 else {})
    device = torch.device(args.device, rank) if args.device == "cuda" else torch.device("cpu")
    PartialState(cpu=device.type == "cpu")
    torch.manual_seed(0)
    base = build_base(args.size, args.layers, device).eval().requires_grad_(False)
    prompt = {"text_tokens": args.text_tokens, "image_tokens": args.image_tokens, "audio_tokens": args.audio_tokens}
    clips: Any = Clips(model=base, **prompt)
    items, number = Questions(questions(args.items, 1)), itertools.count()
    stored = Path(folder) / f"{size}-{rank}"
    stored.mkdir()
    (batch,) = make_batches(
        Synthetic(model=base, **prompt),
        args.global_batch // size,
        1,
        TrainConfig().retain_share,
        device,
        frozen=args.probe_layer,
        folder=stored,
    )
    variant = Variant("targets_after", base, args.probe_layer, 16, checkpointing=False)
    if size > 1:
        variant.model = DistributedDataParallel(variant.model, device_ids=[rank] if device.type == "cuda" else None)

    def observed() -> None:
        config = ObserveConfig(batch_size=args.batch, shard_batches=1)
        observe(clips, items, Path(folder) / f"observed-{size}-{next(number)}", config, ObservationRequest(layers=(args.probe_layer,)))

    works = {"observe": observed, "train": lambda: variant.step(batch)}
    pipe.send(describe(args, base, tokens=clips.length) if size == 1 else None)
    while (word := pipe.recv()) is not None:
        begun = time.perf_counter()
        works[word]()
        if device.type == "cuda":
            torch.cuda.synchronize()
        pipe.send(time.perf_counter() - begun)


class Team:
    def __init__(self, size: int, folder: str, args: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        pairs = [context.Pipe() for _ in range(size)]
        self.pipes = [here for here, _ in pairs]
        self.members = [
            context.Process(target=member, args=(rank, size, port, folder, args, there), daemon=True)
            for rank, (_, there) in enumerate(pairs)
        ]
        for process, (_, there) in zip(self.members, pairs, strict=True):
            process.start()
            there.close()  # so that a member that ends is noticed
        self.setting = [pipe.recv() for pipe in self.pipes]
        """what the processes say of themselves, once all are ready"""

    def work(self, word: str) -> float:
        """Seconds until the last process is done."""
        for pipe in self.pipes:
            pipe.send(word)
        return max(pipe.recv() for pipe in self.pipes)

    def stop(self) -> None:
        for pipe, process in zip(self.pipes, self.members, strict=True):
            pipe.send(None)
            process.join()


def main() -> None:
    parser = make_parser(__doc__, DEFAULTS)
    parser.add_argument("--processes", type=int, default=2, help="of the team that is set against one")
    args = read_arguments(parser, DEFAULTS)
    if args.device == "cuda" and torch.cuda.device_count() < args.processes:
        parser.error(f"--processes {args.processes}: there are {torch.cuda.device_count()} GPUs here; --device cpu runs on CPU processes")
    if args.processes < 2 or args.global_batch % args.processes or args.items % (args.batch * args.processes):
        parser.error("--processes must be 2 or more and divide --global_batch, and --items by --batch")
    if args.layers and args.probe_layer >= args.layers:
        parser.error(f"--probe_layer {args.probe_layer} leaves none of {args.layers} layers above it")
    with tempfile.TemporaryDirectory() as folder:
        teams = {size: Team(size, folder, args) for size in (1, args.processes)}
        taken: dict[tuple[str, int], list[float]] = {(word, size): [] for word in WORKS for size in teams}
        draw = np.random.default_rng(0)
        for repeat in range(-2, args.repeats):
            for word in WORKS:
                for size in draw.permutation(list(teams)):
                    seconds = teams[size].work(word)
                    if repeat >= 0:
                        taken[word, size].append(seconds)
        for team in teams.values():
            team.stop()
    result: dict[str, Any] = {"setting": teams[1].setting[0], "works": {}}
    table = Table("", "1 process, ms", f"{args.processes} processes, ms", "times as fast", "quartiles")
    for word in WORKS:
        one, several = (np.array(taken[word, size]) for size in teams)
        ratio, milliseconds = quartiles(one / several), [quartiles(1000 * seconds) for seconds in (one, several)]
        result["works"][word] = {"milliseconds": dict(zip(map(str, teams), milliseconds, strict=True)), "times_as_fast": ratio}
        table.add_row(word, *(f"{m['median']:.1f}" for m in milliseconds), f"{ratio['median']:.3f}", between(ratio))
    Console(width=120).print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
