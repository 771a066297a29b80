"""Answers are generated without the logits of the prompt, which nobody reads, and which cost more than the model where a clip is long."""

import contextlib

import pytest

import gapclose.observe.forward
from gapclose.models.structure import output_embedding
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import forward_batches
from gapclose.observe.request import ObservationRequest


@pytest.mark.parametrize("tokens", [1, 4])
def test_generation_computes_logits_of_one_position_and_the_same_answers(tokens, loaded, digits, monkeypatch):
    """This class ignores ``logits_to_keep``, so that without the hook its first forward has those of every prompt token."""
    items = [*digits.select(split="test", purpose="gap")][:6]
    config, shapes = ObserveConfig(max_new_tokens=tokens), list[tuple]()
    head = output_embedding(loaded.model)
    head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))

    def run():
        shapes.clear()
        seen = forward_batches(loaded, [items], loaded.media(digits), config, ObservationRequest(generate=True))
        return seen, shapes[1:]  # the first is that of the scores

    seen, mine = run()
    assert mine == [(6, 1, head.out_features)] * tokens
    monkeypatch.setattr(gapclose.observe.forward, "last_logits", lambda model: contextlib.nullcontext())
    plain, whole = run()
    assert whole[0][1] > 20 and len(whole) == tokens
    assert seen.answers == plain.answers and len(set(seen.answers)) > 1
    assert not head._forward_pre_hooks
