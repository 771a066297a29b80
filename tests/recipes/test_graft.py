"""The graft: a tiny Qwen2 with random weights becomes an omni thinker with the same text-only logits, and media become words."""

from __future__ import annotations

from pathlib import Path

import graft
import pytest
import torch
from graft_model import assemble, towers
from transformers import AutoModelForCausalLM, AutoProcessor, Qwen2Config, Qwen2ForCausalLM

from gapclose.data.digits.questions import answer_words
from gapclose.models.config import ModelConfig
from gapclose.models.loading import load_model

TEMPLATE = (
    "<|im_start|>system\nBe brief.<|im_end|>\n{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


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
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([f"x {word}" for word in answer_words()] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|endoftext|>", eos_token="<|im_end|>", chat_template=TEMPLATE)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(directory)
    return directory


def small(table: towers.Table, most: int = 40) -> towers.Table:
    return {key: towers.NamedMedia(media=of.media[:most], names=of.names[:most]) for key, of in table.items()}


def test_a_graft_is_an_ordinary_checkpoint_with_the_same_text_logits(language_model, tmp_path):
    out, steps = tmp_path / "graft", {"vision": 2, "audio": 2}
    found = graft.graft(
        str(language_model),
        out,
        small(towers.digits_table()),
        steps=steps,
        copies=dict.fromkeys(steps, 0),
        seconds=1,
        dtype="float32",
        seed=0,
    )
    assert found["text"]["difference"] < 1e-5 < found["text"]["largest"]
    again = load_model(ModelConfig(path=str(out), dtype="float32"))
    language, tokenizer = assemble.load_language_model(str(language_model))
    worst, _ = assemble.text_difference(again.model, AutoProcessor.from_pretrained(out), language, tokenizer, ["Is it odd or even?"])
    assert worst < 1e-5
    before = AutoModelForCausalLM.from_pretrained(language_model).state_dict()
    for name, value in before.items():
        assert torch.equal(again.model.state_dict()[name.replace("model.", "model.language_model.", 1)], value), name


def test_towers_learn_the_words_of_what_they_are_shown_and_played(language_model):
    language, tokenizer = assemble.load_language_model(str(language_model))
    torch.manual_seed(0)
    processor = assemble.build_processor(tokenizer)
    thinker = assemble.assemble(language, assemble.thinker_config(language.config, tokenizer, width=32, depth=2))
    table = towers.digits_table()
    words = sorted({name for of in table.values() for name in of.names})
    for kind in ("vision", "audio"):
        pair = [n for n, name in enumerate(table[kind, "train"].names) if name in ("one", "six")][:40]
        given = towers.NamedMedia(media=[table[kind, "train"].media[n] for n in pair], names=[table[kind, "train"].names[n] for n in pair])
        trainer = towers.TowerTrainer(thinker, processor, kind, words, towers.word_tokens(tokenizer, words))
        before = trainer.accuracy(given)
        trainer.train(given, steps=60, batch_size=32, copies=0, rate=3e-3)
        assert trainer.accuracy(given) > max(before, 0.9), kind


def test_what_does_not_fit_is_refused(language_model, tiny_checkpoint, tmp_path):
    with pytest.raises(ValueError, match="architecture qwen2"):
        assemble.load_language_model(str(tiny_checkpoint))
    _, tokenizer = assemble.load_language_model(str(language_model))
    with pytest.raises(ValueError, match=r"'strawberry.*several tokens"):
        towers.word_tokens(tokenizer, ["one", "strawberry jam"])
    table = tmp_path / "table.csv"
    table.write_text("path,name,split\nno.png,one,train\nno.wav,two,test\n")
    with pytest.raises(ValueError, match=r"line 2: .*no\.png(.|\n)*line 3: split 'test'"):
        towers.read_table(table)


def test_a_table_of_ones_own_media(tmp_path):
    import soundfile

    from gapclose.data.digits.media_bank import RATE, scan_image, utterances, waveform

    rows = ["path,name,split"]
    for n, split in enumerate(("train", "held_out")):
        scan_image(n).save(tmp_path / f"{n}.png")
        soundfile.write(tmp_path / f"{n}.wav", waveform(utterances()[n]), RATE)
        rows += [f"{n}.png,zero,{split}", f"{n}.wav,one,{split}"]
    (tmp_path / "table.csv").write_text("\n".join(rows))
    table = towers.read_table(tmp_path / "table.csv")
    assert set(table) == {(kind, split) for kind in ("vision", "audio") for split in ("train", "held_out")}
    assert table["audio", "train"].names == ["one"] and len(table["audio", "train"].media[0]) == utterances()[0].samples
