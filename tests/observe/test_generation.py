"""Answers continue the forward that scored the options; where they cannot, prompts are read again, without the logits that nobody reads."""

import contextlib
from dataclasses import replace

import pytest
import torch

import gapclose.observe.forward
from gapclose.data.items import Option
from gapclose.models.structure import output_embedding
from gapclose.observe import prompt_reuse
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import _forward, forward_batches
from gapclose.observe.forward import generate
from gapclose.observe.prompt_reuse import PromptReuse
from gapclose.observe.request import ObservationRequest

CONFIG = ObserveConfig(max_new_tokens=4, share_prefix=False)
WANTED = ObservationRequest(layers=(2, 5), generate=True)


@pytest.fixture
def items(digits):
    """Questions about media and without, of unequal length; options of one token and of several."""
    asked = list(digits.select(split="test", purpose="gap"))[:6]
    long = [Option(text=t, concept="standard") for t in ("odd", "an odd number", "unseen detail here")]
    bare = [replace(i, id=f"{i.id}-bare", messages=[{"role": "user", "content": i.text + " now" * n}]) for n, i in enumerate(asked[:3])]
    return [[replace(i, options=long, gold=0) if n % 2 else i for n, i in enumerate(asked)], bare]


@pytest.fixture
def prompts_read(loaded):
    """Rows and tokens of every forward over more than one token."""
    read = list[tuple[int, int]]()
    handle = loaded.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: read.append(tuple((args[0] if args else kwargs["hidden_states"]).shape[:2])), with_kwargs=True
    )
    yield read
    handle.remove()


def test_answers_continue_the_scores(loaded, digits, items, prompts_read):
    """The same answers to the letter, scores and residuals to 1e-5, and the prompts are read once."""
    media = loaded.media(digits)
    reuse = PromptReuse(loaded, media)
    assert all(reuse.allows(batch, loaded.prompts(batch, media)["attention_mask"]) for batch in items)
    for batch in items:
        apart = _forward(loaded, batch, media, CONFIG, WANTED)
        prompts_read.clear()
        together = _forward(loaded, batch, media, CONFIG, WANTED, None, reuse)
        length = loaded.prompts(batch, media)["input_ids"].shape[1]
        assert [n for _, n in prompts_read].count(length) == 1
        assert together["answers"] == apart["answers"]
        for key in ("scores", "layer.2", "layer.5"):
            torch.testing.assert_close(together[key], apart[key], atol=1e-5, rtol=1e-5)
    assert len(set(apart["answers"])) > 1


def test_a_first_try_that_goes_wrong_reads_prompts_again(loaded, digits, items, monkeypatch, capsys):
    """Here by other logits behind the first token: the answers are those of `generate`, and the reason is said once for each kind."""
    media = loaded.media(digits)
    plain = [_forward(loaded, batch, media, CONFIG, WANTED)["answers"] for batch in items]
    real = prompt_reuse.next_logits
    monkeypatch.setattr(prompt_reuse, "next_logits", lambda *a: real(*a).roll(1, -1))
    seen = forward_batches(loaded, [*items, *items], media, CONFIG, WANTED)
    assert seen.answers == [a for of in (*plain, *plain) for a in of]
    said = [line for line in capsys.readouterr().out.splitlines() if "read their prompts again" in line]
    assert len(said) == 2 and all("a log-probability differs by" in line for line in said)


def test_a_try_that_fails_reads_prompts_again(loaded, digits, items, monkeypatch, capsys):
    """A model that cannot go on from its cache; and one in parts, whose processes run equally many forwards, is not tried."""

    def fail(*_):
        raise TypeError("no cache is taken here")

    monkeypatch.setattr(prompt_reuse, "next_logits", fail)
    mask = loaded.prompts(items[1], loaded.media(digits))["attention_mask"]
    assert not PromptReuse(loaded, loaded.media(digits)).allows(items[1], mask)
    assert "questions with text read their prompts again: a first try failed (TypeError: no cache is taken here)" in capsys.readouterr().out
    monkeypatch.setattr(prompt_reuse, "is_sharded", lambda model: True)
    assert not PromptReuse(loaded, loaded.media(digits)).allows(items[1], mask)


def test_a_number_that_is_none_reads_prompts_again(loaded, digits, items, monkeypatch):
    """Also behind the second token alone: no comparison with nan passes."""
    real, calls = prompt_reuse.next_logits, list[int]()

    def none_later(*arguments):
        calls.append(1)
        return real(*arguments) * (float("nan") if len(calls) > 1 else 1.0)

    monkeypatch.setattr(prompt_reuse, "next_logits", none_later)
    mask = loaded.prompts(items[0], loaded.media(digits))["attention_mask"]
    assert not PromptReuse(loaded, loaded.media(digits)).allows(items[0], mask) and len(calls) > 1


def test_padding_is_tried_where_it_first_occurs(loaded, digits, items, monkeypatch):
    """A batch of equally long prompts says nothing of padded ones."""
    tried = list[int]()
    monkeypatch.setattr(prompt_reuse, "reuse_refusal", lambda loaded, few, media: tried.append(len(few)))
    reuse, whole, padded = PromptReuse(loaded, loaded.media(digits)), torch.ones(3, 5), torch.ones(3, 5).tril(2)
    assert all(reuse.allows(items[0][:3], mask) for mask in (whole, whole, padded, padded)) and tried == [1, 2]


@pytest.mark.parametrize("tokens", [1, 4])
def test_generation_computes_logits_of_one_position_and_the_same_answers(tokens, loaded, digits, monkeypatch):
    """This class ignores ``logits_to_keep``, so that without the hook its first forward has those of every prompt token."""
    items, shapes = [*digits.select(split="test", purpose="gap")][:6], list[tuple]()
    inputs, head = dict(loaded.prompts(items, loaded.media(digits))), output_embedding(loaded.model)
    head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))

    def run():
        shapes.clear()
        return generate(loaded, loaded.model, inputs, tokens), list(shapes)

    seen, mine = run()
    assert mine == [(6, 1, head.out_features)] * tokens
    monkeypatch.setattr(gapclose.observe.forward, "last_logits", lambda model: contextlib.nullcontext())
    plain, whole = run()
    assert whole[0][1] > 20 and len(whole) == tokens
    assert seen == plain and len(set(seen)) > 1
    assert not head._forward_pre_hooks
