"""A tiny Qwen2 language model, and a tiny graft of it."""

from __future__ import annotations

from pathlib import Path

import graft
import pytest
import torch
from graft_model import assemble, towers
from transformers import Qwen2Config, Qwen2ForCausalLM

from gapclose.data.digits.questions import answer_words
from gapclose.data.generated import people, places
from gapclose.data.items import Item

TEMPLATE = (
    "<|im_start|>system\nBe brief.<|im_end|>\n{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def drawn(name: str) -> tuple[Item, ...]:
    return people.draw() if name == "people" else places.draw()[1]


@pytest.fixture(scope="session")
def language_model(tmp_path_factory) -> Path:
    """An ordinary directory of a Qwen2 language model with random weights and tied embeddings."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("qwen2")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *assemble.MEDIA_TOKENS.values()]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=1400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    words = {o.text for name in ("people", "places") for i in drawn(name) for o in i.options} | set(answer_words())
    bpe.train_from_iterator([text for word in sorted(words) for text in (word, f"x {word}")] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|endoftext|>", eos_token="<|im_end|>", chat_template=TEMPLATE)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def grafted(language_model, tmp_path_factory) -> Path:
    """The language model with towers that have hardly been trained."""
    out, steps = tmp_path_factory.mktemp("graft") / "model", {"vision": 2, "audio": 2}
    table = {key: towers.NamedMedia(media=of.media[:40], names=of.names[:40]) for key, of in towers.digits_table().items()}
    graft.graft(str(language_model), out, table, steps=steps, copies=dict.fromkeys(steps, 0), least=0.0)
    return out
