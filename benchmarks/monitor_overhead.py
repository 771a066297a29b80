"""How much time the monitor adds to generation: answers with a reading beside them against answers alone.

The shipped digits model with pictures and sounds (a minute on two CPU cores):
    OMP_NUM_THREADS=1 python benchmarks/monitor_overhead.py
Longer answers, of which the prompt is a smaller part:
    OMP_NUM_THREADS=1 python benchmarks/monitor_overhead.py --new_tokens 32

A pretrained text model, in bfloat16, with passages of the set *people*:
    OMP_NUM_THREADS=1 python benchmarks/monitor_overhead.py --model models/qwen2.5-coder-0.5b-instruct

Both sides make prompts of the same conversations and generate greedy answers of the same length through gapclose's own forward. One side is
:meth:`gapclose.Monitor.generate`: the checks of model and messages, the hook, the probe, and the results. They take turns inside one run,
in random order, and the ratio is that of the medians, so that whatever else the machine does meets both sides. Media are decoded by
both. The probe has random weights, which take the time of any others.

The last line printed is one JSON object.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from synthetic import between, describe, make_parser, quartiles, read_arguments, take_turns

from gapclose import Monitor, load_items, load_model
from gapclose.data.digits.generate import write
from gapclose.data.generated import people
from gapclose.data.item_set import ItemSet
from gapclose.data.media import MediaLoader
from gapclose.evaluation.monitor_file import MonitoredModel, MonitorFile
from gapclose.metrics.alarms import alarm_rates
from gapclose.metrics.calibration import EventBin
from gapclose.models.config import ModelConfig
from gapclose.models.loading import LoadedModel
from gapclose.observe.forward import generate
from gapclose.probes.linear import FrozenProbe

WANTED = 1.02
DEFAULTS = {"tiny": {"batch": 16, "repeats": 31, "new_tokens": 8}}
CLIPS = {"fit": 4, "train": 4, "val": 4, "test": 8}


def random_monitor(loaded: LoadedModel, items: ItemSet) -> Monitor:
    """A monitor of this model with a probe of random weights in the middle of the decoder."""
    rng, width = np.random.default_rng(0), loaded.width
    probe = FrozenProbe(
        mean=rng.normal(size=width), scale=np.ones(width), weight=rng.normal(size=(len(items.concepts), width)), bias=np.zeros(len(items.concepts)),
        temperature=1.0, layers=[len(loaded.layers) // 2], family="logistic", strength=1.0, concepts=items.concepts,
    )  # fmt: skip
    unused = np.array([True, False])
    rates = alarm_rates(unused, unused, np.array(["a", "b"]), replicates=100, seed=0)
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    model = MonitoredModel(
        name=loaded.path, revision=None, fingerprint=loaded.fingerprint, adapter=None, adapters_above=True, dtype=dtype, template={},
        prompt="own", frames=8, side=448,
    )  # fmt: skip
    file = MonitorFile(
        probe=probe, alarm=items.alarm, threshold=0.5, false_alarm_rate=0.05, split="val", rates=rates,
        calibration=(EventBin(0.5, 0.5, 1),), model=model,
    )  # fmt: skip
    return Monitor(file)


def main() -> None:
    parser = make_parser(__doc__, DEFAULTS)
    parser.add_argument(
        "--model", default="digits", help="the shipped model, or a text chat model by hub name or directory (default: %(default)s)"
    )
    parser.add_argument("--dtype", help="default: float32 for digits, else bfloat16")
    args = read_arguments(parser, DEFAULTS)
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as place:
        shipped = args.model == "digits"
        if shipped:
            write(Path(place), seed=0, clips=CLIPS)
        else:
            people.write(place, seed=0, clips=CLIPS)
        items = load_items(place)
        loaded = load_model(ModelConfig(path=args.model, dtype=args.dtype or ("float32" if shipped else "bfloat16")))
        loaded.model.to(device)
        setting = describe(args, loaded.model)
        asked = [*items.select(split="test", purpose="gap")][: args.batch]
        monitor, full = random_monitor(loaded, items), {"min_new_tokens": args.new_tokens}  # every answer is as long as the limit

        @torch.no_grad()
        def alone() -> list[str]:
            media = MediaLoader(items.root, loaded.sampling_rate)
            inputs = {k: v.to(device) for k, v in loaded.prompts(asked, media).items()}
            return generate(loaded, loaded.model, inputs, args.new_tokens, full)

        def watched() -> list[Any]:
            messages = [i.messages for i in asked]
            settings = {"max_new_tokens": args.new_tokens, "root": items.root, "batch_size": args.batch, **full}
            return monitor.generate(loaded.model, loaded.processor, messages, **settings)

        same = alone() == [answer.text for answer in watched()]
        taken = take_turns({"alone": alone, "watched": watched}, args.repeats, device)
    ratio = float(np.median(taken["watched"][:, 0]) / np.median(taken["alone"][:, 0]))
    cpu = float(np.median(taken["watched"][:, 1]) / np.median(taken["alone"][:, 1]))
    each = quartiles(taken["watched"][:, 0] / taken["alone"][:, 0])
    milliseconds = {name: quartiles(1000 * t[:, 0]) for name, t in taken.items()}
    table = Table("alone, ms", "watched, ms", "ratio of medians", "quartiles of the ratio", "CPU time", "wanted", "same answers")
    times = [f"{of['median']:.1f}" for of in milliseconds.values()]
    table.add_row(*times, f"{ratio:.3f}", between(each), f"{cpu:.3f}", f"<= {WANTED}", str(same))
    Console(width=140).print(table)
    print(
        json.dumps(
            {"setting": setting, "milliseconds": milliseconds, "ratio": ratio, "cpu_ratio": cpu, "at_most": WANTED, "same_answers": same}
        )
    )


if __name__ == "__main__":
    main()
