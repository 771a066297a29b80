"""Split the prompts of a clip's questions into their shared prefix and the rest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from gapclose.data.items import Item
from gapclose.data.media import SUPPORTED, MediaLoader
from gapclose.models.families import PER_TOKEN
from gapclose.models.loading import LoadedModel


class CannotShare(Exception):
    """The questions of a batch cannot share one run of their clips; the message is the reason."""


def prefix_key(item: Item) -> str:
    """Return what an item shares with the other questions about its clip.

    These are its messages up to the last medium or, without media, the clip's name. Items with equal
    keys are run together; which tokens they share is found by :func:`split_prompts`.
    """
    if not item.media:
        return json.dumps(["clip", item.clip])
    turns = [(m["role"], [m["content"]] if isinstance(m["content"], str) else list(m["content"])) for m in item.messages]
    while not (turns[-1][1] and isinstance(turns[-1][1][-1], dict) and turns[-1][1][-1]["type"] in SUPPORTED):
        role, parts = turns.pop()
        if len(parts) > 1:
            turns.append((role, parts[:-1]))
    return json.dumps(["media", turns], sort_keys=True)


def split_prompts(
    loaded: LoadedModel, batch: Sequence[Item], clips: Sequence[Sequence[int]], media: MediaLoader
) -> tuple[dict[str, torch.Tensor], torch.Tensor, list[list[int]]]:
    """Split a batch into model inputs of the clips and the question tokens behind them.

    A clip's prefix is the longest beginning that all its prompts have in common, without the last
    token of any. It holds all media. They are prepared for the first question of a clip; the tokens
    of the others come from their texts alone, unless the processor adds something behind the media
    that could merge with the next letters; then they come from complete prompts.

    Returns:
        The inputs of the clips, with ``input_ids`` (C, P) padded on the left; the clip of every
        question (B,); the tokens of every question behind its clip.

    Raises:
        CannotShare: when the prompts of a clip differ in their tokens up to the last of its media
            or from the first token on, no token follows the media, or the media tokens are unknown.
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
        common = _common([suffixes[n] for n in places])
        lengths[c] += common
        for n in places:
            suffixes[n] = suffixes[n][common:]
    if not all(lengths):
        raise CannotShare("questions of a clip differ from their first token on")
    begin = (inputs["attention_mask"] == 0).sum(1).tolist()
    for key in PER_TOKEN & inputs.keys():
        rows = [row[b : b + n].tolist() for row, b, n in zip(inputs[key], begin, lengths, strict=True)]
        inputs[key] = on_the_left(rows, loaded.tokenizer.pad_token_id if key == "input_ids" else 0).to(inputs[key].dtype)
    return inputs, clip, suffixes


def _media_tokens(loaded: LoadedModel, item: Item) -> set[int]:
    """Ids of the media tokens of an item."""
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


def _common(suffixes: Sequence[list[int]]) -> int:
    """Count the leading tokens that all have in common, without the last token of any."""
    columns = zip(*(s[:-1] for s in suffixes), strict=False)
    return next((n for n, column in enumerate(columns) if len(set(column)) > 1), min(map(len, suffixes)) - 1)


def _cut(tokens: list[int], marks: set[int]) -> tuple[list[int], list[int]]:
    """Tokens up to the last media token (none without media), and those behind it."""
    end = next((n for n in range(len(tokens), 0, -1) if tokens[n - 1] in marks), 0)
    return tokens[:end], tokens[end:]


def _from_texts(loaded: LoadedModel, batch: Sequence[Item], clips: Any, marks: set[int], cuts: Any) -> list[list[int]] | None:
    """Tokens behind the media of every question, from texts with one token per medium.

    None where these do not determine them.
    """
    written = loaded.written(batch)
    if written is None:
        return None
    texts, special, found = [_cut(tokens, marks) for tokens in written], _special(loaded), {}
    for places, (_, whole) in zip(clips, cuts, strict=True):
        prefix, suffix = texts[places[0]]
        added = whole[: len(whole) - len(suffix)]  # e.g. the token that ends an image
        if (
            (marks and not prefix)
            or added + suffix != whole
            or (added and added[-1] not in special)
            or any(texts[n][0] != prefix for n in places)
        ):
            return None
        found |= {n: added + texts[n][1] for n in places}
    return [found[n] for n in range(len(batch))]


def _from_prompts(loaded: LoadedModel, batch: Any, clips: Any, marks: set[int], cuts: Any, media: MediaLoader) -> list[list[int]]:
    whole, found = [_cut(tokens, marks) for tokens in _unpadded(loaded.prompts(batch, media))], {}
    for places, (prefix, _) in zip(clips, cuts, strict=True):
        if (marks and not prefix) or any(whole[n][0] != prefix for n in places):
            raise CannotShare("questions of a clip differ before the end of its media")
        found |= {n: whole[n][1] for n in places}
    return [found[n] for n in range(len(batch))]


def on_the_left(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[fill] * (width - len(row)) + list(row) for row in rows])
