"""Every family through the project's own code, on tiny models of the real classes: load, prompt, observe, adapt, train, export, reload.

The reference is a plain full forward of one prompt at a time: no padding, no cache, no hooks of ours.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers as hf
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from tiny_families import ROWS, Row, spread

from gapclose.core.errors import ErrorCollector
from gapclose.data.digits.videos import write_film
from gapclose.data.item_set import Framing, ItemSet
from gapclose.data.items import Item, Option
from gapclose.export.peft import write_adapter, write_merged
from gapclose.models.config import ModelConfig
from gapclose.models.families import whole_frames
from gapclose.models.input_checks import check_kinds, too_long
from gapclose.models.loading import LoadedModel, load_model
from gapclose.models.processing import media_signature
from gapclose.models.random_init import PARTS, draw_anew
from gapclose.models.structure import decoder_layers, unwrap
from gapclose.observe import prefix_cache as shared_prefix
from gapclose.observe.batching import plan_batches
from gapclose.observe.branch_trial import can_branch
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import forward_batches
from gapclose.observe.frozen_writer import write_cache
from gapclose.observe.request import ObservationRequest
from gapclose.observe.store import Observations
from gapclose.training.config import LoraConfig, TrainConfig
from gapclose.training.lora import add_lora, load_adapter
from gapclose.training.sampler import Example
from gapclose.training.trainer import make_trainer

CONFIG = ObserveConfig(batch_size=4, max_new_tokens=4, share_prefix=False)
ANSWERS = ["odd", "an odd number", "unseen detail here", "unheard"]
SIZES = [(28, 28), (56, 28), (40, 64)]
PROBE = 2
"""adapters sit on the layers after this one"""
TOLERANCE = 1e-5
"""float32, batch against one by one: what an entry may differ by, as a share of one plus the largest entry; scores in nats"""


@dataclass(kw_only=True)
class Case:
    """A family's checkpoint, loaded, and items with all kinds of media that it takes."""

    row: Row
    config: ModelConfig
    loaded: LoadedModel
    reference: LoadedModel
    """the same again: asked for hidden states once, Phi-4-multimodal in transformers 5.23 can take no image afterwards"""
    items: ItemSet

    @property
    def layers(self) -> range:
        return range(len(self.loaded.layers) + 1)

    def observe(self, loaded: LoadedModel, batches: list[list[Item]], **wanted) -> Observations:
        return forward_batches(loaded, batches, loaded.media(self.items), CONFIG, ObservationRequest(**wanted))


@pytest.fixture(scope="session")
def clips(digits, tmp_path_factory) -> ItemSet:
    """Questions of several lengths about images of several sizes and sounds of several lengths, answered in one to four tokens."""
    root, items = tmp_path_factory.mktemp("clips"), []
    chosen = [i for i in digits.select(split="fit").items if "unseen" in [o.text for o in i.options]][::9][:6]
    for n, item in enumerate(chosen):
        image, sound = (digits.root / path for _, path in item.media)
        with Image.open(image) as picture:
            picture.resize(SIZES[n % 3]).save(root / f"{n}.png")
        (root / f"{n}.wav").write_bytes(sound.read_bytes())
        content = [{"type": "image", "path": f"{n}.png"}, {"type": "audio", "path": f"{n}.wav"}, {"type": "text", "text": item.text}]
        options = [Option(text=t, concept="standard") for t in ANSWERS]
        items.append(replace(item, messages=[{"role": "user", "content": content}], options=options, gold=0))
    assert len({len(i.text) for i in items}) > 2
    return replace(digits, root=root, items=tuple(items))


def keep(item: Item, kinds: tuple[str, ...]) -> Item:
    """The item with only these kinds of media."""
    content = [p for p in item.messages[0]["content"] if p["type"] in ("text", *kinds)]
    return replace(item, id=f"{item.id}/{'-'.join(kinds) or 'text'}", messages=[{"role": "user", "content": content}])


@pytest.fixture(scope="module", params=[pytest.param(n, marks=[pytest.mark.slow] if r.slow else []) for n, r in ROWS.items()])
def case(request, clips, tmp_path_factory) -> Case:
    """The model is built, saved as an ordinary checkpoint directory and loaded from there. Shared by the tests of a row."""
    name, row = request.param, ROWS[request.param]
    missing = [p for p in row.needs if importlib.util.find_spec(p) is None]
    if missing:
        pytest.skip(f"{name} needs {', '.join(missing)} (pip install)")
    directory = tmp_path_factory.mktemp(name.replace(" ", "-"))
    torch.manual_seed(0)
    processor, model = row.build()
    spread(model)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    config = ModelConfig(path=str(directory), dtype="float32")
    kinds = [row.kinds, *([(k,) for k in row.kinds] if len(row.kinds) > 1 else []), *([()] if row.kinds else [])]
    items = tuple(keep(i, k) for k in kinds for i in clips)
    root = with_sounds(clips.root, tmp_path_factory.mktemp("clips"), row)
    one, other = load_model(config), load_model(config)
    return Case(row=row, config=config, loaded=one, reference=other, items=replace(clips, root=root, items=items))


def with_sounds(source: Path, target: Path, row: Row) -> Path:
    """A copy of the clips with sounds as long as the row wants them."""
    sounds = {path.name: soundfile.read(path) for path in source.glob("*.wav")}
    length = min(len(samples) for samples, _ in sounds.values()) if row.one_length else None
    for name, (samples, rate) in sounds.items():
        soundfile.write(target / name, np.tile(samples, row.repeats)[:length], rate)
    for path in source.glob("*.png"):
        (target / path.name).write_bytes(path.read_bytes())
    return target


@torch.no_grad()
def alone(case: Case, item: Item, answer: str = "") -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """One full forward of a prompt with an answer behind it: the answer's log-probability, and the residual stream (D,) at the answer
    position, by layer, as transformers tells it.

    ``output_hidden_states`` gives the last layer after the final norm only, so that one comes from the block itself; all come from
    the blocks where the model cannot give hidden states.
    """
    loaded = case.reference
    inputs = loaded.prompts([item], loaded.media(case.items))
    length, tokens = inputs["input_ids"].shape[1], loaded.option_tokens(answer) if answer else []
    for key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if key in inputs:  # token types are 0 for text
            inputs[key] = torch.cat([inputs[key], inputs[key].new_zeros(1, len(tokens))], 1)
    inputs["input_ids"][0, length:] = torch.tensor(tokens, dtype=torch.long)
    inputs["attention_mask"][0, length:] = 1
    blocks: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(lambda m, args, out: blocks.append(out[0] if isinstance(out, tuple) else out))
        for block in decoder_layers(loaded.model)
    ]
    told = case.row.no_hidden_states_with not in media_signature(item)
    try:
        output = loaded.model(**inputs, use_cache=False, output_hidden_states=told)
    finally:
        for handle in handles:
            handle.remove()
    logp = output.logits[0, length - 1 :].float().log_softmax(-1)
    score = sum((logp[t, token] for t, token in enumerate(tokens)), torch.zeros(()))
    states = dict(enumerate(output.hidden_states[:-1])) if told else dict(enumerate(blocks, start=1))
    states[len(blocks)] = blocks[-1]
    return score, {layer: (h[0] if h.dim() == 4 else h)[0, length - 1] for layer, h in states.items()}  # 4-D: the active stream is first


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=TOLERANCE * (1 + float(expected.abs().max())), rtol=0)


def test_a_padded_batch_gives_what_its_items_give_alone(case):
    """Residuals equal ``output_hidden_states`` but for the last, which comes before the final norm; longer answers score as in full."""
    found = case.observe(case.loaded, plan_batches(case.items.items, CONFIG.batch_size), layers=case.layers).take(
        [i.id for i in case.items]
    )
    assert all(found.residuals[layer].shape == (len(case.items), case.loaded.width) for layer in case.layers)
    lengths = {len(case.loaded.option_tokens(t)) for t in ANSWERS}
    assert min(lengths) == 1 and max(lengths) > 2
    for n, item in enumerate(case.items):
        for o, option in enumerate(item.options):
            score, residuals = alone(case, item, option.text)
            assert_near(found.scores[n, o], score)
            for layer, residual in residuals.items() if o == 0 else ():
                assert_near(found.residuals[layer][n], residual)


def test_a_prompt_begins_once_and_carries_its_media(case):
    """The token that begins a text comes from the template or the tokenizer, not from both; blanked media give other residuals."""
    items = case.items.items[:4]
    inputs = case.loaded.prompts(items, case.loaded.media(case.items))
    begin = case.loaded.tokenizer.bos_token_id
    assert begin is None or (inputs["input_ids"] == begin).sum(1).tolist() == [1] * len(items)
    seen = case.observe(case.loaded, [list(items)], layers=(PROBE,))
    for kind in case.row.kinds:
        media = case.loaded.media(case.items, blank=(kind,))
        blank = forward_batches(case.loaded, [list(items)], media, CONFIG, ObservationRequest(layers=(PROBE,)))
        assert (blank.residuals[PROBE] - seen.residuals[PROBE]).abs().amax(1).min() > 1e-4, kind


def test_questions_behind_one_reading_of_a_clip_give_what_their_whole_prompts_give(case, monkeypatch, capsys):
    """Residuals, scores and greedy answers of three questions a clip, for all kinds of media; where the cache does not allow it, that is
    said, and prompts are run whole."""
    read: list[int] = []
    real = shared_prefix.read_prefix
    monkeypatch.setattr(shared_prefix, "read_prefix", lambda *given: (read.append(len(given[-1])), real(*given))[1])
    clips = [i for n, i in enumerate(case.items) if n % 6 < 3]
    passages = {i.id: "" if i.media else "The clip shows a digit. " * (n % 6) for n, i in enumerate(case.items)}  # of unequal length
    other = ("Odd?", "Is the digit odd, even, high or low, would you say?")
    asked = [another(clip, passages[clip.id] + text) for clip in clips for text in (clip.text, *other)]
    batches = plan_batches(asked, 6, by_clip=True)
    shared, whole = (
        forward_batches(case.loaded, batches, case.loaded.media(case.items), how, ObservationRequest(layers=case.layers, generate=True))
        for how in (replace(CONFIG, share_prefix=True), CONFIG)
    )
    for layer in case.layers:
        assert_near(shared.residuals[layer], whole.residuals[layer])
    assert_near(shared.scores, whole.scores)
    assert shared.answers == whole.answers and len(set(shared.answers)) > 1
    if case.row.reads_once is None:
        return
    several = [len(b) for b in batches]
    assert read[-len(several) or None :] == (several if case.row.reads_once else [])
    assert ("observe.share_prefix: prompts are run whole" in capsys.readouterr().out) == (not case.row.reads_once)


def another(item: Item, text: str) -> Item:
    """Another question about the same media."""
    content = [{**p, "text": text} if p["type"] == "text" else p for p in item.messages[0]["content"]]
    return replace(item, id=f"{item.id}/{text}", messages=[{"role": "user", "content": content}])


def test_the_decoder_alone_is_adapted(case):
    """Linear modules and fused experts of the chosen layers; nothing in a tower, although its modules have the same leaf names."""
    loaded, layers = load_model(case.config), list(range(PROBE + 1, len(case.loaded.layers) + 1))
    blocks = {id(m) for layer in layers for m in decoder_layers(loaded.model)[layer - 1].modules()}
    add_lora(loaded, LoraConfig(r=2), layers, seed=0)
    base = unwrap(loaded.model)
    adapted = {n: m for n, m in base.named_modules() if isinstance(m, BaseTunerLayer)}
    assert {id(m.get_base_layer()) for m in adapted.values()} <= blocks
    trained = {n for n, p in base.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n for n in trained)
    experts = [m.get_base_layer() for m in adapted.values() if isinstance(m, ParamWrapper)]
    assert len(experts) == case.row.experts and len(adapted) - len(experts) == case.row.linears


@pytest.mark.parametrize("part", PARTS)
def test_random_weights_keep_nothing_that_was_learned(case, part):
    """Every parameter of the part is drawn anew, by the class's own initialisation; the others stay to the bit; the network still runs."""
    loaded = load_model(case.config)
    base = unwrap(loaded.model)
    with torch.no_grad():
        for p in base.parameters():  # as if trained: a bias is not zero any more, nor a norm one
            p.add_(0.01 * torch.randn_like(p))
    before = {n: p.detach().clone() for n, p in base.named_parameters()}
    draw_anew(loaded.model, part, 0)
    inside = {id(p) for p in decoder_layers(base).parameters()}
    learned = {n for n, p in base.named_parameters() if torch.equal(p, before[n])}
    norms = {n for n in before if "norm" in n.split(".")[-2] and "layers" not in n}
    if part == "everything":
        assert learned == set()
    else:
        assert not learned & {n for n, p in base.named_parameters() if id(p) in inside}
        assert {n for n, p in base.named_parameters() if id(p) not in inside} - learned <= norms
    seen = case.observe(loaded, [list(case.items.items[:1])], layers=[len(loaded.layers)])
    assert all(torch.isfinite(z).all() for z in seen.residuals.values())


def assert_same_base(trained: LoadedModel, fresh: LoadedModel) -> None:
    """All that is no adapter is what it was, buffers included (statistics of batch normalisation are buffers)."""
    base = {n.replace(".base_layer", ""): t for n, t in unwrap(trained.model).state_dict().items() if "lora_" not in n}
    before = fresh.model.state_dict()
    assert base.keys() == before.keys() and all(torch.equal(t, before[n]) for n, t in base.items())
    moved = {n: bool(p.detach().any()) for n, p in trained.model.named_parameters() if "lora_B" in n}
    assert moved and all(moved.values()), [n for n, m in moved.items() if not m]


def test_scores_from_stored_states_are_those_of_the_whole_model(case, tmp_path, capsys):
    """Items of every combination of media that the family takes, with options of one to four tokens."""
    layers = [*range(PROBE + 1, len(case.loaded.layers) + 1)]
    trunk = write_cache(case.loaded, case.items, tmp_path / "trunk", frozen=PROBE, batch_size=4, layers=[PROBE])
    if case.row.no_trunk:
        assert trunk is None
        assert case.row.no_trunk in capsys.readouterr().out
        return
    assert trunk is not None, capsys.readouterr().out
    batches = plan_batches(case.items.items, 3)  # others than those of the fill
    plain = case.observe(case.loaded, batches, layers=[PROBE, *layers])
    found = case.observe(case.loaded, batches, layers=[PROBE, *layers], trunk=trunk)
    assert found.ids == plain.ids
    for layer in (PROBE, *layers):
        assert_near(found.residuals[layer], plain.residuals[layer])
    assert_near(found.scores, plain.scores)


def test_answers_of_several_tokens_share_a_prompt(case, capsys):
    """In one row they have the log-probabilities of rows of their own, with all kinds of media; where they have not, that is said."""
    assert can_branch(case.loaded, case.items.items, case.loaded.media(case.items)) == (not case.row.no_branches)
    assert ("a prompt of its own: " in (said := capsys.readouterr().out)) == bool(case.row.no_branches) and case.row.no_branches in said


def test_half_precision_says_nearly_the_same(case, tmp_path):
    """bfloat16, as every configuration of a real model has it: scores, a training step with float32 adapters, and answers."""
    half = load_model(replace(case.config, dtype="bfloat16"))
    batches = plan_batches(case.items.items[:4], 4)
    expected, found = (case.observe(m, batches, layers=(PROBE,)).scores for m in (case.loaded, half))
    assert (found - expected).abs().max() < 0.05 * (1 + expected.abs().max())
    add_lora(half, LoraConfig(r=2), range(PROBE + 1, len(half.layers) + 1), seed=0)
    assert {p.dtype for p in half.model.parameters() if p.requires_grad} == {torch.float32}
    train = TrainConfig(epochs=1, global_batch_size=4, micro_batch_size=2, learning_rate=0.02, warmup=0, retain=0, gold=0)
    examples = [Example(item=i, term="consistency", weights=np.array([0.1, 0.6, 0.3, 0.0])) for i in case.items.items[:4]]
    media = half.media(case.items)
    make_trainer(half, examples, media, train, tmp_path / "run", n_train=4, seed=0, after_epoch=lambda epoch: None).train()
    half.model.eval()
    after = case.observe(half, batches, generate=True)
    assert torch.isfinite(after.scores).all() and not torch.equal(after.scores, found)
    write_merged(half, replace(case.config, dtype="bfloat16"), tmp_path / "merged")
    merged = load_model(replace(case.config, path=str(tmp_path / "merged"), dtype="bfloat16"))
    assert (case.observe(merged, batches).scores - after.scores).abs().max() < 0.2 + 0.05 * after.scores.abs().max()


def test_training_lowers_the_loss_and_the_export_gives_the_same_scores(case, tmp_path):
    """A few steps of the trainer on several-token targets; what is read below the adapters stays; adapter and merged model reload."""
    loaded = load_model(case.config)
    n = len(loaded.layers)
    batches = plan_batches(case.items.items, CONFIG.batch_size)
    base = case.observe(loaded, batches, layers=(PROBE, n))
    add_lora(loaded, LoraConfig(r=4), range(PROBE + 1, n + 1), seed=0)
    train = TrainConfig(epochs=8, global_batch_size=4, micro_batch_size=4, learning_rate=0.02, warmup=0, retain=0, gold=0, logging_steps=1)
    weights = np.array([0.1, 0.6, 0.3, 0.0])
    examples = [Example(item=i, term="consistency", weights=weights) for i in case.items.items[:4]]
    trainer = make_trainer(
        loaded, examples, loaded.media(case.items), train, tmp_path / "run", n_train=4, seed=0, after_epoch=lambda epoch: None
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == train.epochs and losses[-1] < losses[0] - 0.5, losses
    assert_same_base(loaded, case.loaded)
    loaded.model.eval()
    after = case.observe(loaded, batches, layers=(PROBE, n), generate=True)
    assert_near(after.residuals[PROBE], base.residuals[PROBE])
    assert (after.residuals[n] - base.residuals[n]).abs().max() > 0.01
    assert (after.scores - base.scores).abs().max() > 0.5
    write_adapter(loaded, tmp_path / "adapter")
    write_merged(loaded, case.config, tmp_path / "merged")
    for again, tolerance in (
        (load_adapter(case.config, tmp_path / "adapter"), 1e-5),
        (load_model(replace(case.config, path=str(tmp_path / "merged"))), 1e-3),
    ):
        seen = case.observe(again, batches, generate=True)
        torch.testing.assert_close(seen.scores, after.scores, atol=tolerance, rtol=0)
        assert seen.answers == after.answers and any(seen.answers)


@pytest.mark.parametrize(("name", "value"), [("dropout", 0.1), ("use_dora", True)])
def test_experts_take_neither_dropout_nor_dora(name, value, tmp_path):
    """Said before PEFT would, with the remedy, which works."""
    processor, model = ROWS["Qwen3-Omni"].build()
    loaded = LoadedModel(model=model, processor=processor, path="", fingerprint="")
    with pytest.raises(
        ValueError, match=rf"lora\.{name} is {value}, and this model has fused experts .*gate_up_proj.*lora\.experts to false"
    ):
        add_lora(loaded, LoraConfig(**{name: value}), [4], seed=0)
    add_lora(loaded, LoraConfig(experts=False, **{name: value}), [4], seed=0)
    assert not any("experts" in n for n, p in loaded.model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["Qwen2.5-Omni", "Qwen3-Omni"])
def test_of_a_whole_omni_checkpoint_the_thinker_is_loaded(name, tmp_path):
    """The part that reads and answers, with every weight of it; its answers end, though the checkpoint names no end for it."""
    torch.manual_seed(0)
    processor, thinker = ROWS[name].build()
    whole = {"Qwen2.5-Omni": (hf.Qwen2_5OmniConfig, hf.Qwen2_5OmniForConditionalGeneration)}
    whole["Qwen3-Omni"] = (hf.Qwen3OmniMoeConfig, hf.Qwen3OmniMoeForConditionalGeneration)
    make_config, make_model = whole[name]
    model = make_model(make_config(thinker_config=thinker.config.to_dict(), enable_audio_output=False))
    model.thinker.load_state_dict(thinker.state_dict())
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = load_model(ModelConfig(path=str(tmp_path), dtype="float32"))
    assert type(loaded.model) is type(thinker)
    assert loaded.tokenizer.eos_token_id in loaded.model.generation_config.eos_token_id
    expected, found = thinker.state_dict(), loaded.model.state_dict()
    assert expected.keys() == found.keys() and all(torch.equal(t, found[n]) for n, t in expected.items())


def test_sounds_that_end_within_one_frame_of_each_other_share_a_batch(clips, tmp_path):
    """Phi-4-multimodal's extractor fails on them as they are, and skips what is behind the last whole frame anyway."""
    processor, _ = ROWS["Phi-4-multimodal"].build()
    extractor, generator = processor.audio_processor, np.random.default_rng(0)
    sounds = [generator.standard_normal(n).astype(np.float32) for n in (6000, 8010, 8070)]
    with pytest.raises(RuntimeError, match="must match the size"):
        extractor(sounds, sampling_rate=16_000)
    cut = [whole_frames(extractor, s) for s in sounds]
    assert [len(s) for s in cut] == [6000, 7920, 7920]
    together = extractor(cut, sampling_rate=16_000)["audio_input_features"]
    for n, sound in enumerate(sounds):
        by_itself = extractor([sound], sampling_rate=16_000)["audio_input_features"][0]
        torch.testing.assert_close(together[n, : len(by_itself)], by_itself)


def test_sounds_of_one_and_of_several_windows_share_a_batch(clips, tmp_path):
    """Qwen3-Omni's extractor cuts nothing: beside a sound that is longer than its window (here four seconds), a shorter one is as alone."""
    torch.manual_seed(0)
    processor, model = ROWS["Qwen3-Omni"].build()
    spread(model)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, generator, items = load_model(ModelConfig(path=str(tmp_path), dtype="float32")), np.random.default_rng(0), []
    for item, seconds in zip(clips.items, (3, 4.02, 9), strict=False):
        soundfile.write(tmp_path / f"{seconds}.wav", 0.3 * generator.standard_normal(int(seconds * 16_000)), 16_000)
        content = [{"type": "audio", "path": f"{seconds}.wav"}, {"type": "text", "text": "Odd?"}]
        items.append(replace(item, messages=[{"role": "user", "content": content}]))
    heard = replace(clips, root=tmp_path, items=tuple(items))
    assert not too_long(heard, loaded.processor)
    together, apart = (
        forward_batches(loaded, batches, loaded.media(heard), CONFIG, ObservationRequest(layers=(PROBE,)))
        for batches in ([items], [[i] for i in items])
    )
    assert_near(together.residuals[PROBE], apart.residuals[PROBE])
    assert_near(together.scores, apart.scores)


FILMS = {
    "Qwen2.5-Omni": "<|vision_bos|><|VIDEO|><|vision_eos|>",
    "Qwen3-Omni": "<|vision_bos|><|VIDEO|><|vision_eos|>",
    "Gemma 4": "<|video|>",
    "Qwen2.5-VL": "<|vision_start|><|video_pad|><|vision_end|>",
    "Qwen3-VL": "<|vision_start|><|video_pad|><|vision_end|>",
    "LLaVA-OneVision": "<video>",
}
"""family that takes films -> what a template writes for one"""


@pytest.mark.parametrize("name", FILMS)
def test_films_reach_the_model(name, clips, tmp_path):
    """In a batch as alone, and other residuals than those of the same film in grey."""
    pytest.importorskip("av", reason="films need PyAV")
    torch.manual_seed(0)
    processor, model = ROWS[name].build()
    spread(model)
    writes = "{% elif part['type'] == 'video' %}" + FILMS[name] + "{% elif part['type'] == 'text' %}"
    processor.chat_template = processor.chat_template.replace("{% elif part['type'] == 'text' %}", writes)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, items = load_model(ModelConfig(path=str(tmp_path), dtype="float32")), []
    for n, item in enumerate(clips.items[:3]):
        pictures = np.random.default_rng(n).integers(0, 255, (6 + 4 * n, 56, 56, 3), dtype=np.uint8)
        write_film(tmp_path / f"{n}.mp4", pictures, None)
        content = [{"type": "video", "path": f"{n}.mp4"}, {"type": "text", "text": item.text}]
        items.append(replace(item, messages=[{"role": "user", "content": content}]))
    shown = replace(clips, root=tmp_path, items=tuple(items), framing=Framing(frames=4))
    problems = ErrorCollector("the films")
    check_kinds(shown, loaded.processor, problems)
    assert not problems.messages
    wanted = ObservationRequest(layers=(PROBE,))
    together, apart, grey = (
        forward_batches(loaded, batches, loaded.media(shown, blank=blank), CONFIG, wanted)
        for batches, blank in (([items], ()), ([[i] for i in items], ()), ([items], ("video",)))
    )
    assert_near(together.residuals[PROBE], apart.residuals[PROBE])
    assert_near(together.scores, apart.scores)
    assert (together.residuals[PROBE] - grey.residuals[PROBE]).abs().amax(1).min() > 1e-4


CANNOT = {
    "Ola": "^ola",
    "OmniVinci": "omnivinci|vila",
    "MiniCPM-o 2.6": "minicpmo(?!cr)",
    "Uni-MoE-2.0-Omni": "unimoe",
    "video-SALMONN 2": "salmonn",
    "Baichuan-Omni-1.5": "baichuan",
}
"""families without a class in transformers 5.23, by what the name of one would hold, capitals, dashes and underscores aside: they need
``model.trust_remote_code``, which no test turns on"""


def known_as(pattern: str) -> list[str]:
    """The types and classes of transformers' configurations whose name holds a pattern."""
    named = {re.sub("[-_]", "", name) for kind, config in hf.CONFIG_MAPPING.items() for name in (kind, config.__name__)}
    return sorted(name for name in named if re.search(pattern, name, re.IGNORECASE))


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_be_built_still_cannot(name):
    """Once transformers has the class, the family belongs into the matrix."""
    assert known_as(CANNOT[name]) == [] and "Qwen25OmniConfig" in known_as("qwen25omni")
