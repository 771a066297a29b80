"""Prompts: turn chat messages and their media into model inputs, padded on the left.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import soundfile
import torch

from gapclose.data.interleave import is_interleaved
from gapclose.data.items import Item
from gapclose.data.media import MediaLoader
from gapclose.models.chat_template import added_around, chat_text, tokenizer_of, within_template
from gapclose.models.families import ARGUMENTS, part_for, whole_frames
from gapclose.models.interleaved_inputs import interleave_fault, interleaved_prompts
from gapclose.models.video_inputs import set_video_times, video_inputs


def media_signature(item: Item) -> tuple[str, ...]:
    """The kinds of media in prompt order, and whether video and audio are interleaved.

    Only items with equal signatures share a batch.
    """
    return tuple(kind for kind, _ in item.media) + (("interleaved",) if is_interleaved(item) else ())


def make_prompts(processor: Any, items: Sequence[Item], media: MediaLoader) -> dict[str, torch.Tensor]:
    """Processor output for items with the same kinds of media; ``input_ids`` is (B, T).

    Every row ends at its answer position: ``input_ids[:, -1]`` is the last prompt token.

    Raises:
        ValueError: when an item has media that the model does not take, or a processor does not pad
            on the left or puts a token behind the text.
    """
    media.ahead(items)
    for item in items:
        if fault := untaken(processor, item):
            raise ValueError(f"item {item.id!r}: {fault}")
    if within_template(processor):
        return _on_the_left(processor, dict(processor.apply_chat_template([_with_sounds(item, media) for item in items])))
    texts = [chat_text(processor, item.messages) for item in items]
    tokenizer = tokenizer_of(processor)
    settings: dict[str, Any] = {"padding": True}
    start, written = tokenizer.bos_token, texts
    if processor is tokenizer or (start is not None and texts[0].startswith(start)):
        settings["add_special_tokens"] = False  # the template wrote them
    elif (added := added_around(tokenizer))[1]:
        settings["add_special_tokens"] = False
        texts = ["".join(tokenizer.convert_ids_to_tokens(added[0])) + text for text in texts]
    if processor is tokenizer:
        prompt = dict(tokenizer(texts, return_tensors="pt", **settings))
    elif is_interleaved(items[0]):
        prompt = interleaved_prompts(processor, items, texts, media, settings)
    else:
        films = [media.load(k, p) for i in items for k, p in i.media if k == "video"]
        inputs = _media_inputs(processor, items, media) | video_inputs(films, processor)
        prompt = dict(processor(text=texts, return_tensors="pt", text_kwargs=settings, **inputs))
        set_video_times(prompt, films, processor)
    return _ending_as_written(processor, items, written, _on_the_left(processor, prompt))


def _ending_as_written(
    processor: Any, items: Sequence[Item], texts: Sequence[str], prompt: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the prompt if each row ends with the last token of its text; the answer begins there.

    Raises:
        ValueError: when a token was put behind a text.
    """
    tokenizer = tokenizer_of(processor)
    wanted = [ids[-1] for ids in tokenizer(list(texts), add_special_tokens=False).input_ids]
    for item, last, end in zip(items, prompt["input_ids"][:, -1].tolist(), wanted, strict=True):
        if last != end:
            raise ValueError(
                f"item {item.id!r}: {type(processor).__name__} ends its prompt with {tokenizer.convert_ids_to_tokens(last)!r}, and the chat "
                f"template with {tokenizer.convert_ids_to_tokens(end)!r}, behind which the answer begins; fix the checkpoint's processor or "
                "tokenizer.json (post_processor)"
            )
    return prompt


def written_tokens(processor: Any, items: Sequence[Item]) -> list[list[int]] | None:
    """Token ids of prompts as the chat template writes them, with one token per medium.

    A processor later expands each medium to all its tokens. None where the processor does
    everything within its template.
    """
    if within_template(processor):
        return None
    texts = [chat_text(processor, item.messages) for item in items]
    return tokenizer_of(processor)(texts, add_special_tokens=False).input_ids


def _on_the_left(processor: Any, prompt: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if not bool(prompt["attention_mask"][:, -1].all()):
        raise ValueError(f"{type(processor).__name__} did not pad on the left; gapclose needs every prompt to end at its answer position")
    return prompt


def _with_sounds(item: Item, media: MediaLoader) -> list[dict[str, Any]]:
    """An item's messages with every audio path replaced by an encoded wav file, lossless."""

    def part(p: dict[str, Any]) -> dict[str, Any]:
        if p["type"] != "audio":
            return p
        file = io.BytesIO()
        soundfile.write(file, media.load("audio", p["path"]), media.sampling_rate, format="WAV", subtype="FLOAT")
        return {"type": "audio", "base64": base64.b64encode(file.getvalue()).decode()}

    lists = {id(m): [part(p) for p in m["content"]] for m in item.messages if not isinstance(m["content"], str)}
    return [{**m, "content": lists.get(id(m), m["content"])} for m in item.messages]


def _media_inputs(processor: Any, items: Sequence[Item], media: MediaLoader) -> dict[str, Any]:
    """The processor's arguments for decoded images and audio of a batch; empty without media."""
    inputs: dict[str, Any] = {}
    images = [[media.load(k, p) for k, p in i.media if k == "image"] for i in items]
    if any(images):
        inputs[ARGUMENTS["image"]] = images
    extractor = part_for(processor, "audio")
    sounds = [whole_frames(extractor, media.load(k, p)) for i in items for k, p in i.media if k == "audio"]
    if sounds:
        inputs[ARGUMENTS["audio"]] = sounds
        inputs["audio_kwargs"] = {"sampling_rate": media.sampling_rate}
    return inputs


def untaken(processor: Any, item: Item) -> str | None:
    """Return which media of an item the model does not take, with the remedy, or None."""
    for kind in sorted({kind for kind, _ in item.media}):
        if part_for(processor, kind) is None:
            taken = [k for k in ARGUMENTS if part_for(processor, k) is not None]
            return (
                f"it has {kind}, and {type(processor).__name__} takes "
                f"{'text and ' + ' and '.join(taken) if taken else 'text alone'}; remove it or choose a model that takes {kind}"
            )
    return interleave_fault(processor, item)


def all_texts(item: Item) -> list[str]:
    contents = [m["content"] for m in item.messages]
    return [t for c in contents for t in ([c] if isinstance(c, str) else [p["text"] for p in c if p["type"] == "text"])]
