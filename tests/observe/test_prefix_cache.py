"""Questions behind one reading of their clip give what their whole prompts give, and where they cannot, are run whole."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.models.config import ModelConfig
from gapclose.models.loading import load_model
from gapclose.observe import prefix_cache as module
from gapclose.observe.batching import batch_by_clip, group_by_clip, plan_batches
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import _forward, forward_batches, observe
from gapclose.observe.prefix_cache import PrefixCache
from gapclose.observe.request import ObservationRequest

SHARED = ObserveConfig(batch_size=7, shard_batches=2, max_new_tokens=4, share_prefix=True)
WHOLE = replace(SHARED, share_prefix=False)
LAYERS = (0, 1, 3, 5)
LONG = ["odd", "an odd number", "unseen detail here", "unheard"]
QUESTIONS = ["Odd?", "The clip shows the digit 7. Is it odd or even?", "Is the digit that is said high or low, would you say?", "Why?"]


def ask(item: Item, name: str, *kinds: str, text: str | None = None) -> Item:
    """The item under another name, with these kinds of media, and perhaps another question."""
    content = [p for p in item.messages[0]["content"] if p["type"] in kinds]
    content.append({"type": "text", "text": text or item.text})
    return replace(item, id=name, messages=[{"role": "user", "content": content}])


@pytest.fixture(scope="module")
def items(digits) -> ItemSet:
    """Clips of several kinds of media with four questions, two, and one, mixed; options of one token and of several."""
    fit, found = digits.select(split="fit", purpose="gap").items, []
    clips = list({i.clip: i for i in fit}.values())
    kinds = [("image", "audio"), ("image",), ("audio",), ()]
    for q, question in enumerate(QUESTIONS):
        for c, clip in enumerate(clips[:12]):
            if q == 0 or c % 3 == 0 or (c % 3 == 1 and q < 2):
                found.append(ask(clip, f"{c}-{q}", *kinds[c // 3], text=question))
    long = [Option(text=t, concept="standard") for t in LONG]
    found = [replace(i, options=long, gold=0) if n % 3 else i for n, i in enumerate(found)]
    return replace(digits, items=tuple(found))


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    """Shared by tests that leave it as it is."""
    return load_model(ModelConfig(path=str(tiny_checkpoint), dtype="float32"))


@pytest.fixture
def read(monkeypatch) -> list[tuple[int, int]]:
    """Clips and questions of every batch whose media were read once."""
    seen: list[tuple[int, int]] = []
    real = module.read_prefix

    def spy(model, loaded, prefix, clip, suffixes):
        seen.append((len(prefix["input_ids"]), len(suffixes)))
        return real(model, loaded, prefix, clip, suffixes)

    monkeypatch.setattr(module, "read_prefix", spy)
    return seen


def both(model, items: ItemSet, *, blank=(), **wanted):
    """Observations of all items, shared and whole."""
    batches = plan_batches(items.items, SHARED.batch_size, by_clip=True)
    return [
        forward_batches(model, batches, model.media(items, blank=blank), how, ObservationRequest(layers=LAYERS, **wanted)).take(
            [i.id for i in items]
        )
        for how in (SHARED, WHOLE)
    ]


def assert_equal(shared, whole) -> None:
    """Scores in nats and residuals to 1e-5, answers to the letter."""
    torch.testing.assert_close(shared.scores, whole.scores, atol=1e-5, rtol=1e-5)
    for layer, residual in whole.residuals.items():
        torch.testing.assert_close(shared.residuals[layer], residual, atol=1e-5, rtol=1e-5)
    assert shared.answers == whole.answers


@pytest.mark.parametrize("blank", [(), ("image", "audio")])
def test_questions_of_a_clip_give_what_their_whole_prompts_give(model, items, read, blank):
    """Residuals, scores of options of one and of several tokens, and greedy answers, for all kinds of media."""
    shared, whole = both(model, items, generate=True, blank=blank)
    assert_equal(shared, whole)
    assert len(set(whole.answers)) > 3
    batches = plan_batches(items.items, SHARED.batch_size, by_clip=True)
    expected = [(len(group_by_clip(b)), len(b)) for b in batches]
    assert read[-len(expected) :] == expected and max(questions for _, questions in expected) > 4


def test_a_clip_goes_through_the_model_once(model, items):
    """Towers see a picture a clip, the decoder the tokens before the questions once."""
    few = replace(items, items=tuple(i for i in items if i.clip == items.items[0].clip))
    tokens, pictures = [], []
    handles = [
        model.layers[0].register_forward_hook(
            lambda m, a, out: tokens.append((out[0] if isinstance(out, tuple) else out).shape[:2].numel())
        ),
        model.model.model.visual.register_forward_hook(lambda m, a, k, out: pictures.append(len(k["grid_thw"])), with_kwargs=True),
    ]
    found = []
    try:
        for how in (SHARED, WHOLE):
            reader = PrefixCache(model) if how.share_prefix else None
            tokens.clear(), pictures.clear()
            _forward(model, [replace(i, options=items.items[0].options) for i in few], model.media(few), how, ObservationRequest(), reader)
            found.append((sum(tokens), sum(pictures)))
    finally:
        for handle in handles:
            handle.remove()
    prompts = model.prompts(few.items, model.media(few))
    length, end = prompts["input_ids"].shape[1], model.tokenizer.convert_tokens_to_ids("<|audio_eos|>")
    prefix = int((prompts["input_ids"][0] == end).nonzero().max()) + 1 - int((prompts["attention_mask"][0] == 0).sum())
    longest = int(prompts["attention_mask"].sum(1).max()) - prefix
    assert found == [(prefix + 4 * longest, 1), (4 * length, 4)]


def test_an_image_of_many_tokens_moves_the_positions_by_few(loaded, items, read):
    """Rotary positions behind a grid of 3 x 3 tokens: where the clip ends, not how many tokens it has."""
    loaded.processor.image_processor.size = {"shortest_edge": 84 * 84, "longest_edge": 84 * 84}
    seen = replace(items, items=tuple(i for i in items if [k for k, _ in i.media][:1] == ["image"]))
    assert (loaded.prompts(seen.items[:1], loaded.media(seen))["input_ids"] == loaded.tokenizer.image_token_id).sum() == 9
    assert_equal(*both(loaded, seen, generate=True))
    assert read


def test_patched_residuals_go_behind_the_reading(model, items, read):
    """Donors stand at the answer position alone; the clips' cache is the model's own."""
    few = replace(items, items=tuple(i for i in items if len(i.media) == 2))
    donors = {i.id: torch.randn(48, generator=torch.Generator().manual_seed(n)) for n, i in enumerate(few)}
    shared, whole = both(model, few, patch={3: donors})
    assert_equal(shared, whole)
    assert read and torch.equal(whole.residuals[3], torch.stack([donors[i] for i in whole.ids]))
    read.clear()
    both(model, few, patch={3: donors}, generate=True)
    assert len(read) == 1  # the first try


def test_questions_about_a_passage_run_it_once(model, items, read):
    """A clip of text: the decoder sees the common beginning once, however it is worded, and every question from where it differs."""
    passage = "The clip shows the digit 7. Is it odd or even? Why? " * 4
    texts = ("Odd?", "Odd, would you say?", "Is it high?")
    few = [ask(items.items[0], str(n), text=passage + text) for n, text in enumerate(texts)]
    tokens = model.written(few)
    common = next(n for n, column in enumerate(zip(*tokens, strict=False)) if len(set(column)) > 1)
    seen = []
    handle = model.layers[0].register_forward_hook(lambda m, a, out: seen.append((out[0] if isinstance(out, tuple) else out).shape[:2]))
    try:
        scored = ObservationRequest(layers=LAYERS)
        options = [replace(i, options=[Option(text="odd", concept="standard")], gold=0) for i in few]
        _forward(model, options, model.media(items), SHARED, scored, PrefixCache(model))
    finally:
        handle.remove()
    assert [tuple(shape) for shape in seen] == [(1, common), (3, max(map(len, tokens)) - common)]
    assert common > 40
    assert_equal(*both(model, replace(items, items=tuple(few)), generate=True))


def test_prompts_without_a_common_token_are_run_whole(loaded, items, read, capsys):
    """A template that begins with the question leaves two questions of a text nothing to share."""
    loaded.processor.chat_template = "{{ messages[0]['content'][0]['text'] }}{% if add_generation_prompt %} so:{% endif %}"
    few = replace(items, items=tuple(ask(items.items[0], str(n), text=text) for n, text in enumerate(["Odd?", "Why?"])))
    shared, whole = both(loaded, few)
    assert not read and torch.equal(shared.scores, whole.scores)
    assert "differ from their first token on" in capsys.readouterr().out


@pytest.mark.parametrize("several", [False, True])
def test_answers_end_where_generate_ends_them(loaded, items, several):
    """At any of the end tokens that the model names; after one, nothing is said."""
    _, before = both(loaded, items, generate=True)
    with torch.no_grad():
        first = loaded.model(**loaded.prompts(items.items[:1], loaded.media(items))).logits[0, -1].argmax().item()
    loaded.model.generation_config.eos_token_id = [first, loaded.tokenizer.eos_token_id] if several else first
    shared, whole = both(loaded, items, generate=True)
    assert shared.answers == whole.answers != before.answers
    assert whole.answers[0] == loaded.tokenizer.decode(first) and len(set(whole.answers)) > 3


def test_questions_of_a_clip_share_a_batch(items):
    """Clips are cut only where they have more questions than a batch takes; nothing is lost."""
    for size in (2, 3, 7):
        batches = plan_batches(items.items, size, by_clip=True)
        assert sorted(i.id for b in batches for i in b) == sorted(i.id for i in items) and max(map(len, batches)) <= size
        assert all(len({tuple(k for k, _ in i.media) for i in b}) == 1 for b in batches)
        spread = {}
        for n, batch in enumerate(batches):
            for item in batch:
                spread.setdefault(tuple(item.media) or item.id, set()).add(n)
        assert max(map(len, spread.values())) == (2 if size < 4 else 1)
    assert [len(b) for b in batch_by_clip(items.items[:3], 2)] == [2, 1]


def test_observations_shared_and_whole_are_not_mixed(model, items, tmp_path):
    """Other batches, other rounding: the fingerprint tells; an interrupted observation comes back bit for bit."""
    first = observe(model, items, tmp_path / "o", SHARED, ObservationRequest(layers=(2,), generate=True))
    whole = observe(model, items, tmp_path / "whole", WHOLE, ObservationRequest(layers=(2,), generate=True))
    assert_equal(first, whole)
    with pytest.raises(ValueError, match="share_prefix: True there, None now"):
        observe(model, items, tmp_path / "o", WHOLE, ObservationRequest(layers=(2,), generate=True))
    assert "share_prefix" not in json.loads((tmp_path / "whole" / "request.json").read_text())
    (tmp_path / "o" / "manifest.json").unlink()
    (tmp_path / "o" / "shard-00001.safetensors").unlink()
    again = observe(model, items, tmp_path / "o", SHARED, ObservationRequest(layers=(2,), generate=True))
    assert torch.equal(again.scores, first.scores) and torch.equal(again.residuals[2], first.residuals[2])
    shutil.rmtree(tmp_path / "o")


def test_clips_with_one_question_are_run_whole(model, items, read):
    """Nothing is gained there, and every bit stays."""
    single = replace(items, items=tuple({i.clip: i for i in items}.values()))
    shared, whole = both(model, single)
    assert not read and torch.equal(shared.scores, whole.scores)


def test_questions_before_their_media_are_run_whole(model, items, read):
    """A clip cannot be read once behind different words."""
    turned = [replace(i, messages=[{"role": "user", "content": i.messages[0]["content"][::-1]}]) for i in items if i.media]
    shared, whole = both(model, replace(items, items=tuple(turned)))
    assert not read and torch.equal(shared.scores, whole.scores)


def test_a_template_that_puts_the_question_first_is_found_out(loaded, items, read, capsys):
    """Although the items have their media first: it is the tokens that count. Said once."""
    parts = "{% for part in message['content'] %}"
    turned = "{% for part in message['content'][::-1] %}"
    assert parts in loaded.processor.chat_template
    loaded.processor.chat_template = loaded.processor.chat_template.replace(parts, turned)
    shared, whole = both(loaded, replace(items, items=tuple(i for i in items if i.media)))
    assert not read and torch.equal(shared.scores, whole.scores)
    said = [line for line in capsys.readouterr().out.splitlines() if "share_prefix" in line]
    assert said and all("differ before the end of its media" in line or "nothing follows" in line for line in said)
    assert len(said) == len(set(said))


def test_a_processor_that_writes_within_its_template_is_asked_for_whole_prompts(model, items, read, monkeypatch):
    """And so is one that leaves text behind its media: same figures, media prepared once more."""
    monkeypatch.setattr(type(model), "written", lambda self, items: None)
    assert_equal(*both(model, items, generate=True))
    assert read


def test_a_first_try_that_goes_wrong_refuses_the_kind(model, items, monkeypatch, read, capsys):
    """Here by wrong positions: the figures are those of whole prompts, bit for bit, and the reason is said."""
    real = module.continuation_positions
    monkeypatch.setattr(module, "continuation_positions", lambda *a, **k: real(*a, **k) + 3)
    shared, whole = both(model, items)
    assert len(read) == 4 and torch.equal(shared.scores, whole.scores)
    said = [line for line in capsys.readouterr().out.splitlines() if "share_prefix" in line]
    assert len(said) == 4 and all("a first try with" in line and "gave other" in line for line in said)


def test_what_cannot_be_continued_is_run_whole(loaded, items, read, capsys):
    """A recurrent state, prompts beyond a sliding window, a model in parts; the reason is said once."""
    config = loaded.model.config.get_text_config()
    whole = both(loaded, items)[1]
    assert read
    reasons = {}
    for name, change in (("recurrent", {"layer_types": ["linear_attention", *["full_attention"] * 4]}), ("parts", {}), ("window", {})):
        before, weight = config.layer_types, next(loaded.model.parameters())
        config.update(change)
        if name == "parts":
            weight.ds_id = 0
        reader = PrefixCache(loaded)
        config.layer_types = before
        if name == "parts":
            del weight.ds_id
        else:
            reader.window = 12 if name == "window" else None
        read.clear(), capsys.readouterr()
        for batch in plan_batches(items.items, SHARED.batch_size, by_clip=True):
            found = _forward(loaded, batch, loaded.media(items), SHARED, ObservationRequest(layers=LAYERS), reader)
            assert torch.equal(found["layer.3"], whole.take([i.id for i in batch]).residuals[3])
        assert not read
        (reasons[name],) = capsys.readouterr().out.splitlines()
    assert "LinearAttentionLayer, which cannot be continued" in reasons["recurrent"]
    assert "beyond the sliding window of 12 tokens" in reasons["window"] and "hold parts of the model" in reasons["parts"]


def test_half_precision_is_shared_as_well(tiny_checkpoint, items, read):
    """Rounding differs with the shapes of a forward, as it does with the batch size."""
    half = load_model(ModelConfig(path=str(tiny_checkpoint), dtype="bfloat16"))
    shared, whole = both(half, items)
    there = torch.isfinite(whole.scores)
    assert len(read) > 3 and (shared.scores - whole.scores)[there].abs().max() < 0.2
    torch.testing.assert_close(shared.residuals[3].float(), whole.residuals[3].float(), atol=0.05, rtol=0.05)
