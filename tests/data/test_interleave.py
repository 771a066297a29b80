"""Films with their sound in the order of time: what processor and model each lay out agrees, alone and in a batch, whatever a film's pace."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gapclose.data.digits.videos import write_film
from gapclose.data.interleave import interleave, is_interleaved
from gapclose.data.item_set import Framing, ItemSet
from gapclose.data.items import Item, Option
from gapclose.models.interleaved_inputs import _rate, _together, interleave_fault
from gapclose.models.loading import LoadedModel
from gapclose.models.processing import media_signature
from gapclose.observe import prefix_cache as shared_prefix
from gapclose.observe.batching import plan_batches
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import forward_batches
from gapclose.observe.request import ObservationRequest
from gapclose.pipeline.cli import main
from gapclose.training.collator import Collator
from gapclose.training.sampler import Example

pytestmark = pytest.mark.usefixtures("no_outline")

pytest.importorskip("av")
RATE = 16_000
LONG = {"a": (5.2, 10), "b": (2.6, 10), "c": (4.4, 25)}
"""film -> seconds and frames a second"""


def asked(ident: str, film: str, sound: str, question: str) -> Item:
    content = [{"type": "video", "path": film}, {"type": "audio", "path": sound}, {"type": "text", "text": question}]
    options = [Option(text=t, concept=c) for t, c in (("odd", "x"), ("an even number", "y"))]
    return Item(id=ident, clip=film, split="fit", modality="v", messages=[{"role": "user", "content": content}], options=options)


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> ItemSet:
    """Three films of other lengths and paces with noise for sound, one question each."""
    root, rng = tmp_path_factory.mktemp("films"), np.random.default_rng(0)
    for name, (seconds, pace) in LONG.items():
        pictures = rng.integers(0, 255, (round(seconds * pace), 28, 28, 3), dtype=np.uint8)
        sound = (0.3 * rng.standard_normal(round(seconds * RATE))).astype(np.float32)
        write_film(root / f"{name}.mp4", pictures, sound, frames_a_second=pace)
    questions = ("Is it odd?", "The digit 3 is said. Is it odd or even?", "Odd or even?")
    items = tuple(asked(n, f"{n}.mp4", f"{n}.mp4", q) for n, q in zip(LONG, questions, strict=True))
    return interleave(ItemSet(root=root, name="m", concepts=("x", "y"), alarm=(), items=items, framing=Framing(frames=8)))


def test_film_and_sound_become_one_part(films):
    """Where they are one file's, one behind the other; both are still media of the item, to be checked, counted and blanked."""
    (part, _) = films.items[0].messages[0]["content"]
    assert part == {"type": "video", "path": "a.mp4", "sound": True}
    assert films.items[0].media == [("video", "a.mp4"), ("audio", "a.mp4")]
    assert media_signature(films.items[0]) == ("video", "audio", "interleaved")
    apart = replace(films, items=(asked("d", "a.mp4", "b.mp4", "Odd?"),))
    assert interleave(apart).items == apart.items and not is_interleaved(apart.items[0])
    assert [len(b) for b in plan_batches([*films, *apart], 8)] == [3, 1]


def runs(tokens: list[int], names: dict[int, str]) -> str:
    """``F F S F`` for runs of frame and sound tokens."""
    found = [names[t] for t in tokens if t in names]
    return " ".join(x for n, x in enumerate(found) if n == 0 or x != found[n - 1])


@pytest.fixture
def hearing(loaded) -> LoadedModel:
    """The tiny model with an extractor that takes six seconds, as many chunks of two as the published one has of thirty."""
    from transformers import WhisperFeatureExtractor

    loaded.processor.feature_extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=6)
    return loaded


def test_a_padded_batch_gives_what_its_items_give_alone(hearing, films):
    """Scores of options of one token and several, residuals of every layer and generated answers, as the whole prompt gives them."""
    loaded = hearing
    batch, config = list(films), ObserveConfig(max_new_tokens=3, share_prefix=False)
    wanted = ObservationRequest(layers=[0, 3, 5], generate=True)
    together = forward_batches(loaded, [batch], loaded.media(films), config, wanted)
    alone = forward_batches(loaded, [[i] for i in batch], loaded.media(films), config, wanted)
    for layer in wanted.layers:
        assert torch.allclose(together.residuals[layer], alone.residuals[layer], atol=1e-4)
    assert torch.allclose(together.scores, alone.scores, atol=1e-4) and together.answers == alone.answers
    prompt = loaded.prompts(batch, loaded.media(films))
    tokens = loaded.tokenizer.convert_tokens_to_ids
    names = {tokens("<|VIDEO|>"): "F", tokens("<|AUDIO|>"): "S"}
    laid = [runs(row, names) for row in prompt["input_ids"].tolist()]
    assert laid == ["F S F S F S", "F S F S", "F S F S"]  # two seconds each; behind the last frame there is sound alone
    after = replace(films, items=tuple(asked(i.id, i.clip, i.clip, i.text) for i in films))
    plain = forward_batches(loaded, [list(after)], loaded.media(after), config, wanted)
    assert not torch.allclose(plain.residuals[5], together.residuals[5], atol=1e-3)
    assert loaded.prompts(list(after), loaded.media(after))["input_ids"].shape == prompt["input_ids"].shape
    for kind in ("video", "audio"):
        blank = forward_batches(loaded, [batch], loaded.media(films, blank=(kind,)), config, wanted)
        assert not torch.allclose(together.residuals[5], blank.residuals[5], atol=1e-4)


def test_questions_about_one_film_follow_on_one_reading_of_it(hearing, films, monkeypatch):
    """Frames and sound in the order of time are read once; what follows goes on where they end in time."""
    read, real = [], shared_prefix.read_prefix
    monkeypatch.setattr(shared_prefix, "read_prefix", lambda *given: (read.append(len(given[-1])), real(*given))[1])
    batch = [interleave(films).items[0], *(replace(i, id=f"{i.id}-more") for i in interleave(films).items)]
    batch += [replace(i, id=f"{i.id}-other", messages=retold(i)) for i in batch[1:]]
    config, wanted = ObserveConfig(batch_size=8, max_new_tokens=3, share_prefix=False), ObservationRequest(layers=[0, 3, 5], generate=True)
    shared, whole = (
        forward_batches(hearing, [batch], hearing.media(films), how, wanted) for how in (replace(config, share_prefix=True), config)
    )
    for layer in wanted.layers:
        assert torch.allclose(shared.residuals[layer], whole.residuals[layer], atol=1e-5)
    assert torch.allclose(shared.scores, whole.scores, atol=1e-5) and shared.answers == whole.answers
    assert read == [4, 7]  # a first try, and the batch


def retold(item: Item) -> list[dict]:
    return [{"role": "user", "content": [*item.messages[0]["content"][:-1], {"type": "text", "text": "What is it, then, and why?"}]}]


def test_positions_follow_time_token_by_token(hearing, films):
    """A token's place in time, as the model has it, is that of its frame, or of its fortieth of a second of sound, counted from the first."""
    loaded = hearing
    (item,), media = films.items[:1], loaded.media(films)
    prompt = loaded.prompts([item], media)
    inner = next(m for m in loaded.model.modules() if hasattr(m, "get_rope_index"))
    lengths = prompt["feature_attention_mask"].sum(1)
    positions, _ = inner.get_rope_index(
        prompt["input_ids"], None, prompt["video_grid_thw"], prompt["attention_mask"], True, lengths, prompt["video_second_per_grid"]
    )
    time, ids = positions[0, 0], prompt["input_ids"][0]
    tokens = loaded.tokenizer.convert_tokens_to_ids
    frames, sound = time[ids == tokens("<|VIDEO|>")], time[ids == tokens("<|AUDIO|>")]
    grid = prompt["video_second_per_grid"][0].item()
    assert grid == pytest.approx(2 * media.load("video", "a.mp4").seconds, abs=2e-3)
    first = min(frames.min(), sound.min())
    per_grid = len(frames) // 4
    assert (frames - first).tolist() == [int(t * grid * 25) for t in range(4) for _ in range(per_grid)]
    assert (sound - first).tolist() == list(range(len(sound)))


def test_it_trains(hearing, films):
    """Answers of several tokens behind an interleaved prompt: the collator's rows give finite losses under both options."""
    from gapclose.training.trainer import term_sums

    loaded = hearing
    examples = [Example(item=i, term="consistency", weights=np.array([0.4, 0.6])) for i in films]
    batch = Collator(loaded, loaded.media(films))(examples)
    (part,) = batch["parts"]
    sums = term_sums(loaded.model, part)
    sums.sum().backward()
    assert torch.isfinite(sums).all() and sums[0] > 0


@pytest.mark.parametrize("seconds", [0.04, 0.1, 1 / 3, 0.5, 1.0, 1.5, 6.7])
def test_processor_and_model_round_a_pace_alike(seconds):
    """Exactly, in double and in single precision, frame by frame for an hour."""
    spacing = 2 / _rate(seconds, 2)
    assert spacing / 2 == pytest.approx(seconds, abs=2e-3)
    grids = np.arange(min(50_000, int(3600 / spacing)))
    double = grids * spacing * 25
    single = (torch.arange(len(grids)) * torch.tensor(spacing).float() * 25).numpy()
    assert np.array_equal(double // 50, single // 50)


def test_prompts_of_other_lengths_become_one_batch():
    """Tokens end together; features of sounds begin together."""
    one = {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 2), "input_features": torch.ones(1, 3, 4)}
    two = {"input_ids": torch.tensor([[3]]), "attention_mask": torch.ones(1, 1), "input_features": torch.ones(1, 3, 2)}
    found = _together([one, two], pad=9)
    assert found["input_ids"].tolist() == [[1, 2], [9, 3]] and found["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert found["input_features"].shape == (2, 3, 4) and found["input_features"][1, 0].tolist() == [1, 1, 0, 0]


def test_what_cannot_be_interleaved_is_said(loaded, films):
    """A family that has no such prompts, and an item with more than one film and its sound."""
    fault = interleave_fault(SimpleNamespace(), films.items[0])
    assert fault is not None and "data.interleave is set, and SimpleNamespace takes film and sound one after the other" in fault
    content = films.items[0].messages[0]["content"]
    two = replace(films.items[0], messages=[{"role": "user", "content": [content[0], content[0], content[1]]}])
    fault = interleave_fault(loaded.processor, two)
    assert fault is not None and "it has video and audio and video and audio" in fault
    with pytest.raises(ValueError, match="item 'a': it has video and audio and video"):
        loaded.prompts([two], loaded.media(films))
    assert interleave_fault(loaded.processor, films.items[0]) is None


def test_it_is_a_setting(tiny_checkpoint, tmp_path, capsys):
    """`gapclose validate` takes it of a set of films, and the set is another one to a run."""
    from gapclose.core.errors import ErrorCollector
    from gapclose.data.config import DataConfig
    from gapclose.data.digits import videos as world
    from gapclose.data.load import read_data

    world.write(tmp_path / "set", clips=8)
    command = ["validate", "--data.path", str(tmp_path / "set"), "--model.path", str(tiny_checkpoint), "--data.shares", "[0.5,0,0,0.5]"]
    command += ["--probe.folds", "2", "--data.interleave", "true"]
    assert main(command) == 0, capsys.readouterr().err
    plain, woven = (read_data(tmp_path / "set", DataConfig(interleave=on), ErrorCollector("it")) for on in (False, True))
    assert all(is_interleaved(i) for i in woven) and woven.fingerprint() != plain.fingerprint()
