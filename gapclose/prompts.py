"""Prompts: chat messages and their media become what a model is given, padded on the left.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import soundfile
import torch

from gapclose.chat import REFUSALS, answer_tokens, chat_text, tokenizer_of, within_template
from gapclose.errors import Problems
from gapclose.families import ARGUMENTS, part_for, whole_frames
from gapclose.films import film_inputs, set_film_times
from gapclose.interleave import interleave_fault, interleaved_prompts, is_interleaved
from gapclose.items import Item, ItemSet, content_parts
from gapclose.media import Media


def media_signature(item: Item) -> tuple[str, ...]:
    """The kinds of media in prompt order, and whether film and sound are interleaved; only items that agree on it share a batch."""
    return tuple(kind for kind, _ in item.media) + (("interleaved",) if is_interleaved(item) else ())


def make_prompts(processor: Any, items: Sequence[Item], media: Media) -> dict[str, torch.Tensor]:
    """Processor output for a batch of items that carry the same kinds of media; ``input_ids`` is (B, T).

    Every row ends at its answer position: ``input_ids[:, -1]`` is the last prompt token.

    Raises:
        ValueError: when an item carries media that the model does not take, or a processor does not pad on the left.
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
    start = tokenizer.bos_token
    if processor is tokenizer or (start is not None and texts[0].startswith(start)):
        settings["add_special_tokens"] = False  # the template wrote them
    if processor is tokenizer:
        prompt = dict(tokenizer(texts, return_tensors="pt", **settings))
    elif is_interleaved(items[0]):
        prompt = interleaved_prompts(processor, items, texts, media, settings)
    else:
        films = [media.load(k, p) for i in items for k, p in i.media if k == "video"]
        inputs = _media_inputs(processor, items, media) | film_inputs(films, processor)
        prompt = dict(processor(text=texts, return_tensors="pt", text_kwargs=settings, **inputs))
        set_film_times(prompt, films, processor)
    return _on_the_left(processor, prompt)


def written_tokens(processor: Any, items: Sequence[Item]) -> list[list[int]] | None:
    """Token ids of prompts as the chat template writes them, before a processor makes of each medium as many tokens as it takes; None
    where the processor does all of it within its template."""
    if within_template(processor):
        return None
    texts = [chat_text(processor, item.messages) for item in items]
    return tokenizer_of(processor)(texts, add_special_tokens=False).input_ids


def _on_the_left(processor: Any, prompt: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if not bool(prompt["attention_mask"][:, -1].all()):
        raise ValueError(f"{type(processor).__name__} did not pad on the left; gapclose needs every prompt to end at its answer position")
    return prompt


def _with_sounds(item: Item, media: Media) -> list[dict[str, Any]]:
    """An item's messages with every sound as an encoded wav file, lossless, in place of its path."""

    def part(p: dict[str, Any]) -> dict[str, Any]:
        if p["type"] != "audio":
            return p
        file = io.BytesIO()
        soundfile.write(file, media.load("audio", p["path"]), media.sampling_rate, format="WAV", subtype="FLOAT")
        return {"type": "audio", "base64": base64.b64encode(file.getvalue()).decode()}

    lists = {id(m): [part(p) for p in m["content"]] for m in item.messages if not isinstance(m["content"], str)}
    return [{**m, "content": lists.get(id(m), m["content"])} for m in item.messages]


def _media_inputs(processor: Any, items: Sequence[Item], media: Media) -> dict[str, Any]:
    """The processor's arguments for images and sounds of a batch, decoded; empty where it carries none."""
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
    """What an item carries that the model does not take, with the remedy, or None."""
    for kind in sorted({kind for kind, _ in item.media}):
        if part_for(processor, kind) is None:
            taken = [k for k in ARGUMENTS if part_for(processor, k) is not None]
            return (
                f"it has {kind}, and {type(processor).__name__} takes "
                f"{'text and ' + ' and '.join(taken) if taken else 'text alone'}; remove it or choose a model that takes {kind}"
            )
    return interleave_fault(processor, item)


def check_kinds(items: ItemSet, processor: Any, problems: Problems) -> None:
    """Add to ``problems`` the media that the model does not take, and media and texts of which its chat template writes nothing: the model
    would answer without them, and nobody would notice. One line per form of messages, naming the first item; one per special token that
    stands in a text."""
    seen: set[tuple[Any, ...]] = set()
    marks: dict[str, list[str]] = {}
    special = () if within_template(processor) else _special(tokenizer_of(processor))
    for item in items:
        for mark in special:
            if any(mark in text for text in (*_texts(item), *(o.text for o in item.options))):
                marks.setdefault(mark, []).append(item.id)
        form = tuple((m["role"], isinstance(m["content"], str)) for m in item.messages)
        signature = media_signature(item)
        if (signature, form) in seen:
            continue
        seen.add((signature, form))
        fault = untaken(processor, item)
        if fault is None and not within_template(processor):
            fault = _unwritten(processor, item)
        if fault is not None:
            problems.add(f"item {item.id!r}: {fault}")
    for mark, having in marks.items():
        problems.add(
            f"item {having[0]!r}: its question or options hold {mark!r}, a special token of the model, which would not be read as text; "
            f"write it otherwise ({len(having)} items)"
        )


def _special(tokenizer: Any) -> set[str]:
    """The tokens that a tokenizer finds anywhere in a text and that mean something else than their letters."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return {t for t in (*tokenizer.all_special_tokens, *(t.content for t in added if t.special)) if t.strip()}


def _texts(item: Item) -> list[str]:
    contents = [m["content"] for m in item.messages]
    return [t for c in contents for t in ([c] if isinstance(c, str) else [p["text"] for p in c if p["type"] == "text"])]


def _unwritten(processor: Any, item: Item) -> str | None:
    """What of an item its chat template does not write, with the remedy, or None."""
    try:
        whole = chat_text(processor, item.messages)
        kinds = sorted({p["type"] for p in content_parts(item.messages)} - {"text"})
        silent = [k for k in kinds if chat_text(processor, _without(item.messages, k)) == whole]
    except REFUSALS as error:
        return f"the model's chat template cannot write its messages ({error}); change their roles or mend the checkpoint's chat_template.jinja"
    lost = [t for t in _texts(item) if t.strip() not in whole]
    if silent or lost:
        what = " and ".join([*silent, *(f"the text {t[:60]!r}" for t in lost)])
        return f"the model's chat template writes nothing for {what}, so it would answer without; mend the checkpoint's chat_template.jinja"
    if "'type': 'text'" in whole:
        return "the model's chat template writes lists of content parts as Python would; mend the checkpoint's chat_template.jinja"
    return None


def _without(messages: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The messages without their content parts of one kind."""
    lists = [m for m in messages if not isinstance(m["content"], str)]
    cut = {id(m): [part for part in m["content"] if part["type"] != kind] for m in lists}
    return [{**m, "content": cut.get(id(m), m["content"])} for m in messages]


def check_options(
    items: ItemSet,
    processor: Any,
    max_new_tokens: int,
    problems: Problems,
    *,
    key: str = "observe.max_new_tokens",
    prompt: str | None = None,
) -> None:
    """Add to ``problems`` every option without tokens or with more of them than are generated, and options whose tokens are, or begin,
    those of another option of the item.

    Args:
        key: the setting that ``max_new_tokens`` comes from. prompt: the one that the items are worded in, where it is not the run's own.
    """
    asked = f" in the prompt {prompt!r}" if prompt else ""
    seen: dict[tuple[str, ...], str] = {}
    for item in items:
        seen.setdefault(tuple(o.text for o in item.options), item.id)
    for texts, item_id in seen.items():
        tokens = [tuple(answer_tokens(processor, t)) for t in texts]
        for text, ids in zip(texts, tokens, strict=True):
            if not ids:
                problems.add(f"item {item_id!r}: option {text!r} has no tokens; use another text")
            if len(ids) > max_new_tokens:
                problems.add(
                    f"item {item_id!r}{asked}: option {text!r} has {len(ids)} tokens, but {key} is {max_new_tokens}, so it could "
                    f"never be generated whole; set that to {len(ids)} or more"
                )
        if len(set(tokens)) < len(tokens):
            problems.add(f"item {item_id!r}: two of the options {list(texts)} have the same tokens; change their texts")
            continue
        for short, a in zip(texts, tokens, strict=True):
            for long, b in zip(texts, tokens, strict=True):
                if a and a != b and b[: len(a)] == a:  # one without tokens has been told of
                    problems.add(
                        f"item {item_id!r}: option {short!r} is how option {long!r} begins, token by token, so it could never score lower; "
                        "change one of them"
                    )
