"""Prompts: what a model is given for an item, and what is refused because it would not be given."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers
from digits_model import tiny_model
from tokenizers.processors import TemplateProcessing

from gapclose.core.errors import ErrorCollector
from gapclose.data.media import MediaLoader
from gapclose.models.chat_template import added_around, chat_text, left_out_of_prompts
from gapclose.models.families import longest_sound, part_for
from gapclose.models.input_checks import check_kinds
from gapclose.models.processing import make_prompts

PLAIN = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def tokenizer():
    """Of a model that only reads text: its template takes strings."""
    made = tiny_model.build_tokenizer()
    made.chat_template = PLAIN
    return made


@pytest.fixture
def text_items(digits):
    """The first items without their media."""
    stripped = []
    for item in digits.items[:4]:
        content = [p for p in item.messages[0]["content"] if p["type"] == "text"]
        stripped.append(replace(item, messages=[{"role": "user", "content": content}]))
    return replace(digits, items=tuple(stripped))


def faults(items, processor) -> list[str]:
    problems = ErrorCollector("items")
    check_kinds(items, processor, problems)
    return problems.messages


def test_a_text_model_is_given_strings(tokenizer, text_items):
    """Text parts are joined by newlines, a string stays as it is; rows end at their answer position."""
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert chat_text(tokenizer, [{"role": "user", "content": parts}]) == "user: one\ntwo\nassistant: "
    assert chat_text(tokenizer, [{"role": "user", "content": "one"}]) == "user: one\nassistant: "
    prompt = make_prompts(tokenizer, text_items.items, MediaLoader(text_items.root, 16_000))
    for row, item in zip(prompt["input_ids"], text_items, strict=True):
        assert tokenizer.decode(row, skip_special_tokens=True) == f"user: {item.text}\nassistant: "
    assert not faults(text_items, tokenizer)


def test_media_that_a_model_does_not_take_are_refused_with_item_and_remedy(tokenizer, digits, loaded):
    """By the check of the set, one line for all alike, and by the prompt itself."""
    (message,) = faults(digits, tokenizer)
    expected = f"item {digits.items[0].id!r}: it has audio, and {type(tokenizer).__name__} takes text alone; remove it or choose a model"
    assert message.startswith(expected)
    with pytest.raises(ValueError, match="it has audio, and .* takes text alone"):
        make_prompts(tokenizer, digits.items[:1], MediaLoader(digits.root, 16_000))
    seeing = SimpleNamespace(image_processor=loaded.processor.image_processor, tokenizer=tokenizer)
    (message,) = faults(digits, seeing)
    assert "it has audio, and SimpleNamespace takes text and image; remove it or choose a model that takes audio" in message
    assert not faults(digits, loaded.processor)


def test_a_template_that_leaves_media_out_is_found(digits, loaded):
    """The model would answer without them."""
    loaded.processor.chat_template = loaded.processor.chat_template.replace("<|audio_bos|><|AUDIO|><|audio_eos|>", "")
    (message,) = faults(digits, loaded.processor)
    assert message.startswith(f"item {digits.items[0].id!r}: the model's chat template writes nothing for audio")
    assert "chat_template.jinja" in message


def test_a_template_that_leaves_a_text_out_is_found(digits, loaded):
    """As one for plain users' turns does with a system message."""
    system = {"role": "system", "content": "Look closely."}
    items = replace(digits, items=(*digits.items[:3], replace(digits.items[3], messages=[system, *digits.items[3].messages])))
    assert not faults(items, loaded.processor)
    loaded.processor.chat_template = loaded.processor.chat_template.replace(
        "in messages %}", "in messages if message['role'] != 'system' %}"
    )
    (message,) = faults(items, loaded.processor)
    assert message.startswith(f"item {digits.items[3].id!r}: the model's chat template writes nothing for the text 'Look closely.'")


def test_parts_that_a_template_writes_as_a_list_are_found(digits, loaded):
    """One that adds contents up as if they were strings, which Python does for the first of them."""
    loaded.processor.chat_template = "{% for m in messages %}{{ m['content'] }}<|AUDIO|>{% endfor %}"
    (message,) = faults(replace(digits, items=digits.items[:1]), loaded.processor)
    assert "writes lists of content parts as Python would" in message


@pytest.mark.parametrize("template", ["{{ raise_exception('roles must alternate') }}", "{{ 'a' + messages[0]['content'] }}"])
def test_what_a_template_refuses_is_told_of(digits, loaded, template):
    """With its own words."""
    loaded.processor.chat_template = template
    (message,) = faults(replace(digits, items=digits.items[:2]), loaded.processor)
    assert message.startswith(f"item {digits.items[0].id!r}: the model's chat template cannot write its messages (")
    assert "roles must alternate" in message or "concatenate" in message


def test_special_tokens_in_a_question_are_refused(digits, loaded):
    """They would be taken for media or for the end of a turn; once a token, with the number of items."""
    asked = [{"role": "user", "content": "What is <|IMAGE|>?"}]
    ended = [{"role": "user", "content": [{"type": "text", "text": "Odd?<|im_end|>"}]}]
    items = [replace(digits.items[0], messages=asked), replace(digits.items[1], messages=ended), replace(digits.items[2], messages=ended)]
    found = faults(replace(digits, items=tuple(items)), loaded.processor)
    assert len(found) == 2
    assert (
        found[0].startswith(f"item {items[0].id!r}: its question or options hold '<|IMAGE|>', a special token") and "(1 items)" in found[0]
    )
    assert found[1].startswith(f"item {items[1].id!r}: its question or options hold '<|im_end|>'") and "(2 items)" in found[1]


def test_a_checkpoint_without_a_template_is_told_of(tokenizer):
    """With what to do about it."""
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"has no chat template; put a chat_template\.jinja into its directory"):
        chat_text(tokenizer, [{"role": "user", "content": "one"}])


def test_padding_on_the_right_is_refused(tokenizer, text_items):
    """Its answer positions would be padding."""
    tokenizer.padding_side = "right"
    with pytest.raises(ValueError, match="did not pad on the left"):
        make_prompts(tokenizer, text_items.items, MediaLoader(text_items.root, 16_000))


def test_how_much_of_a_sound_is_taken():
    """Whisper's extractor says it, Gemma's cuts by a default, Qwen3-Omni's processor cuts nothing."""
    whisper = transformers.WhisperFeatureExtractor(feature_size=128, chunk_length=2)
    assert longest_sound(SimpleNamespace(feature_extractor=whisper)) == 32_000
    assert longest_sound(SimpleNamespace(feature_extractor=transformers.Gemma3nAudioFeatureExtractor())) == 480_000
    assert longest_sound(SimpleNamespace(feature_extractor=whisper, audio_kwargs={"truncation": False})) is None
    assert longest_sound(SimpleNamespace(tokenizer=None)) is None
    assert part_for(SimpleNamespace(audio_processor=whisper), "audio") is whisper and part_for(SimpleNamespace(), "video") is None


def test_a_sound_is_padded_the_same_in_any_batch(digits, loaded):
    """What the model is given for an item does not hang on its neighbours."""
    few = digits.items[:6]
    media = loaded.media(digits)
    together = loaded.prompts(few, media)
    for n, item in enumerate(few):
        alone = loaded.prompts([item], media)
        assert torch.equal(alone["input_features"][0], together["input_features"][n])


# -- tokens behind the prompt -----------------------------------------------------------------------------------------------------------


def put_around(tokenizer, *, before: str | None = None, behind: str | None = None) -> None:
    """Let a tokenizer's post-processor put special tokens around every text."""
    names = [name for name in (before, behind) if name]
    template = f"{f'{before} ' if before else ''}$A{f' {behind}' if behind else ''}"
    tokens = [(name, tokenizer.convert_tokens_to_ids(name)) for name in names]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=tokens)


@pytest.mark.parametrize(
    ("before", "behind"), [(None, "<|im_end|>"), ("<|endoftext|>", "<|im_end|>"), (None, "<|IMAGE|>"), ("<|endoftext|>", None)]
)
def test_what_a_tokenizer_puts_behind_a_text_is_left_out_of_prompts(digits, loaded, before, behind):
    """Any token there would move the answer position; what it puts before the text stays. It is told."""
    media, few = loaded.media(digits), digits.items[:4]
    plain = loaded.prompts(few, media)["input_ids"]
    put_around(loaded.tokenizer, before=before, behind=behind)
    added, behind_ids = added_around(loaded.tokenizer)
    assert [len(added), len(behind_ids)] == [int(before is not None), int(behind is not None)]
    pad = loaded.tokenizer.pad_token_id
    for row, other in zip(loaded.prompts(few, media)["input_ids"].tolist(), plain.tolist(), strict=True):
        own = [t for t in other if t != pad]
        assert row[len(row) - len(own) - len(added) :] == added + own
    told = left_out_of_prompts(loaded.processor)
    assert (told is None) == (behind is None) and (behind is None or behind in told)


def test_a_processor_that_puts_a_token_behind_the_text_itself_is_refused(digits, loaded, monkeypatch):
    """With the item, what stands there, and what should."""
    write = type(loaded.processor).__call__

    def call(self, text, **kwargs):
        return write(self, text=[f"{t}<|im_end|>" for t in text], **kwargs)

    monkeypatch.setattr(type(loaded.processor), "__call__", call)
    with pytest.raises(
        ValueError, match=rf"item '{digits.items[0].id}': .* ends its prompt with '<\|im_end\|>', and the chat template with"
    ):
        loaded.prompts(digits.items[:1], loaded.media(digits))
