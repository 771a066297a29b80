"""Observations against plain forwards, one item at a time; the store against interruption and mix-ups."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.models.config import ModelConfig
from gapclose.models.hooks import capture_residuals
from gapclose.models.loading import load_model
from gapclose.observe import extract as module
from gapclose.observe.batching import plan_batches
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import forward_batches, observe
from gapclose.observe.request import ObservationRequest
from gapclose.observe.store import read_observations

CONFIG = ObserveConfig(batch_size=4, shard_batches=2, max_new_tokens=3, share_prefix=False)
LAYERS = (0, 1, 3, 5)
LONG = ["odd", "an odd number", "unseen detail here", "unheard"]


def options(*texts: str) -> list[Option]:
    return [Option(text=t, concept="standard") for t in texts]


def strip(item: Item, *kinds: str) -> Item:
    """The item with only these kinds of content parts."""
    content = [p for p in item.messages[0]["content"] if p["type"] in ("text", *kinds)]
    return replace(item, id=f"{item.id}/{'-'.join(kinds) or 'text'}", messages=[{"role": "user", "content": content}])


@pytest.fixture(scope="module")
def mixed(digits) -> ItemSet:
    """Interleaved kinds of media, prompts of several lengths, two to ten options, some of several tokens."""
    fit, items = digits.select(split="fit").items, []
    for n, kinds in enumerate([("image", "audio"), ("image",), ("audio",), ()] * 4):
        item = strip(fit[5 * n], *kinds)
        items.append(replace(item, options=[options(*LONG), item.options, options("even", "odd one out")][n % 3], gold=0))
    items.append(digits.select(split="train", purpose="retain").items[2])
    assert {len(i.options) for i in items} >= {2, 4, 10}
    return replace(digits, items=tuple(items))


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    """Shared by tests that leave it as it is."""
    return load_model(ModelConfig(path=str(tiny_checkpoint), dtype="float32"))


@pytest.fixture
def forwards(monkeypatch) -> list[list[str]]:
    """The ids of every batch that is run through the model."""
    seen: list[list[str]] = []
    real = module._forward

    def spy(loaded, batch, *rest):
        seen.append([i.id for i in batch])
        return real(loaded, batch, *rest)

    monkeypatch.setattr(module, "_forward", spy)
    return seen


@torch.no_grad()
def alone(loaded, items, item, tokens=()):
    """Full forward of one prompt and ``tokens`` after it: log-probabilities from the answer position on, (1 + len, V), and residuals."""
    inputs = loaded.prompts([item], loaded.media(items))
    length = inputs["input_ids"].shape[1]
    more = torch.tensor([list(tokens)], dtype=torch.long)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with capture_residuals(loaded.model, LAYERS, torch.tensor([length - 1])) as residuals:
        logits = loaded.model(**inputs, use_cache=False).logits
    return logits[0, length - 1 :].log_softmax(-1), residuals


def test_a_batch_gives_what_its_items_give_alone(model, mixed, tmp_path):
    """Residuals of every layer and scores of every option: padding, mixed media, the cache and the store change nothing.

    The reference is one full forward of prompt and option, without cache, batch or padding.
    """
    found = observe(model, mixed, tmp_path / "o", CONFIG, ObservationRequest(layers=LAYERS))
    assert found.ids == [i.id for i in mixed] and found.answers is None and found.top_logps is None
    assert found.scores.shape == (len(mixed), 10) and found.scores.dtype == torch.float32
    several = 0
    for n, item in enumerate(mixed):
        _, residuals = alone(model, mixed, item)
        for layer in LAYERS:
            torch.testing.assert_close(found.residuals[layer][n], residuals[layer][0], atol=1e-5, rtol=1e-5)
        for o, option in enumerate(item.options):
            tokens = model.option_tokens(option.text)
            several += len(tokens) > 1
            logp, _ = alone(model, mixed, item, tokens[:-1])
            expected = sum(logp[t, token] for t, token in enumerate(tokens))
            torch.testing.assert_close(found.scores[n, o], expected, atol=2e-5, rtol=1e-5)
        assert (found.scores[n, len(item.options) :] == -torch.inf).all()
    assert several > 15


def test_long_options_go_on_where_the_media_end_in_rotary_positions(loaded, digits, tmp_path):
    """An image of 3 x 3 tokens moves the position by 3 only, so the cache is longer than the last position."""
    loaded.processor.image_processor.size = {"shortest_edge": 84 * 84, "longest_edge": 84 * 84}
    content = [{"type": "text", "text": "Well."}], [{"type": "text", "text": "Well, once more, and for good."}]
    fit = digits.select(split="fit").items
    both = [replace(i, messages=[{"role": "user", "content": i.messages[0]["content"] + c}]) for i, c in zip(fit, content, strict=False)]
    items = replace(digits, items=tuple(replace(strip(i, "image"), options=options(*LONG), gold=0) for i in both))
    found = observe(loaded, items, tmp_path / "o", CONFIG, ObservationRequest())
    prompt = loaded.prompts(items.items, loaded.media(items))
    assert (prompt["input_ids"] == loaded.model.config.image_token_id).sum() == 2 * 9
    for n, item in enumerate(items):
        for o, option in enumerate(item.options):
            tokens = loaded.option_tokens(option.text)
            logp, _ = alone(loaded, items, item, tokens[:-1])
            torch.testing.assert_close(found.scores[n, o], sum(logp[t, k] for t, k in enumerate(tokens)), atol=2e-5, rtol=1e-5)


def test_scores_top_tokens_and_generated_answers_are_of_the_same_forward(model, mixed, tmp_path):
    """The whole vocabulary sums to one; a one-token score is its entry; the greedy answer starts with the first of the top tokens."""
    found = observe(model, mixed, tmp_path / "o", CONFIG, ObservationRequest(generate=True, top_tokens=100_000))
    vocabulary = model.model.config.get_text_config().vocab_size
    assert found.top_logps.shape == (len(mixed), vocabulary) and found.top_tokens.dtype == torch.int32
    torch.testing.assert_close(found.top_logps.exp().sum(1), torch.ones(len(mixed)))
    assert (found.top_logps.diff(dim=1) <= 0).all()
    few = observe(model, mixed, tmp_path / "few", CONFIG, ObservationRequest(top_tokens=3))
    assert torch.equal(few.top_tokens, found.top_tokens[:, :3]) and torch.equal(few.top_logps, found.top_logps[:, :3])
    for n, item in enumerate(mixed):
        by_token = torch.zeros(vocabulary).scatter(0, found.top_tokens[n].long(), found.top_logps[n])
        one = [(o, tokens[0]) for o, option in enumerate(item.options) if len(tokens := model.option_tokens(option.text)) == 1]
        torch.testing.assert_close(found.scores[n, [o for o, _ in one]], by_token[[t for _, t in one]])
        said: list[int] = []
        while len(said) < CONFIG.max_new_tokens and model.tokenizer.eos_token_id not in said:
            said.append(int(alone(model, mixed, item, said)[0][-1].argmax()))
        assert found.answers[n] == model.tokenizer.decode(said, skip_special_tokens=True)
        assert said[0] == found.top_tokens[n, 0]


def test_batches_hold_one_kind_of_media_each_and_keep_their_order(mixed):
    """Whatever the interleaving; nothing is lost."""
    batches = plan_batches(mixed.items, 4)
    assert sorted(i.id for b in batches for i in b) == sorted(i.id for i in mixed)
    assert all(len({tuple(k for k, _ in i.media) for i in b}) == 1 and len(b) <= 4 for b in batches)
    place = {i.id: n for n, i in enumerate(mixed)}
    assert all(place[a.id] < place[b.id] for batch in batches for a, b in pairwise(batch))


def test_an_interrupted_observation_computes_only_what_is_missing(model, mixed, tmp_path, forwards):
    """Lost shards come back bit for bit; a finished one computes nothing."""
    wanted, directory = ObservationRequest(layers=(2,), generate=True, top_tokens=5), tmp_path / "o"
    first = observe(model, mixed, directory, CONFIG, wanted)
    batches = [[i.id for i in b] for b in plan_batches(mixed.items, CONFIG.batch_size)]
    assert forwards == batches and len(batches) == 5
    (directory / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"not finished \(no manifest\.json\)"):
        read_observations(directory)
    (directory / "shard-00001.safetensors").unlink()
    (directory / ".shard-00001.safetensors.77.tmp").write_bytes(b"half")
    forwards.clear()
    second = observe(model, mixed, directory, CONFIG, wanted)
    assert forwards == batches[2:4]
    forwards.clear()
    third = observe(model, mixed, directory, CONFIG, wanted)
    assert not forwards
    for again in (second, third, read_observations(directory, first.ids)):
        assert again.ids == first.ids and again.answers == first.answers
        assert torch.equal(again.residuals[2], first.residuals[2]) and torch.equal(again.scores, first.scores)
        assert torch.equal(again.top_logps, first.top_logps) and torch.equal(again.top_tokens, first.top_tokens)


def test_observations_of_something_else_are_refused_with_both_fingerprints(model, mixed, tmp_path, forwards):
    """Other items, layers, batches, adapters or media; ``replace`` observes again instead."""
    few, directory = replace(mixed, items=mixed.items[:3]), tmp_path / "o"
    observe(model, few, directory, CONFIG, ObservationRequest(layers=(1,), extra={"adapter": "a"}))
    old = json.loads((directory / "request.json").read_text())["fingerprint"]
    other_text = replace(few.items[0], messages=[{"role": "user", "content": "Another question?"}])
    changes = {
        "items": (replace(few, items=(other_text, *few.items[1:])), CONFIG, ObservationRequest(layers=(1,), extra={"adapter": "a"})),
        "layers": (few, CONFIG, ObservationRequest(layers=(2,), extra={"adapter": "a"})),
        "batch_size": (few, replace(CONFIG, batch_size=2), ObservationRequest(layers=(1,), extra={"adapter": "a"})),
        "adapter": (few, CONFIG, ObservationRequest(layers=(1,), extra={"adapter": "b"})),
        "blank": (few, CONFIG, ObservationRequest(layers=(1,), blank=("image", "audio"), extra={"adapter": "a"})),
        "generate": (few, CONFIG, ObservationRequest(layers=(1,), generate=True, extra={"adapter": "a"})),
    }
    forwards.clear()
    for key, (items, config, wanted) in changes.items():
        with pytest.raises(ValueError, match=f"holds observation {old}, and this run asks for [0-9a-f]{{16}} .*{key}: ") as error:
            observe(model, items, directory, config, wanted)
        assert "delete" in str(error.value) and json.loads((directory / "request.json").read_text())["fingerprint"] == old
    assert not forwards
    found = observe(model, *changes["layers"][:1], directory, *changes["layers"][1:], replace=True)
    assert forwards and set(found.residuals) == {2}
    assert set(read_observations(directory).residuals) == {2}


def test_labels_do_not_change_an_observation(model, mixed, tmp_path, forwards):
    """Unlabelled items are the same items."""
    few = replace(mixed, items=mixed.items[:2])
    observe(model, few, tmp_path / "o", CONFIG, ObservationRequest())
    forwards.clear()
    observe(model, few.unlabelled(), tmp_path / "o", CONFIG, ObservationRequest())
    assert not forwards


def test_blanked_media_make_all_clips_alike(model, digits, tmp_path):
    """Two clips of the same sizes under the same question differ with their media and agree without."""
    first, others = digits.items[0], [i for i in digits.items if i.clip != digits.items[0].clip]
    swapped = []
    for item in (first, *others[:12:4]):
        content = [*item.messages[0]["content"][:1], *first.messages[0]["content"][2:]]  # its own image, the first's text
        swapped.append(replace(first, id=item.id, clip=item.clip, messages=[{"role": "user", "content": content}]))
    items = replace(digits, items=tuple(swapped))
    seen = observe(model, items, tmp_path / "seen", CONFIG, ObservationRequest(layers=(3,)))
    blank = observe(model, items, tmp_path / "blank", CONFIG, ObservationRequest(layers=(3,), blank=("image", "audio")))
    assert (blank.scores - blank.scores[0]).abs().max() < 1e-5
    assert (seen.scores[1:] - seen.scores[0]).abs().max(1).values.min() > 1e-4
    assert (seen.residuals[3] - blank.residuals[3]).abs().max() > 1e-3


def test_a_half_precision_model_stores_half_precision_residuals(tiny_checkpoint, model, mixed, tmp_path):
    """Scores stay float32, and near those of the float32 model."""
    half = load_model(ModelConfig(path=str(tiny_checkpoint), dtype="bfloat16"))
    found = observe(half, mixed, tmp_path / "o", CONFIG, ObservationRequest(layers=(2,), generate=True))
    assert found.residuals[2].dtype == torch.bfloat16 and found.scores.dtype == torch.float32
    full = forward_batches(model, plan_batches(mixed.items, 4), model.media(mixed), CONFIG, ObservationRequest(layers=(2,))).take(found.ids)
    finite = torch.isfinite(full.scores)
    assert torch.equal(finite, torch.isfinite(found.scores))
    assert (found.scores - full.scores)[finite].abs().max() < 0.3
    torch.testing.assert_close(found.residuals[2].float(), full.residuals[2], atol=0.05, rtol=0.05)
    with pytest.raises(ValueError, match=r"dtype: 'torch\.bfloat16' there, 'torch\.float32' now"):
        observe(model, mixed, tmp_path / "o", CONFIG, ObservationRequest(layers=(2,), generate=True))


def test_what_is_not_finite_is_refused_with_the_item(loaded, mixed, tmp_path):
    """And no shard of it is written."""
    with torch.no_grad():
        loaded.layers[2].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=f"item '{mixed.items[0].id}': .* is not finite; try model.dtype"):
        observe(loaded, mixed, tmp_path / "o", CONFIG, ObservationRequest(layers=(3,)))
    assert not list((tmp_path / "o").glob("shard*"))


def test_taking_items_keeps_everything_together(model, mixed, tmp_path):
    """In the order asked for; what was not observed is an error."""
    found = observe(model, mixed, tmp_path / "o", CONFIG, ObservationRequest(layers=(1,), generate=True, top_tokens=2))
    ids = [found.ids[5], found.ids[0]]
    part = found.take(ids)
    assert part.ids == ids and part.answers == [found.answers[5], found.answers[0]]
    for whole, piece in ((found.scores, part.scores), (found.residuals[1], part.residuals[1]), (found.top_logps, part.top_logps)):
        assert torch.equal(piece, whole[[5, 0]])
    with pytest.raises(KeyError):
        found.take(["nobody"])
    with pytest.raises(ValueError, match=r"1 items were never observed, e\.g\. \['nobody'\]"):
        read_observations(tmp_path / "o", ["nobody"])
    shutil.rmtree(tmp_path / "o")


@pytest.mark.parametrize("name", ["batch_size", "shard_batches", "max_new_tokens"])
def test_settings_that_cannot_work_are_refused(name):
    """By name, when the configuration is read."""
    with pytest.raises(ValueError, match=f"observe.{name} is 0"):
        ObserveConfig(**{name: 0})


def test_runs_share_what_they_observe_of_the_base_model(model, mixed, tmp_path, forwards):
    """The second run computes nothing; another request finds nothing; what is unfinished is not taken."""
    shared, wanted = tmp_path / "shared", ObservationRequest(layers=LAYERS, generate=True)
    first = observe(model, mixed, tmp_path / "a" / "base", CONFIG, wanted, shared=shared)
    spent = len(forwards)
    second = observe(model, mixed, tmp_path / "b" / "base", CONFIG, wanted, shared=shared)
    assert len(forwards) == spent and second.answers == first.answers
    assert all(torch.equal(first.residuals[layer], second.residuals[layer]) for layer in LAYERS)
    manifest = json.loads((tmp_path / "b" / "base" / "manifest.json").read_text())
    (place,) = shared.iterdir()
    assert manifest["taken_from"] == str(place) and manifest["cpu_seconds"] > 0
    observe(model, mixed, tmp_path / "c" / "base", CONFIG, ObservationRequest(layers=LAYERS), shared=shared)
    assert len(forwards) == 2 * spent and len(list(shared.iterdir())) == 2
    (place / "manifest.json").unlink()
    observe(model, mixed, tmp_path / "d" / "base", CONFIG, wanted, shared=shared)
    assert len(forwards) == 3 * spent and (place / "manifest.json").is_file()
    assert not list(shared.rglob(".*"))


def test_other_versions_are_other_code(model, mixed, tmp_path, forwards, monkeypatch):
    """Refused with both named; observed again where it is replaced; taken as it is where any will do."""
    few, directory, wanted = replace(mixed, items=mixed.items[:3]), tmp_path / "o", ObservationRequest(layers=(1,))
    first = observe(model, few, directory, CONFIG, wanted)
    assert json.loads((directory / "manifest.json").read_text())["versions"] == module.versions_now()
    now = module.versions_now() | {"transformers": "9.9.9", "torch": "8.8.8"}
    monkeypatch.setattr(module, "versions_now", lambda: dict(now))
    forwards.clear()
    with pytest.raises(
        ValueError, match=r"torch \S+ there, 8\.8\.8 now, transformers \S+ there, 9\.9\.9 now\. Install .*observe\.versions any"
    ):
        observe(model, few, directory, CONFIG, wanted)
    taken = observe(model, few, directory, replace(CONFIG, versions="any"), wanted)
    assert not forwards and torch.equal(taken.scores, first.scores)
    observe(model, few, directory, CONFIG, wanted, replace=True)
    assert forwards and json.loads((directory / "manifest.json").read_text())["versions"] == now
    with pytest.raises(ValueError, match=r"observe.versions is 'some'; choose one of \['same', 'any'\]"):
        ObserveConfig(versions="some")


def test_an_observation_of_two_versions_says_so_and_is_not_left_for_other_runs(model, mixed, tmp_path, monkeypatch):
    few, directory, wanted, before = replace(mixed, items=mixed.items[:9]), tmp_path / "o", ObservationRequest(), module.versions_now()
    small = replace(CONFIG, batch_size=2, shard_batches=1, versions="any")
    observe(model, few, directory, small, wanted)
    (directory / "manifest.json").unlink()
    (directory / "shard-00001.safetensors").unlink()
    monkeypatch.setattr(module, "versions_now", lambda: before | {"gapclose": "9.9.9"})
    observe(model, few, directory, small, wanted, shared=tmp_path / "shared")
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["earlier_versions"] == [before] and manifest["versions"]["gapclose"] == "9.9.9"
    assert not list(tmp_path.glob("shared/*"))
