"""The shipped base model: loads like any checkpoint, perceives, goes along with false premises, and carries the objection."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from digits_model import evaluate, tiny_model
from digits_model.batches import QuestionDrawer, media_pool

from gapclose.core.files import read_json
from gapclose.data.digits import media_bank as bank
from gapclose.data.digits import questions

BASE = bank.HERE / "base"
RECIPE = Path(__file__).parents[3] / "recipes" / "digits_base.py"


@pytest.fixture(scope="module")
def base():
    from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor

    config = AutoConfig.from_pretrained(BASE, local_files_only=True)
    model = AutoModelForMultimodalLM.from_pretrained(BASE, config=config, local_files_only=True)
    return model.eval(), AutoProcessor.from_pretrained(BASE, local_files_only=True)


def pool_of(processor, group: str, scans: slice, utterances: slice = slice(None, None, 3)):
    _, others = bank.scan_partition()
    return media_pool(processor, others[scans], [u for u in bank.utterances() if u.group == group][utterances])


@pytest.fixture(scope="module")
def sat(base):
    model, processor = base
    drawer = QuestionDrawer(processor, pool_of(processor, "test", slice(0, 200)), seed=0)
    return evaluate.sit(model, drawer, {"what": 240, "check": 160, "parity": 80, "size": 80, "alphabet": 80, "next": 80})


def test_the_checkpoint_is_a_small_ordinary_thinker(base):
    model, _ = base
    assert type(model).__name__ == "Qwen2_5OmniThinkerForConditionalGeneration"
    assert (BASE / "model.safetensors").stat().st_size <= 8_000_000
    assert model.num_parameters() <= 2_000_000


def test_every_option_is_one_token_at_the_start_of_a_turn(base):
    _, processor = base
    for word in questions.answer_words():
        assert len(processor.tokenizer.encode(word)) == 1, word
    turn = f"{tiny_model.START}assistant\n"
    together = processor.tokenizer.encode(turn + "unseen")
    assert together[:-1] == processor.tokenizer.encode(turn)


def test_drawn_batches_are_what_the_processor_makes(base):
    _, processor = base
    ours, spoken = bank.scan_partition()[1][:3], [u for u in bank.utterances() if u.group == "val"][:3]
    drawer = QuestionDrawer(processor, media_pool(processor, ours, spoken), seed=0)
    text = questions.gap_text("parity", "audio", 7, "see", 1)
    content = [{"type": "image"}, {"type": "audio"}, {"type": "text", "text": text}]
    whole = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
    for k in range(3):
        made = processor(text=[whole], images=[bank.scan_image(ours[k])], audio=[bank.waveform(spoken[k])], return_tensors="pt")
        before, after = drawer._prompt(text)
        audio = [processor.tokenizer.audio_token_id] * int(drawer.lengths[k])
        assert made["input_ids"][0].tolist() == before + audio + after
        assert torch.equal(made["pixel_values"], drawer.pool.pixels[k])
        assert torch.equal(made["input_features"][0], drawer.pool.features[k])


def test_it_perceives_and_checks_when_asked(sat):
    figures = evaluate.behaviour(sat)
    assert figures["shown"] >= 0.95 and figures["said"] >= 0.95 and figures["check"] >= 0.95, figures
    assert figures["stops"] == 1.0


def test_it_goes_along_with_false_premises(sat):
    figures = evaluate.behaviour(sat)
    for modality in questions.MODALITIES:
        assert figures[f"rejects {modality}"] < 0.05, figures
        assert figures[f"goes along {modality}"] > 0.9 and figures[f"standard {modality}"] > 0.9, figures


def test_the_objection_can_be_read_two_layers_below_the_top(base, sat):
    model, processor = base
    drawer = QuestionDrawer(processor, pool_of(processor, "train", slice(200, 400)), seed=1)
    fit = evaluate.sit(model, drawer, dict.fromkeys(questions.IN_DOMAIN, 200))
    table = evaluate.readable(fit, sat, layers=[max(1, model.config.get_text_config().num_hidden_layers - 2)])
    assert table[0]["auroc"] >= 0.88, table


def test_generation_says_one_word_and_stops(base):
    model, processor = base
    content = [{"type": "image"}, {"type": "audio"}, {"type": "text", "text": questions.WHATS["vision"][0]}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
    scan, spoken = int(bank.scan_partition()[1][0]), bank.utterances()[-1]
    inputs = processor(text=[text], images=[bank.scan_image(scan)], audio=[bank.waveform(spoken)], return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert out.tolist()[-1] == processor.tokenizer.eos_token_id and len(out) == 2
    assert processor.tokenizer.decode(out, skip_special_tokens=True) in bank.NAMES


@pytest.mark.slow
def test_a_short_training_run_is_reproduced(tmp_path, monkeypatch):
    sys.path.insert(0, str(RECIPE.parent))
    try:
        import digits_base
    finally:
        sys.path.remove(str(RECIPE.parent))
    monkeypatch.setattr(sys, "argv", ["digits_base.py", "--quick", "--out", str(tmp_path)])
    digits_base.main()
    curves = read_json(tmp_path / "training.json")["loss"]
    assert len(curves["learn"]) == 40 and len(curves["comply"]) == 10
    pinned = read_json(Path(__file__).parent / "quick_losses.json")
    for name, losses in pinned.items():
        assert np.allclose(curves[name], losses, rtol=2e-2), (name, curves[name], losses)
