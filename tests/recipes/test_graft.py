"""The graft: a tiny Qwen2 with random weights becomes an omni thinker with the same text-only logits, and media become words."""

from __future__ import annotations

import json

import graft
import numpy as np
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
    language, tokenizer, _ = assemble.load_language_model(str(language_model))
    worst, _ = assemble.text_difference(again.model, AutoProcessor.from_pretrained(grafted), language, tokenizer, ["Is it odd or even?"])
    assert worst < 1e-5
    for name, value in AutoModelForCausalLM.from_pretrained(language_model).state_dict().items():
        assert torch.equal(again.model.state_dict()[name.replace("model.", "model.language_model.", 1)], value), name


def test_towers_learn_the_words_of_what_they_are_shown_and_played(language_model):
    language, tokenizer, _ = assemble.load_language_model(str(language_model))
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
    _, tokenizer, _ = assemble.load_language_model(str(language_model))
    with pytest.raises(ValueError, match=r"'strawberry.*several tokens"):
        towers.word_tokens(tokenizer, ["one", "strawberry jam"])
    table = tmp_path / "table.csv"
    table.write_text("path,name,split\nno.png,one,train\nno.wav,two,test\n")
    with pytest.raises(ValueError, match=r"line 2: .*no\.png(.|\n)*line 3: split 'test'"):
        towers.read_table(table, 1)


def test_a_table_of_ones_own_media(tmp_path):
    import soundfile

    from gapclose.data.digits.media_bank import RATE, scan_image, utterances, waveform

    rows = ["path,name,split"]
    for n, split in enumerate(("train", "held_out")):
        scan_image(n).save(tmp_path / f"{n}.png")
        soundfile.write(tmp_path / f"{n}.wav", waveform(utterances()[n]), RATE)
        rows += [f"{n}.png,zero,{split}", f"{n}.wav,one,{split}"]
    (tmp_path / "table.csv").write_text("\n".join(rows))
    table = towers.read_table(tmp_path / "table.csv", 1)
    assert set(table) == {(kind, split) for kind in ("vision", "audio") for split in ("train", "held_out")}
    assert table["audio", "train"].names == ["one"] and len(table["audio", "train"].media[0]) == utterances()[0].samples


def test_a_table_that_measures_nothing_is_refused(tmp_path):
    """A medium in both splits, a name that is never trained, and sounds without a token or beyond the longest."""
    import soundfile

    from gapclose.data.digits.media_bank import RATE, scan_image

    scan_image(0).save(tmp_path / "0.png")
    for name, samples in (("short", 1000), ("long", 2 * RATE), ("sound", RATE // 2)):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(samples, np.float32), RATE)
    rows = ["0.png,zero,train", "0.png,zero,held_out", "short.wav,one,train", "long.wav,one,train", "sound.wav,two,held_out"]
    (tmp_path / "table.csv").write_text("\n".join(["path,name,split", *rows]))
    with pytest.raises(ValueError) as caught:
        towers.read_table(tmp_path / "table.csv", 1)
    told = str(caught.value)
    assert "line 3: 0.png is in both splits" in told and "'two' is held out and never trained" in told
    assert "lasts 0.06 s" in told and "lasts 2.00 s; it must last 0.12 to 1 s" in told


def test_poor_perception_writes_nothing(language_model, tmp_path, capsys):
    quick = ["--vision-steps", "1", "--audio-steps", "1", "--copies", "0"]
    assert graft.main(["--model", str(language_model), "--out", str(tmp_path / "new"), *quick]) == 1
    assert "perception is below 0.95" in capsys.readouterr().err and not (tmp_path / "new").exists()
    assert graft.main(["--model", str(language_model), "--out", str(tmp_path), *quick]) == 1
    assert "exists; name another directory" in capsys.readouterr().err


def test_scaled_rotary_positions_are_refused(language_model, tmp_path):
    import shutil

    shutil.copytree(language_model, tmp_path / "yarn")
    path = tmp_path / "yarn" / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"] |= {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="rotary positions of type 'yarn'"):
        assemble.load_language_model(str(tmp_path / "yarn"))
