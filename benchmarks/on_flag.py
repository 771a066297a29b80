"""How each handler of ``on_flag`` changes the answers of a flagged model, and how many tokens it costs.

A finished run of the digits world (``gapclose close --seed 2 --run_dir runs/seed-2``; ten minutes on two CPU cores):
    OMP_NUM_THREADS=1 python benchmarks/on_flag.py runs/seed-2
The same for the adapted model of the run:
    OMP_NUM_THREADS=1 python benchmarks/on_flag.py runs/seed-2 --adapted

Every question of the split is answered once beside its reading. Then each handler gets the flagged answers that do not object already, as in
:meth:`gapclose.Monitor.generate`. No handler needs labels. ``escalate`` is measured with two functions: the run's other model (the adapted one
for the base model, and the reverse), and a person who always knows the answer, which is the most that any function can do.

Answers are judged by the option that they name. An abstention names none, so it counts as neither right nor accepting. A prompt is one that
some model reads; generated tokens include the one that ends an answer. Both are means over questions. Intervals resample clips.

The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

from gapclose import Monitor
from gapclose.data.answer_matching import AnswerMatcher
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item
from gapclose.data.media import MediaLoader
from gapclose.evaluation.summary_text import show
from gapclose.metrics.bootstrap import ClipBootstrap, Interval
from gapclose.models.loading import LoadedModel
from gapclose.models.structure import unwrap
from gapclose.observe.batching import plan_batches
from gapclose.observe.forward import generate
from gapclose.pipeline.items import run_items
from gapclose.pipeline.on_flag import OnFlag, other_texts
from gapclose.pipeline.run_model import load_run_model, run_config

COLUMNS = {
    "true_right": "true premise: right",
    "false_right": "false premise: right",
    "false_accepted": "false premise: accepted",
    "no_answer": "no answer",
}


@dataclass
class Counted:
    """What models read and wrote, over all their calls of ``generate``."""

    prompts: int = 0
    tokens: int = 0


@dataclass
class Run:
    """The questions of a run, and what is needed to ask them."""

    monitor: Monitor
    items: ItemSet
    max_new_tokens: int
    batch_size: int
    replicates: int
    seed: int
    asked: list[Item] = field(init=False)

    def __post_init__(self) -> None:
        self.asked = [i for i in self.items if i.purpose == "gap" and i.gold is not None]


@contextmanager
def counting(*models: Any) -> Iterator[Counted]:
    """Inside, count the prompts that these models read and the tokens that they generate."""
    counted, bases = Counted(), [unwrap(m) for m in models]

    def count(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def counted_generate(**given: Any) -> torch.Tensor:
            found = original(**given)
            new = found[:, given["input_ids"].shape[1] :]
            ends = torch.isin(new, torch.tensor(original.__self__.generation_config.eos_token_id, device=new.device).reshape(-1))
            counted.prompts += len(new)
            counted.tokens += int((ends.cumsum(1) - ends.int() == 0).sum())  # up to the first end, which counts
            return found

        return counted_generate

    for base in bases:
        base.generate = count(base.generate)
    try:
        yield counted
    finally:
        for base in bases:
            del base.generate


@torch.no_grad()
def alone(run: Run, loaded: LoadedModel, items: Sequence[Item]) -> list[str]:
    """Answers without a monitor, in the order of the items."""
    media, found = MediaLoader(run.items.root, loaded.sampling_rate, framing=run.monitor.file.model.framing), dict[str, str]()
    for batch in plan_batches(items, run.batch_size):
        inputs = {k: v.to(loaded.device) for k, v in loaded.prompts(batch, media).items()}
        found |= zip([i.id for i in batch], generate(loaded, loaded.model, inputs, run.max_new_tokens), strict=True)
    return [found[i.id] for i in items]


def right_answer(item: Item) -> str:
    """The option of the label."""
    assert item.gold is not None
    return item.options[item.gold].text


def judge(run: Run, texts: Sequence[str], counted: Counted) -> dict[str, Any]:
    """Shares of the answers, with clip-bootstrap intervals, and means of the costs."""
    items, clips = run.asked, ClipBootstrap(np.array([i.clip for i in run.asked]), run.replicates, run.seed)
    named = [None if n < 0 else item.options[n] for n, item in zip(AnswerMatcher()(list(texts), items), items, strict=True)]
    false = np.array([i.concept in run.monitor.file.alarm for i in items])
    right = np.array([o is not None and o == i.options[i.gold] for o, i in zip(named, items, strict=True)])
    accepts = np.array([o is not None and o.concept not in run.monitor.file.alarm for o in named])
    silent = np.array([o is None for o in named])
    shares = {
        "true_right": (right, ~false),
        "false_right": (right, false),
        "false_accepted": (accepts, false),
        "no_answer": (silent, silent | True),
    }
    figures = {name: Interval.of(clips.mean(of.astype(float), where)).to_dict() for name, (of, where) in shares.items()}
    return {**figures, "prompts": counted.prompts / len(items), "tokens": counted.tokens / len(items)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a finished run")
    parser.add_argument("--split", default="test")
    parser.add_argument("--adapted", action="store_true", help="watch the adapted model; the base model is escalated to")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    config = run_config(args.run)
    run = Run(
        monitor=Monitor.from_pretrained(args.run), items=run_items(config).select(split=args.split), max_new_tokens=config.observe.max_new_tokens,
        batch_size=config.observe.batch_size, replicates=config.gap.replicates, seed=config.seed,
    )  # fmt: skip
    watched, other = (load_run_model(config, args.run, base=base) for base in (not args.adapted, args.adapted))
    names, messages = {id(i.messages): i for i in run.asked}, [i.messages for i in run.asked]
    other_name = "base" if args.adapted else "adapted"
    with counting(watched.model) as first:
        answers = run.monitor.generate(
            watched.model, watched.processor, messages, root=run.items.root, max_new_tokens=run.max_new_tokens, batch_size=run.batch_size,
            options=[i.options for i in run.asked],
        )  # fmt: skip
    texts, flagged = [a.text for a in answers], [n for n, a in enumerate(answers) if a.flag and a.disagrees is not False]
    to_other = dict[str, str]()

    def ask(loaded: LoadedModel, conversations: Sequence[Any]) -> list[str]:
        return alone(run, loaded, [replace(run.asked[n], messages=list(m)) for n, m in zip(flagged, conversations, strict=True)])

    handlers: dict[str, tuple[OnFlag, Callable[[Any], str] | None]] = {
        "ask_again": ("ask_again", None),
        "abstain": ("abstain", None),
        f"escalate to the {other_name} model": ("escalate", lambda m: to_other[names[id(m)].id]),
        "escalate to a person who is right": ("escalate", lambda m: right_answer(names[id(m)])),
    }
    found = {"without monitor": judge(run, texts, first)}
    for name, (on_flag, escalate) in handlers.items():
        with counting(watched.model, other.model) as more:
            if name.endswith("model"):  # in batches, not one by one
                to_other |= zip([run.asked[n].id for n in flagged], ask(other, [messages[n] for n in flagged]), strict=True)
            new = other_texts(on_flag, escalate, [(messages[n], answers[n]) for n in flagged], lambda m: ask(watched, m))
        changed = dict(zip(flagged, new, strict=True))
        counted = Counted(first.prompts + more.prompts, first.tokens + more.tokens)
        found[name] = judge(run, [changed.get(n) or text for n, text in enumerate(texts)], counted)
    false = sum(i.concept in run.monitor.file.alarm for i in run.asked)
    kind = "adapted" if args.adapted else "base"
    title = (
        f"{kind} model, {args.split}: {len(run.asked) - false} questions with a true and {false} with a false premise, "
        f"{len({i.clip for i in run.asked})} clips, {len(flagged)} answers handled, 95 % clip-bootstrap intervals"
    )
    table = Table("on_flag", *COLUMNS.values(), "prompts", "generated tokens", title=title)
    for name, of in found.items():
        table.add_row(name, *(show(of[key]) for key in COLUMNS), f"{of['prompts']:.2f}", f"{of['tokens']:.2f}")
    Console(width=170).print(table)
    print(json.dumps({"model": kind, "split": args.split, "threshold": run.monitor.file.threshold, "handled": len(flagged), "ways": found}))


if __name__ == "__main__":
    main()
