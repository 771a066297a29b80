"""What answers of several tokens and long passages cost: options that share their prompt, and questions that share their text.

A small Qwen2, on whatever is there (about two minutes on two CPU cores):
    OMP_NUM_THREADS=1 python benchmarks/long_answers.py
Qwen2.5-7B's geometry in bfloat16 on one GPU (random weights made on the device: no download):
    python benchmarks/long_answers.py --size 7b

Prompts are of random tokens: a passage, then a question. Measured are
- a training step (forward and backward of the consistency loss, adapters after the probe) with four options of three tokens, in one row and in
  rows of their own, against one with four options of one token;
- observing the same items;
- observing four questions about a passage, with ``observe.share_prefix`` and with whole prompts.

The ways take turns inside one run, in random order; ratios of time are medians over rounds of the ratio within a round. The last line printed is
one JSON object.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from synthetic import between, describe, make_parser, quartiles, read_arguments, take_turns

from gapclose.data.items import Item, Option
from gapclose.models.structure import decoder_layers
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import _forward
from gapclose.observe.prefix_cache import PrefixCache
from gapclose.observe.request import ObservationRequest
from gapclose.training.collator import Collator
from gapclose.training.config import LoraConfig
from gapclose.training.lora import add_lora
from gapclose.training.sampler import Example
from gapclose.training.trainer import term_sums

EACH, VOCABULARY = 4, 4096
WANTED = {"train, one row": 1.25, "observe, three tokens": 1.25, "passage, shared": 0.40}
DEFAULTS = {
    "tiny": {"batch": 8, "repeats": 9, "passage_tokens": 200, "question_tokens": 24, "probe_layer": 6},
    "7b": {"batch": 8, "repeats": 9, "passage_tokens": 200, "question_tokens": 24, "probe_layer": 17},
}
GEOMETRY: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 10, "num_attention_heads": 8, "num_key_value_heads": 2},
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4},
}


class Texts:
    """Stands in for :class:`gapclose.models.loading.LoadedModel`: a text model and prompts of random tokens."""

    fingerprint, apart, processor = "synthetic", dict[str, str](), None

    def __init__(self, model: Any, passage: int, question: int) -> None:
        self.model, self.lengths, self.made = model, (passage, question), dict[str, list[int]]()
        self.generator = torch.Generator().manual_seed(0)
        self.tokenizer = SimpleNamespace(all_special_ids=[], pad_token_id=0, eos_token_id=None)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def layers(self) -> Any:
        return decoder_layers(self.model)

    def _once(self, name: str, length: int) -> list[int]:
        if name not in self.made:
            self.made[name] = torch.randint(50, VOCABULARY, (length,), generator=self.generator).tolist()
        return self.made[name]

    def option_tokens(self, text: str) -> list[int]:
        return [int(token) for token in text.split()]

    def written(self, items: Sequence[Item]) -> list[list[int]]:
        return [self._once(i.clip, self.lengths[0]) + self._once(i.id, self.lengths[1]) for i in items]

    def prompts(self, items: Sequence[Item], media: Any) -> dict[str, torch.Tensor]:
        ids = torch.tensor(self.written(items), device=self.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def questions(number: int, tokens: int, clips: int) -> list[Item]:
    """Questions about ``clips`` passages with four options of ``tokens`` tokens each."""
    options = [Option(text=" ".join(str(10 * o + t) for t in range(tokens)), concept="standard") for o in range(EACH)]
    of = [f"clip {n * clips // number}" for n in range(number)]
    return [Item(id=f"{n}", clip=c, split="-", modality="-", messages=[], options=options) for n, c in enumerate(of)]


def step(texts: Texts, items: Sequence[Item], branching: bool) -> Callable[[], None]:
    """A forward and a backward over all items, in one micro-batch."""
    examples = [Example(item=i, term="consistency", weights=np.full(EACH, 1 / EACH)) for i in items]
    (part,) = Collator(texts, object(), branching=branching)(examples)["parts"]  # type: ignore[arg-type]
    part = {k: v.to(texts.device) if isinstance(v, torch.Tensor) else v for k, v in part.items()}

    def run() -> None:
        texts.model.zero_grad()
        term_sums(texts.model, dict(part)).sum().backward()

    return run


def observing(texts: Texts, items: Sequence[Item], shared: bool = False) -> Callable[[], Any]:
    wanted = ObservationRequest(layers=(len(texts.layers) // 2,))
    reader = PrefixCache(texts) if shared else None  # type: ignore[arg-type]
    return lambda: _forward(texts, items, None, ObserveConfig(share_prefix=shared), wanted, reader)  # type: ignore[arg-type]


def main() -> None:
    args = read_arguments(make_parser(__doc__, DEFAULTS), DEFAULTS)
    geometry = GEOMETRY[args.size] | ({"num_hidden_layers": args.layers} if args.layers else {})
    config = transformers.Qwen2Config(vocab_size=VOCABULARY, **geometry)
    with torch.device(args.device):
        dtype = torch.float32 if args.size == "tiny" else torch.bfloat16
        model = transformers.Qwen2ForCausalLM._from_config(config, dtype=dtype).eval().requires_grad_(False)
    texts = Texts(model, args.passage_tokens, args.question_tokens)
    setting = describe(args, model, tokens=sum(texts.lengths), options=EACH)

    one, three, of_passages = (questions(args.batch, *given) for given in ((1, args.batch), (3, args.batch), (1, args.batch // EACH)))
    ways = {
        "observe, one token": observing(texts, one),
        "observe, three tokens": observing(texts, three),
        "passage, whole": observing(texts, of_passages),
        "passage, shared": observing(texts, of_passages, shared=True),
    }
    taken = take_turns(ways, args.repeats, texts.device)
    scores = [ways[name]()["scores"] for name in ("passage, whole", "passage, shared")]
    add_lora(texts, LoraConfig(), range(args.probe_layer + 1, len(texts.layers) + 1), seed=0)  # type: ignore[arg-type]
    steps = {
        "train, one token": step(texts, one, branching=True),
        "train, one row": step(texts, three, branching=True),
        "train, rows of their own": step(texts, three, branching=False),
    }
    taken |= take_turns(steps, args.repeats, texts.device)

    table = Table("way", "ms", "ratio", "to", "quartiles", "at most")
    result: dict[str, Any] = {"setting": setting, "largest_difference": float((scores[0] - scores[1]).abs().max()), "ways": {}}
    for name, spent in taken.items():
        base = next(b for b in ("observe, one token", "passage, whole", "train, one token") if b.split(",")[0] == name.split(",")[0])
        ratio, milliseconds = quartiles(spent[:, 0] / taken[base][:, 0]), quartiles(1000 * spent[:, 0])
        result["ways"][name] = {"milliseconds": milliseconds, "ratio": ratio, "to": base, "at_most": WANTED.get(name)}
        table.add_row(
            name,
            f"{milliseconds['median']:.1f}",
            f"{ratio['median']:.3f}",
            base,
            between(ratio),
            f"{WANTED[name]:g}" if name in WANTED else "",
        )
    Console(width=140).print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
