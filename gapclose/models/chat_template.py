"""The chat template's output for messages: the text of a prompt, and the tokens of an answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from gapclose.models.families import WITHIN_TEMPLATE

ASKED = [{"role": "user", "content": [{"type": "text", "text": "Which one is it?"}]}]
"""prompt that :func:`answer_tokens` appends answers to"""
REFUSALS = (ValueError, TypeError, TemplateError)
"""errors that a template raises for messages that it cannot write"""


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer of a processor, or the processor itself for text-only models."""
    return getattr(processor, "tokenizer", processor)


def within_template(processor: Any) -> bool:
    """Whether the processor writes prompts and takes media only in its ``apply_chat_template``."""
    return type(processor).__name__ in WITHIN_TEMPLATE


def chat_text(processor: Any, messages: Sequence[dict[str, Any]], answer: str | None = None) -> str:
    """Write messages with the model's chat template, up to where the answer begins.

    With ``answer``, the text ends with the answer's turn. Every processor gets content parts, since
    some templates write nothing for a string (SmolVLM's). A text-only model has a template for
    strings: content parts are joined by newlines. The template may belong to the tokenizer alone,
    as Phi-4-multimodal's does once its processor was saved.

    Raises:
        ValueError: when neither processor nor tokenizer has a template. Errors of the template
            (``REFUSALS``) are not caught.
    """
    turn = [] if answer is None else [{"role": "assistant", "content": answer}]
    form = _joined if processor is tokenizer_of(processor) else _parts
    given = [{**m, "content": form(m["content"])} for m in (*messages, *turn)]
    return _writer(processor).apply_chat_template(given, tokenize=False, add_generation_prompt=answer is None)


def _writer(processor: Any) -> Any:
    """The processor if it has the template, else the tokenizer."""
    tokenizer = tokenizer_of(processor)
    writer = processor if getattr(processor, "chat_template", None) else tokenizer
    if not getattr(writer, "chat_template", None):
        raise ValueError(
            f"{getattr(tokenizer, 'name_or_path', None) or 'this checkpoint'} has no chat template; put a chat_template.jinja into its "
            "directory, or take the instruction-tuned checkpoint"
        )
    return writer


def _joined(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content if part["type"] == "text")


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def added_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids that a tokenizer's post-processor puts before and behind every text.

    A token behind a prompt (usually an end token) would move the place where the answer begins.
    """
    whole, bare = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    starts = [n for n in range(len(whole) - len(bare) + 1) if whole[n : n + len(bare)] == bare]
    return (whole[: starts[0]], whole[starts[0] + len(bare) :]) if starts and bare else ([], [])


def left_out_of_prompts(processor: Any) -> str | None:
    """Message on tokens that :func:`gapclose.models.processing.make_prompts` leaves out, or None."""
    tokenizer = tokenizer_of(processor)
    behind = [] if within_template(processor) else added_around(tokenizer)[1]
    if not behind:
        return None
    names = " ".join(map(str, tokenizer.convert_ids_to_tokens(behind)))
    return (
        f"the tokenizer puts {names} behind every text, which would move the place where an answer begins; prompts are made without it. "
        "Whoever uses the model otherwise should take it out of tokenizer.json (post_processor)"
    )


def answer_tokens(processor: Any, text: str) -> list[int]:
    """Token ids of an answer behind a prompt, when the template writes the answer's turn.

    They include the white space that the template puts before it: SmolVLM's prompts end in
    ``Assistant:`` and its turns continue with a blank, so the model was trained on the token
    `` odd`` and not ``odd``. Other content that a template puts there (an empty train of thought)
    is left out. The tokens of the text alone are returned where the template cannot write an
    answer, or where the prompt's last token would change before it.
    """
    tokenizer = tokenizer_of(processor)

    def tokens(of: str) -> list[int]:
        return tokenizer(of, add_special_tokens=False).input_ids

    alone = tokens(text)
    if not alone or within_template(processor):
        return alone
    try:
        prompt, whole = chat_text(processor, ASKED), chat_text(processor, ASKED, text)
    except REFUSALS:
        return alone
    lead, found, _ = whole.removeprefix(prompt).partition(text)
    if not whole.startswith(prompt) or not found or lead.strip():
        lead = ""
    before, after = tokens(prompt), tokens(prompt + lead + text)
    return after[len(before) :] if after[: len(before)] == before else alone


def set_variables(processor: Any, variables: Mapping[str, Any]) -> None:
    """Set variables of the chat template, in place, at its head.

    All users of the processor, including an export, then write alike.

    Raises:
        ValueError: when there is no template, or a name occurs in none.
    """
    if not variables:
        return
    if within_template(processor):
        raise ValueError(f"model.template has {sorted(variables)}, and {type(processor).__name__} writes without a template; leave it out")
    writer = _writer(processor)
    several = writer.chat_template if isinstance(writer.chat_template, dict) else {"": writer.chat_template}
    unknown = [name for name in variables if not any(re.search(rf"\b{name}\b", t) for t in several.values())]
    if unknown:
        raise ValueError(f"model.template has {unknown}, which the model's chat template does not know; see its chat_template.jinja")
    head = "".join(f"{{%- set {name} = {value!r} +%}}" for name, value in variables.items())  # the plus keeps a line break that follows
    several = {name: head + template for name, template in several.items()}
    writer.chat_template = several if isinstance(writer.chat_template, dict) else several[""]
