"""The chat templates that transformers ships with its classes, and templates of the kinds that checkpoints bring, instead of one of our own.

What the model was taught as an answer is what the template writes in the assistant's turn; the tests take it from there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from tiny_families import ROWS, spread
from transformers.models.smolvlm import processing_smolvlm

from gapclose.core.errors import ErrorCollector
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item
from gapclose.data.media import MediaLoader
from gapclose.models.chat_template import answer_tokens, chat_text
from gapclose.models.config import ModelConfig
from gapclose.models.input_checks import check_kinds
from gapclose.models.loading import load_model
from gapclose.models.processing import make_prompts
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import forward_batches
from gapclose.observe.request import ObservationRequest

THINKING = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>user\n{{ m['content'] }}<|im_end|>\n{% else %}<|im_start|>assistant\n"
    "<think>\n\n</think>\n\n{{ m['content'] | trim }}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""as those of reasoning models are: a finished turn begins with an empty train of thought"""
STRICT = "{% for m in messages %}{% if m['role'] != 'user' %}{{ raise_exception('users only') }}{% endif %}{{ m['content'] }}{% endfor %}:"
"""one that refuses a turn of the assistant"""


@pytest.fixture
def smolvlm(monkeypatch) -> tuple[Any, Any]:
    """The real processor with the template of its class; the package that it wants is for films alone."""
    if processing_smolvlm.num2words is None:
        monkeypatch.setattr(processing_smolvlm, "num2words", str)
    processor, model = ROWS["SmolVLM"].build()
    processor.chat_template = processing_smolvlm.DEFAULT_CHAT_TEMPLATE
    return processor, model


@pytest.fixture
def qwen2_audio() -> Any:
    processor, _ = ROWS["Qwen2-Audio"].build()
    processor.chat_template = processor.default_chat_template
    return processor


def only(items: ItemSet, *kinds: str, system: str = "") -> ItemSet:
    """The first items with these kinds of media, each after a system message given as a string."""

    def cut(item: Item) -> Item:
        content = [p for p in item.messages[0]["content"] if p["type"] in ("text", *kinds)]
        start = [{"role": "system", "content": system}] if system else []
        return replace(item, messages=[*start, {"role": "user", "content": content}])

    return replace(items, items=tuple(cut(i) for i in items.items[:4]))


def faults(items: ItemSet, processor: Any) -> list[str]:
    problems = ErrorCollector("items")
    check_kinds(items, processor, problems)
    return problems.messages


def taught(processor: Any, messages: list[dict[str, Any]], answer: str) -> list[int]:
    """What follows the prompt's tokens in a whole conversation, up to the mark that ends the turn."""
    turn = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    whole = processor.apply_chat_template([*messages, turn], tokenize=False)
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    tokens, before = (processor.tokenizer(t, add_special_tokens=False).input_ids for t in (whole, prompt))
    assert tokens[: len(before)] == before
    rest = tokens[len(before) :]
    return rest[: next(n for n, t in enumerate(rest) if t in processor.tokenizer.all_special_ids)]


def test_smolvlm_answers_with_a_blank_before_the_word(smolvlm, digits):
    """Its prompts end in ``Assistant:``, and the turn goes on with a blank that belongs to the answer's first token."""
    processor, _ = smolvlm
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Odd or even?"}]}]
    for answer in ("odd", "unseen", "an odd number"):
        tokens = answer_tokens(processor, answer)
        assert tokens == taught(processor, messages, answer)
        assert tokens != processor.tokenizer(answer, add_special_tokens=False).input_ids
        assert processor.tokenizer.decode(tokens) == f" {answer}"


def test_what_is_said_as_a_string_reaches_smolvlm(smolvlm, digits):
    """Its template looks for parts; a system message given as a string would vanish."""
    processor, _ = smolvlm
    items = only(digits, "image", system="You look closely.")
    raw = processor.apply_chat_template(items.items[0].messages, tokenize=False)
    assert "You look closely." not in raw
    assert "System: You look closely.<end_of_utterance>" in chat_text(processor, items.items[0].messages)
    ids = make_prompts(processor, items.items[:1], MediaLoader(items.root, 16_000))["input_ids"][0]
    assert "You look closely." in processor.tokenizer.decode(ids)
    assert not faults(items, processor)


def test_scores_of_smolvlm_are_those_of_the_taught_tokens(smolvlm, digits, tmp_path):
    """Through load, prompt and observation, against one plain forward of the whole conversation."""
    processor, model = smolvlm
    torch.manual_seed(0)
    spread(model)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = load_model(ModelConfig(path=str(tmp_path), dtype="float32"))
    items = only(digits, "image")
    found = forward_batches(loaded, [list(items.items[:1])], loaded.media(items), ObserveConfig(share_prefix=False), ObservationRequest())
    item = items.items[0]
    inputs = loaded.prompts([item], loaded.media(items))
    tokens = taught(loaded.processor, item.messages, item.options[0].text)
    length = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([tokens])], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        logp = loaded.model(**inputs).logits[0, length - 1 :].log_softmax(-1)
    expected = sum(float(logp[n, token]) for n, token in enumerate(tokens))
    assert abs(float(found.scores[0, 0]) - expected) < 1e-4


def test_qwen2_audio_answers_with_the_word_itself(qwen2_audio, digits):
    """Its prompts end in a line break; its template adds a system message and numbers the sounds."""
    messages = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "Odd or even?"}]}]
    for answer in ("odd", "an odd number"):
        assert answer_tokens(qwen2_audio, answer) == taught(qwen2_audio, messages, answer)
        assert answer_tokens(qwen2_audio, answer) == qwen2_audio.tokenizer(answer, add_special_tokens=False).input_ids
    assert not faults(only(digits, "audio", system="You listen closely."), qwen2_audio)


def test_an_empty_train_of_thought_is_no_part_of_an_answer():
    """With thinking off the prompt ends behind it; with thinking on it is nothing that tells options apart."""
    tokenizer, _ = ROWS["Qwen"].build()
    plain = tokenizer("odd", add_special_tokens=False).input_ids
    tokenizer.chat_template = THINKING
    assert answer_tokens(tokenizer, "odd") == plain
    tokenizer.chat_template = "{% set enable_thinking = false %}" + THINKING
    assert chat_text(tokenizer, [{"role": "user", "content": "Odd?"}]).endswith("</think>\n\n")
    assert answer_tokens(tokenizer, "odd") == plain
    tokenizer.chat_template = STRICT
    assert answer_tokens(tokenizer, "odd") == plain


@pytest.mark.parametrize("name", ["Qwen2.5-Omni", "Gemma 4", "LLaVA-OneVision", "Llama", "Qwen"])
def test_where_a_turn_begins_with_the_answer_its_tokens_are_its_own(name):
    """As they were before the template was asked."""
    processor, _ = ROWS[name].build()
    tokenizer = getattr(processor, "tokenizer", processor)
    for answer in ("odd", "an odd number", "A", "unseen detail here"):
        assert answer_tokens(processor, answer) == tokenizer(answer, add_special_tokens=False).input_ids


@pytest.fixture(scope="module")
def phi4_with_adapters(tmp_path_factory):
    """A checkpoint with adapters beside its weights, as the real one has them, and the adapters' model."""
    directory = tmp_path_factory.mktemp("phi4")
    torch.manual_seed(0)
    processor, model = ROWS["Phi-4-multimodal"].build()
    spread(model)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    for name in ("vision-lora", "speech-lora"):
        lora = peft.LoraConfig(r=2, target_modules=r"model\.layers\.\d+\..*(qkv|o)_proj", init_lora_weights=False)
        base = hf.AutoModelForCausalLM.from_pretrained(directory)
        peft.get_peft_model(base, lora).save_pretrained(directory / name)
    return directory


def test_adapters_beside_the_weights_are_not_passed_over(phi4_with_adapters, tmp_path):
    """Refused before any weight is read, and the way out that docs/how-to/families.md shows gives the adapted model."""
    directory = phi4_with_adapters
    with pytest.raises(ValueError, match=r"keeps adapters beside its weights \(vision-lora for images, .*, speech-lora for sounds alone\)"):
        load_model(ModelConfig(path=str(directory), dtype="float32"))
    model = hf.AutoModelForCausalLM.from_pretrained(directory)
    adapted = peft.PeftModel.from_pretrained(model, str(directory), subfolder="vision-lora").merge_and_unload()
    adapted.save_pretrained(tmp_path)
    hf.AutoProcessor.from_pretrained(directory).save_pretrained(tmp_path)
    loaded = load_model(ModelConfig(path=str(tmp_path), dtype="float32"))
    plain = hf.AutoModelForCausalLM.from_pretrained(directory)
    name = "model.layers.1.self_attn.qkv_proj.weight"
    assert torch.equal(loaded.model.state_dict()[name], adapted.state_dict()[name])
    assert not torch.equal(loaded.model.state_dict()[name], plain.state_dict()[name])
