"""Checks of items against a model's processor: kinds of media, audio lengths, tokens of options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gapclose.core.errors import ErrorCollector
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, content_parts
from gapclose.data.media import MediaLoader, report_faults, survey
from gapclose.models.chat_template import REFUSALS, answer_tokens, chat_text, tokenizer_of, within_template
from gapclose.models.families import longest_sound, part_for
from gapclose.models.processing import all_texts, media_signature, untaken


def too_long(
    items: ItemSet, processor: Any, sizes: Mapping[tuple[str, str], tuple[float, ...]] | None = None
) -> dict[tuple[str, str], str]:
    """Every audio file that is longer than the model's feature extractor takes, with the remedy.

    The rest of it would be dropped silently.

    Args:
        sizes: :attr:`Survey.sizes`, if known.
    """
    samples, rate = longest_sound(processor), getattr(part_for(processor, "audio"), "sampling_rate", None)
    if not samples or not rate:
        return {}
    most, found = samples / rate, {}
    for entry, (seconds, *_) in (survey(items).sizes if sizes is None else sizes).items():
        if entry[0] == "audio" and seconds > 1.001 * most:  # resampling rounds
            found[entry] = f"the audio lasts {seconds:.1f} s, and this model hears the first {most:.1f} s only; cut it"
    return found


def refuse_unreadable(items: ItemSet, processor: Any, media: MediaLoader) -> None:
    """Apply :func:`check_kinds` and :func:`too_long` to conversations that belong to no run.

    Args:
        media: loader of their media; it decodes the audio if the model's extractor has a limit.

    Raises:
        ValueError: naming every fault.
    """
    problems = ErrorCollector(f"the {items.name}")
    check_kinds(items, processor, problems)
    problems.raise_if_any()  # a kind that the model does not take is not decoded
    if longest_sound(processor):
        media.ahead(items)
        sounds = {entry for item in items for entry in item.media if entry[0] == "audio"}
        lengths = {entry: (len(media.load(*entry)) / media.sampling_rate,) for entry in sorted(sounds)}
        report_faults(items, too_long(items, processor, lengths), problems)
    problems.raise_if_any()


def refuse_long_prompts(items: Sequence[Item], mask: torch.Tensor, most: int | None) -> None:
    """Refuse prompts with more tokens than the model has positions, before their forward.

    Args:
        mask: (B, T), the attention mask of the items' prompts.
        most: number of positions; None: there is no limit.

    Raises:
        ValueError: naming the longest prompt.
    """
    length, longest = max(zip(mask.sum(1).tolist(), range(len(items)), strict=True))
    if most is not None and length > most:
        raise ValueError(
            f"item {items[longest].id!r}: its prompt has {length:,} tokens, and the model has {most:,} positions; shorten the texts, or show less media"
        )


def check_kinds(items: ItemSet, processor: Any, problems: ErrorCollector) -> None:
    """Add media that the model does not take, and content that its template does not write.

    The faults go to ``problems``: the model would silently answer without such media or texts.
    There is one line per form of messages, naming the first item, and one per special token in a
    text.
    """
    seen: set[tuple[Any, ...]] = set()
    marks: dict[str, list[str]] = {}
    special = () if within_template(processor) else _special(tokenizer_of(processor))
    for item in items:
        for mark in special:
            if any(mark in text for text in (*all_texts(item), *(o.text for o in item.options))):
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
    """The tokens that a tokenizer finds anywhere in a text with another meaning than their letters."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return {t for t in (*tokenizer.all_special_tokens, *(t.content for t in added if t.special)) if t.strip()}


def _unwritten(processor: Any, item: Item) -> str | None:
    """Return which content of an item its chat template does not write, with the remedy, or None."""
    try:
        whole = chat_text(processor, item.messages)
        kinds = sorted({p["type"] for p in content_parts(item.messages)} - {"text"})
        silent = [k for k in kinds if chat_text(processor, _without(item.messages, k)) == whole]
    except REFUSALS as error:
        return (
            f"the model's chat template cannot write its messages ({error}); change their roles or fix the checkpoint's chat_template.jinja"
        )
    lost = [t for t in all_texts(item) if t.strip() not in whole]
    if silent or lost:
        what = " and ".join([*silent, *(f"the text {t[:60]!r}" for t in lost)])
        return f"the model's chat template writes nothing for {what}, so it would answer without; fix the checkpoint's chat_template.jinja"
    if "'type': 'text'" in whole:
        return "the model's chat template writes lists of content parts as Python would; fix the checkpoint's chat_template.jinja"
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
    problems: ErrorCollector,
    *,
    key: str = "observe.max_new_tokens",
    prompt: str | None = None,
) -> None:
    """Add options to ``problems`` that cannot be generated or distinguished by their tokens.

    These are options without tokens, with more tokens than are generated, and with the tokens, or
    the first tokens, of another option of the item.

    Args:
        key: the setting that ``max_new_tokens`` comes from.
        prompt: the prompt variant of the items, where it is not the run's own.
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
                if a and a != b and b[: len(a)] == a:  # one without tokens is reported above
                    problems.add(
                        f"item {item_id!r}: option {short!r} is how option {long!r} begins, token by token, so it could never score lower; "
                        "change one of them"
                    )
