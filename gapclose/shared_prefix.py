"""One reading of the media for all questions of a clip.

What precedes the questions of a clip, up to its last media token, goes through the model once; its key-value cache, repeated for every
question, serves what follows. Where that cannot give what whole prompts give, they are run whole, and the reason is said once.

Shapes: B batch (questions), C clips in it, P tokens of the longest prefix, S of the longest suffix, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from gapclose.families import PER_TOKEN
from gapclose.items import Item
from gapclose.media import SUPPORTED, Media
from gapclose.models import LoadedModel
from gapclose.progress import say
from gapclose.prompts import media_signature
from gapclose.structure import answer_logits, unwrap

TOLERANCES = {torch.float32: 1e-4}
"""dtype -> by how much a few first questions may differ from their whole prompts, as a share of one plus the largest entry"""
HALF_PRECISION = 0.05
"""the same in bfloat16 and float16, whose rounding differs with the shapes of a forward; a wrong mask or position is far beyond it"""


class CannotShare(Exception):
    """Why the questions of a batch cannot follow on one reading of their clips."""


def lead(item: Item) -> str | None:
    """The messages of an item up to its last medium: questions that agree on it can share its reading. None where it has no media."""
    turns = [(m["role"], [m["content"]] if isinstance(m["content"], str) else list(m["content"])) for m in item.messages]
    while turns and not (turns[-1][1] and isinstance(turns[-1][1][-1], dict) and turns[-1][1][-1]["type"] in SUPPORTED):
        role, parts = turns.pop()
        if len(parts) > 1:
            turns.append((role, parts[:-1]))
    return json.dumps(turns, sort_keys=True) if turns else None


def by_clip(items: Sequence[Item]) -> list[list[int]]:
    """Places of the items that share a reading, in the order of their first; items without media share none."""
    found: dict[Any, list[int]] = {}
    for n, item in enumerate(items):
        shared = lead(item)
        found.setdefault(n if shared is None else shared, []).append(n)
    return list(found.values())


def clips_together(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Batches of at most ``size`` items in which the questions of a clip stand together; only clips with more questions are cut."""
    batches: list[list[Item]] = []
    for places in by_clip(items):
        for begin in range(0, len(places), size):
            asked = [items[n] for n in places[begin : begin + size]]
            if not batches or len(batches[-1]) + len(asked) > size:
                batches.append([])
            batches[-1] += asked
    return batches


class SharedPrefix:
    """Reads clips once for a model, where it can be done.

    Args:
        loaded: its cache decides: keys and values of every token, within a window or not, can be continued; a state that moves on with
            every token (Mamba, linear attention) cannot, since questions of unequal length are padded behind the prefix.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded, self._said = loaded, set[str]()
        self._refused: dict[tuple[str, ...], str] = {}
        layers = DynamicCache(config=unwrap(loaded.model).config).layers
        others = sorted({type(layer).__name__ for layer in layers} - {DynamicLayer.__name__, DynamicSlidingWindowLayer.__name__})
        self.refusal = f"the model's cache has {' and '.join(others)}, which cannot be continued behind padding" if others else None
        self.window = min((layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)), default=None)

    def ask(self, model: Any, batch: Sequence[Item], media: Media, room: int) -> dict[str, Any] | None:
        """Read the clips of a batch; what the model is then given for its questions (``input_ids`` (B, S), padded on the left, and the
        cache that they follow on), or None where prompts are to be run whole.

        Whether it is None depends on the batch alone, so that one process and many do the same.

        Args:
            room: tokens that will follow on the questions: of options, or generated.
        """
        clips = by_clip(batch)
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
                self._said.add(str(reason))
                say(f"observe.share_prefix: prompts are run whole where {reason}")
            return None
        return read_prefix(model, self.loaded, prefix, clip, suffixes)

    def check(self, batches: Sequence[Sequence[Item]], forward: Callable[[Sequence[Item], SharedPrefix | None], dict[str, Any]]) -> None:
        """Refuse kinds of media for which the first questions get other scores or residuals than their whole prompts.

        Args:
            forward: observes a few items, by this reader or (None) whole.
        """
        tried: set[tuple[str, ...]] = set()
        for batch in batches if self.refusal is None else ():
            several = [places for places in by_clip(batch) if len(places) > 1]
            kinds = media_signature(batch[0])
            if not several or kinds in tried:
                continue
            tried.add(kinds)
            few = [batch[n] for places in several[:2] for n in places[:2]]
            whole = forward(few, None)
            try:
                shared = forward(few, self)
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                self._refused[kinds] = f"a first try with {' and '.join(kinds)} failed ({error})"
                continue
            for key, expected in whole.items():
                if not isinstance(expected, torch.Tensor):
                    continue
                there = torch.isfinite(expected)
                off = float((shared[key][there] - expected[there]).abs().max()) / (1 + float(expected[there].abs().max()))
                if not off <= TOLERANCES.get(unwrap(self.loaded.model).dtype, HALF_PRECISION):
                    self._refused[kinds] = f"a first try with {' and '.join(kinds)} gave other {key} (off by {off:.1g} of their size)"


def split_prompts(
    loaded: LoadedModel, batch: Sequence[Item], clips: Sequence[Sequence[int]], media: Media
) -> tuple[dict[str, torch.Tensor], torch.Tensor, list[list[int]]]:
    """What a model is given of the clips, ``input_ids`` (C, P) padded on the left; the clip of every question (B,); the tokens behind it.

    Media are prepared for the first question of a clip. The others' tokens come from their texts alone, wherever the processor adds
    nothing behind the media that the next letters could join; else, from their whole prompts.

    Raises:
        CannotShare: when the template or the tokenizer gives questions of a clip other tokens up to the last of its media.
    """
    marks = _media_tokens(loaded, batch[0])
    inputs = loaded.prompts([batch[places[0]] for places in clips], media)
    cuts = [_cut(row, marks) for row in _unpadded(inputs)]
    suffixes = _from_texts(loaded, batch, clips, marks, cuts) or _from_prompts(loaded, batch, clips, marks, cuts, media)
    if not all(suffixes):
        raise CannotShare("nothing follows on the media")
    lengths, clip = [len(prefix) for prefix, _ in cuts], torch.zeros(len(batch), dtype=torch.long)
    for c, places in enumerate(clips):
        clip[list(places)] = c
        closing = _closing([suffixes[n] for n in places], _special(loaded))
        lengths[c] += closing
        for n in places:
            suffixes[n] = suffixes[n][closing:]
    begin = (inputs["attention_mask"] == 0).sum(1).tolist()
    for key in PER_TOKEN & inputs.keys():
        rows = [row[b : b + n].tolist() for row, b, n in zip(inputs[key], begin, lengths, strict=True)]
        inputs[key] = _on_the_left(rows, loaded.tokenizer.pad_token_id if key == "input_ids" else 0).to(inputs[key].dtype)
    return inputs, clip, suffixes


def _media_tokens(loaded: LoadedModel, item: Item) -> set[int]:
    """Ids of the tokens that stand for the media of an item."""
    found = set()
    for kind in {kind for kind, _ in item.media}:
        holders = (getattr(holder, f"{kind}_token_id", None) for holder in (loaded.processor, loaded.tokenizer))
        mark = next((m for m in holders if m is not None), None)
        if mark is None:
            raise CannotShare(f"{type(loaded.processor).__name__} does not tell which token stands for {kind}")
        found.add(mark)
    return found


def _unpadded(inputs: dict[str, torch.Tensor]) -> list[list[int]]:
    return [row[mask.bool()].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]


def _special(loaded: LoadedModel) -> set[int]:
    return set(loaded.tokenizer.all_special_ids)


def _closing(suffixes: Sequence[list[int]], special: set[int]) -> int:
    """How many tokens that all questions of a clip begin with close its media (models of the Qwen families look for the mark of their end)."""
    found = 0
    for first, *others in zip(*(s[:-1] for s in suffixes), strict=False):
        if first not in special or any(o != first for o in others):
            break
        found += 1
    return found


def _cut(tokens: list[int], marks: set[int]) -> tuple[list[int], list[int]]:
    """Tokens up to the last that stands for a medium, and those behind it."""
    end = next((n for n in range(len(tokens), 0, -1) if tokens[n - 1] in marks), 0)
    return tokens[:end], tokens[end:]


def _from_texts(loaded: LoadedModel, batch: Sequence[Item], clips: Any, marks: set[int], cuts: Any) -> list[list[int]] | None:
    """Tokens behind the media of every question, from texts in which each medium is still one token; None where those do not tell."""
    written = loaded.written(batch)
    if written is None:
        return None
    texts, special, found = [_cut(tokens, marks) for tokens in written], _special(loaded), {}
    for places, (_, whole) in zip(clips, cuts, strict=True):
        prefix, suffix = texts[places[0]]
        added = whole[: len(whole) - len(suffix)]  # e.g. the mark of an image's end
        if not prefix or added + suffix != whole or (added and added[-1] not in special) or any(texts[n][0] != prefix for n in places):
            return None
        found |= {n: added + texts[n][1] for n in places}
    return [found[n] for n in range(len(batch))]


def _from_prompts(loaded: LoadedModel, batch: Any, clips: Any, marks: set[int], cuts: Any, media: Media) -> list[list[int]]:
    whole, found = [_cut(tokens, marks) for tokens in _unpadded(loaded.prompts(batch, media))], {}
    for places, (prefix, _) in zip(clips, cuts, strict=True):
        if not prefix or any(whole[n][0] != prefix for n in places):
            raise CannotShare("questions of a clip differ before the end of its media")
        found |= {n: whole[n][1] for n in places}
    return [found[n] for n in range(len(batch))]


def _on_the_left(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[fill] * (width - len(row)) + list(row) for row in rows])


def read_prefix(model: Any, loaded: LoadedModel, prefix: Any, clip: torch.Tensor, suffixes: list[list[int]]) -> dict[str, Any]:
    """Run the prefixes; what the model is given for the questions behind them."""
    prefix, clip = {k: v.to(loaded.device) for k, v in prefix.items()}, clip.to(loaded.device)
    attention, first = prefix["attention_mask"], torch.zeros(1, dtype=torch.long)
    own = any(hasattr(m, "rope_deltas") for m in unwrap(model).modules())  # media have rotary positions of their own
    counted = {} if own else {"position_ids": (attention.long().cumsum(-1) - 1).clamp_min(0)}
    with answer_logits(model, first, first):  # nobody asks for these
        cache = model(**prefix, **counted, use_cache=True).past_key_values
    cache.batch_select_indices(clip)
    for module in rotary_stores(model):
        module.rope_deltas = module.rope_deltas[clip]
    ids = _on_the_left(suffixes, loaded.tokenizer.pad_token_id).to(loaded.device)
    mask = _on_the_left([[1] * len(s) for s in suffixes], 0).to(attention)
    attention = torch.cat([attention[clip], mask], 1)
    places = {"attention_mask": attention, "position_ids": later_positions(model, attention, ids.shape[1], counted=True)}
    return {"input_ids": ids, **places, "past_key_values": cache}


def answer_on(loaded: LoadedModel, model: Any, asked: dict[str, Any], logits: torch.Tensor, max_new_tokens: int) -> list[str]:
    """Greedy answers from the cache of :meth:`SharedPrefix.ask` after its forward, whose ``logits`` are those of the first token, (B, V)."""
    tokenizer, ends = loaded.tokenizer, unwrap(model).generation_config.eos_token_id
    pad = tokenizer.pad_token_id
    stop = torch.tensor([ends] if isinstance(ends, int) else ends or [], device=logits.device)
    attention, said, done = asked["attention_mask"], [], torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    while True:
        said.append(logits.argmax(-1).masked_fill(done, pad))
        done = done | torch.isin(said[-1], stop)
        if len(said) == max_new_tokens or bool(done.all()):
            return tokenizer.batch_decode(torch.stack(said, 1), skip_special_tokens=True)
        attention = torch.cat([attention, attention.new_ones(len(attention), 1)], 1)
        places = {"attention_mask": attention, "position_ids": later_positions(model, attention, 1, counted=True)}
        logits = model(input_ids=said[-1][:, None], **places, past_key_values=asked["past_key_values"], use_cache=True).logits[:, -1]


def rotary_stores(model: Any) -> list[Any]:
    """The modules that keep the offset between a prompt's length and its last rotary position (media have a grid of their own)."""
    return [m for m in unwrap(model).modules() if getattr(m, "rope_deltas", None) is not None]


def later_positions(model: Any, attention: torch.Tensor, steps: int, *, counted: bool) -> torch.Tensor | None:
    """Positions of the last ``steps`` tokens behind a cache: (3, B, steps) where media have rotary positions of their own, else (B, steps)
    where all before were ``counted`` by the mask; None where the model counts by itself.

    With a cache, transformers 5.23 gives the Qwen families the positions of the whole mask instead of those of the new tokens
    (``compute_3d_position_ids``), and the shapes clash. Remove when it slices them.
    """
    stores = rotary_stores(model)
    places = attention.long().cumsum(-1)[:, -steps:] - 1
    if not stores:
        return places if counted else None
    return (places[None] + stores[0].rope_deltas.to(attention.device)).expand(3, -1, -1)
