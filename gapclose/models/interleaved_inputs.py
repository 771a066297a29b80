"""Inputs for a video interleaved with its audio, for processors that support it.

These are the processors of Qwen2.5-Omni and Qwen3-Omni.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gapclose.data.interleave import is_interleaved
from gapclose.data.items import Item
from gapclose.data.media import MediaLoader
from gapclose.models.families import INTERLEAVES, PER_TOKEN
from gapclose.models.video_inputs import video_inputs

TICKS = 1024
"""ticks per second; the time between a video's frames is rounded to ticks, so that processor and
model, which both arrange frames and audio in time, round alike"""


def interleave_fault(processor: Any, item: Item) -> str | None:
    """Return why a model cannot take an interleaved item, with the remedy, or None."""
    if not is_interleaved(item):
        return None
    if type(processor).__name__ not in INTERLEAVES:
        return f"data.interleave is set, and {type(processor).__name__} takes film and sound one after the other; set it false"
    others = [kind for kind, _ in item.media if kind != "image"]
    if others != ["video", "audio"]:
        return f"it has {' and '.join(others)}; with data.interleave an item has one film with its sound, and images; set it false"
    return None


def interleaved_prompts(
    processor: Any, items: Sequence[Item], texts: Sequence[str], media: MediaLoader, settings: dict[str, Any]
) -> dict[str, Any]:
    """Processor output for items that are all interleaved, and the flag that the model needs.

    ``input_ids`` is (B, T), padded on the left. Items are processed one by one, since a processor
    of transformers 5.23 takes one frame rate for all videos of a call.
    """
    prompts = []
    for item, text in zip(items, texts, strict=True):
        loaded = {kind: [media.load(k, p) for k, p in item.media if k == kind] for kind in ("image", "video", "audio")}
        inputs = video_inputs(loaded["video"], processor)
        inputs["videos_kwargs"]["fps"] = _rate(loaded["video"][0].seconds, processor.video_processor.temporal_patch_size)
        images = {"images": [loaded["image"]]} if loaded["image"] else {}
        sound = {"audio": loaded["audio"], "audio_from_video_indices": [0], "audio_kwargs": {"sampling_rate": media.sampling_rate}}
        how = {"load_audio_from_video": True, "text_kwargs": settings, "return_tensors": "pt"}
        prompts.append(dict(processor(text=[text], **inputs, **images, **sound, **how)))
    return {**_together(prompts, processor.tokenizer.pad_token_id), "use_audio_in_video": torch.tensor(True)}


def _rate(seconds: float, patch: int) -> float:
    """Frames per second to give a processor, for frames ``seconds`` apart.

    The processor makes ``patch / rate`` seconds per grid step, which is exactly a whole number of
    ticks.
    """
    ticks = max(1, round(seconds * TICKS))
    while patch / (TICKS / ticks) != patch * ticks / TICKS:  # dividing twice may be off in the last bit
        ticks += 1
    return TICKS / ticks


def _together(prompts: Sequence[dict[str, torch.Tensor]], pad: int) -> dict[str, torch.Tensor]:
    """Combine single prompts into one batch.

    Tokens are padded on the left. Everything else is concatenated, and padded on the right where
    lengths differ.
    """
    found = {}
    for key in prompts[0]:
        rows, left = [p[key] for p in prompts], key in PER_TOKEN
        longest = max(r.shape[-1] for r in rows)
        if left or len({r.shape[1:] for r in rows}) > 1:
            fill = pad if key == "input_ids" else 0
            short = [longest - r.shape[-1] for r in rows]
            rows = [torch.nn.functional.pad(r, (n, 0) if left else (0, n), value=fill) for r, n in zip(rows, short, strict=True)]
        found[key] = torch.cat(rows)
    return found
