"""The graft: a tiny Qwen2 with random weights becomes an omni thinker with the same text-only logits, and media become words."""

from __future__ import annotations

import json

import pytest
import torch
from graft_model import assemble, towers
from transformers import AutoModelForCausalLM, AutoProcessor

from gapclose.models.config import ModelConfig
from gapclose.models.loading import load_model


def test_a_graft_is_an_ordinary_checkpoint_with_the_same_text_logits(language_model, grafted):
    found = json.loads((grafted / "graft.json").read_text())
    assert found["text"]["difference"] < 1e-5 < found["text"]["largest"]
    assert set(found["perception"]) == {"vision", "audio"}
    again = load_model(ModelConfig(path=str(grafted), dtype="float32"))
    language, tokenizer = assemble.load_language_model(str(language_model))
    worst, _ = assemble.text_difference(again.model, AutoProcessor.from_pretrained(grafted), language, tokenizer, ["Is it odd or even?"])
    assert worst < 1e-5
    for name, value in AutoModelForCausalLM.from_pretrained(language_model).state_dict().items():
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
