"""Run what the prompts of a clip have in common once for all its questions.

The prompts of a clip's questions begin alike: with its media, or with a passage of text. The model
runs this prefix once; its key-value cache, repeated for every question, serves the rest. Where this
cannot give the results of complete prompts, complete prompts are run and the reason is logged once.

Shapes: B batch (questions), C clips in it, P tokens of the longest prefix, S of the longest suffix,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import DynamicCache
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from gapclose.core.logging import get_logger
from gapclose.data.items import Item
from gapclose.data.media import MediaLoader
from gapclose.models.families import PER_TOKEN
from gapclose.models.hooks import answer_logits, rotary_stores
from gapclose.models.loading import LoadedModel
from gapclose.models.processing import media_signature
from gapclose.models.structure import unwrap
from gapclose.observe.batching import group_by_clip
from gapclose.observe.prefix_prompts import CannotShare, on_the_left, split_prompts

logger = get_logger(__name__)

CONTINUED = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)
"""cache layers with keys and values per token, or with nothing (for layers without attention, or
that use those of another)"""
TOLERANCES = {torch.float32: 1e-4}
"""dtype -> largest difference of the first questions from their complete prompts, as a share of one
plus the largest entry"""
HALF_PRECISION = 0.05
"""the same in bfloat16 and float16, whose rounding depends on the shapes of a forward; a wrong mask
or position differs far more"""


class PrefixCache:
    """Run each clip once for all its questions, where the model supports it.

    Args:
        loaded: the model. Its cache decides: keys and values of every token, with or without a
            window, can be continued. A recurrent state (Mamba, linear attention) cannot, since
            questions of unequal length are padded behind the prefix. A sharded model cannot either:
            its processes must run equally many forwards, and their number depends on the clips.
        quiet: do not log why complete prompts are run.
    """

    def __init__(self, loaded: LoadedModel, *, quiet: bool = False) -> None:
        self.loaded, self.quiet = loaded, quiet
        self._said, self._read = dict[str, None](), 0
        self._refused: dict[tuple[str, ...], str] = {}
        self.equal = set[tuple[str, ...]]()
        """kinds of media whose first questions had the results of complete prompts (:meth:`check`)"""
        model = unwrap(loaded.model)
        layers = DynamicCache(config=model.config).layers
        others = sorted({type(layer).__name__ for layer in layers if type(layer) not in CONTINUED})
        self.refusal = f"the model's cache has {' and '.join(others)}, which cannot be continued behind padding" if others else None
        if any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters()):  # FSDP2; ZeRO-3
            self.refusal = "processes hold parts of the model (observe under DDP or ZeRO-2 to share)"
        self.window = min((layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)), default=None)

    def ask(self, model: Any, batch: Sequence[Item], media: MediaLoader, room: int) -> dict[str, Any] | None:
        """Run the clips of a batch; return the inputs for its questions, or None.

        With None, complete prompts must be run. The inputs are ``input_ids`` (B, S), padded on the
        left, and the cache that they continue. Whether None is returned depends on the batch alone,
        so one process and many do the same.

        Args:
            room: number of tokens that will follow the questions, of options or generated.
        """
        clips = group_by_clip(batch)
        if len(clips) == len(batch):
            return None
        try:
            if reason := self.refusal or self._refused.get(media_signature(batch[0])):
                raise CannotShare(reason)
            prefix, clip, suffixes = split_prompts(self.loaded, batch, clips, media)
            longest = prefix["input_ids"].shape[1] + max(map(len, suffixes)) + room
            if self.window is not None and longest > self.window:
                raise CannotShare(f"prompts go beyond the sliding window of {self.window} tokens, which counts padding too")
        except CannotShare as reason:
            if str(reason) not in self._said:
                self._said[str(reason)] = None
                if not self.quiet:
                    logger.info(f"observe.share_prefix: prompts are run whole where {reason}")
            return None
        self._read += 1
        return read_prefix(model, self.loaded, prefix, clip, suffixes)

    def check(self, batches: Sequence[Sequence[Item]], forward: Callable[[Sequence[Item], PrefixCache | None], dict[str, Any]]) -> None:
        """Refuse kinds of media (or none) whose first questions differ from complete prompts in any result.

        Args:
            forward: observes a few items, with this cache or (None) as complete prompts.
        """
        tried: set[tuple[str, ...]] = set()
        for batch in batches if self.refusal is None else ():
            several = [places for places in group_by_clip(batch) if len(places) > 1]
            kinds = media_signature(batch[0])
            if not several or kinds in tried:
                continue
            tried.add(kinds)
            named = " and ".join(kinds) or "text"
            unlike = sorted(several, key=lambda places: len(batch[places[0]].text))  # so that prefixes are padded
            few = [batch[n] for places in (unlike[0], *unlike[1:][-1:]) for n in places[:2]]
            whole, before = forward(few, None), self._read
            try:
                shared = forward(few, self)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, IndexError, TypeError, FloatingPointError) as error:
                self._refused[kinds] = f"a first try with {named} failed ({error})"
                continue
            for key, expected in whole.items():
                if not isinstance(expected, torch.Tensor):
                    continue
                there = torch.isfinite(expected)
                off = float((shared[key][there] - expected[there]).abs().max()) / (1 + float(expected[there].abs().max()))
                if not off <= TOLERANCES.get(unwrap(self.loaded.model).dtype, HALF_PRECISION):
                    self._refused[kinds] = f"a first try with {named} gave other {key} (off by {off:.1g} of their size)"
            if self._read > before and kinds not in self._refused:
                self.equal.add(kinds)

    def reason(self) -> str | None:
        """Return why nothing is shared, after :meth:`check`, or None if some kind of media is."""
        if self.equal:
            return None
        found = [*self._refused.values(), *self._said]
        return self.refusal or (found[0] if found else "no clip has several questions behind the same media")


def read_prefix(model: Any, loaded: LoadedModel, prefix: Any, clip: torch.Tensor, suffixes: list[list[int]]) -> dict[str, Any]:
    """Run the prefixes; return the model's inputs for the questions behind them."""
    prefix, clip = {k: v.to(loaded.device) for k, v in prefix.items()}, clip.to(loaded.device)
    attention, first = prefix["attention_mask"], torch.zeros(1, dtype=torch.long)
    own = bool(prefix.keys() - PER_TOKEN) and any(hasattr(m, "rope_deltas") for m in unwrap(model).modules())
    counted = {} if own else {"position_ids": (attention.long().cumsum(-1) - 1).clamp_min(0)}  # own: those of media, on three axes
    with answer_logits(model, first, first):  # these logits are not used
        cache = model(**prefix, **counted, use_cache=True).past_key_values
    cache.reorder_cache(clip)  # copies rows, each any number of times
    for module in rotary_stores(model):
        module.rope_deltas = module.rope_deltas[clip]
    ids = on_the_left(suffixes, loaded.tokenizer.pad_token_id).to(loaded.device)
    mask = on_the_left([[1] * len(s) for s in suffixes], 0).to(attention)
    attention = torch.cat([attention[clip], mask], 1)
    places = {"attention_mask": attention, "position_ids": continuation_positions(model, attention, ids.shape[1], counted=True)}
    return {"input_ids": ids, **places, "past_key_values": cache}


def generate_from_cache(loaded: LoadedModel, model: Any, asked: dict[str, Any], logits: torch.Tensor, max_new_tokens: int) -> list[str]:
    """Return greedy answers that continue a cache, after the forward that gave the first token.

    Args:
        asked: the inputs of that forward, with the cache under ``past_key_values``.
        logits: those of the first answer token, (B, V).
    """
    tokenizer, ends = loaded.tokenizer, unwrap(model).generation_config.eos_token_id
    pad = tokenizer.pad_token_id
    stop = torch.tensor([ends] if isinstance(ends, int) else ends or [], device=logits.device)
    said, done = list[torch.Tensor](), torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    asked = dict(asked)  # its mask grows
    while True:
        said.append(logits.argmax(-1).masked_fill(done, pad))
        done = done | torch.isin(said[-1], stop)
        if len(said) == max_new_tokens or bool(done.all()):
            return tokenizer.batch_decode(torch.stack(said, 1), skip_special_tokens=True)
        logits = next_logits(model, asked, said[-1])


def next_logits(model: Any, asked: dict[str, Any], tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits (B, V) behind one more token of every row, (B,); the mask in ``asked`` grows."""
    attention = torch.cat([asked["attention_mask"], asked["attention_mask"].new_ones(len(tokens), 1)], 1)
    asked["attention_mask"] = attention
    places = {"attention_mask": attention, "position_ids": continuation_positions(model, attention, 1, counted="position_ids" in asked)}
    return model(input_ids=tokens[:, None], **places, past_key_values=asked["past_key_values"], use_cache=True).logits[:, -1]


def continuation_positions(model: Any, attention: torch.Tensor, steps: int, *, counted: bool) -> torch.Tensor | None:
    """Positions of the last ``steps`` tokens behind a cache; None where the model counts itself.

    (3, B, steps) where media have rotary positions of their own; else (B, steps), if earlier
    positions were ``counted`` by the mask.

    With a cache, transformers 5.23 gives the Qwen families the positions of the whole mask instead
    of those of the new tokens (``compute_3d_position_ids``), and the shapes clash. Remove when it
    slices them.
    """
    stores = rotary_stores(model)
    places = attention.long().cumsum(-1)[:, -steps:] - 1
    if not stores:
        return places if counted else None
    return (places[None] + stores[0].rope_deltas.to(attention.device)).expand(3, -1, -1)
