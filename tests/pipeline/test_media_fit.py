"""Media that the model cannot take by their sizes are named before any weight is read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.data.media import survey
from gapclose.models.config import ModelConfig
from gapclose.models.loading import load_processor
from gapclose.pipeline import media_fit
from gapclose.pipeline.cli import main
from gapclose.pipeline.media_fit import PASSES, Trial, only, unfit

pytestmark = pytest.mark.usefixtures("no_outline")

RATE = 16_000


def content(*media: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*({"type": k, "path": p} for k, p in media), {"type": "text", "text": "Odd?"}]}]


def set_of(root: Path, *groups: list[tuple[str, str]]) -> ItemSet:
    common = {"clip": "c", "split": "fit", "modality": "v", "options": [Option(text=t, concept=t) for t in "ab"]}
    items = tuple(Item(id=f"item{n}", messages=content(*media), **common) for n, media in enumerate(groups))
    return ItemSet(root=root, name="n", concepts=("a", "b"), alarm=(), items=items)


def sound(root: Path, samples: int) -> tuple[str, str]:
    soundfile.write(root / f"{samples}.wav", np.random.default_rng(samples).normal(0, 0.1, samples), RATE)
    return "audio", f"{samples}.wav"


def image(root: Path, width: int, height: int) -> tuple[str, str]:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / f"{width}x{height}.png")
    return "image", f"{width}x{height}.png"


def found_in(items: ItemSet, checkpoint: Path) -> dict[str, str]:
    config = ModelConfig(path=str(checkpoint), dtype="float32")
    return {path: fault for (_, path), fault in unfit(items, config, load_processor(config), survey(items).sizes).items()}


def test_a_sound_of_which_no_token_is_made_and_an_image_that_is_refused_are_named(tiny_checkpoint, tmp_path):
    """Qwen2.5-Omni: below three frames of 10 ms nothing is heard, and the model would answer without the sound; beyond 1 : 200 its processor
    refuses an image. The part at fault is named, not the one beside it."""
    fine = image(tmp_path, 28, 28), sound(tmp_path, 8000)
    items = set_of(
        tmp_path,
        [fine[0], sound(tmp_path, 80)],
        [fine[0], sound(tmp_path, 240)],
        [image(tmp_path, 2, 1000), fine[1]],
        [fine[0], sound(tmp_path, 400)],
        [image(tmp_path, 1, 150), fine[1]],
        [image(tmp_path, 1, 1), fine[1]],
    )
    found = found_in(items, tiny_checkpoint)
    assert set(found) == {"80.wav", "240.wav", "2x1000.png"}
    assert found["80.wav"] == (
        "the model cannot take a sound of 0.005 s: Qwen2_5OmniProcessor makes no token of it, so that the model would not notice it; make it "
        "longer, or remove the item"
    )
    assert "an image of 2 x 1000 pixels: Qwen2_5OmniProcessor fails (ValueError: absolute aspect ratio" in found["2x1000.png"]


def test_every_file_of_a_size_that_fails_is_named_and_few_sizes_are_tried(tiny_checkpoint, tmp_path, monkeypatch):
    """All too short ones, however many; of those that pass, a few at either end."""
    tried = []
    fault = Trial.fault
    monkeypatch.setattr(Trial, "fault", lambda self, entry, item: tried.append(entry) or fault(self, entry, item))
    short, long = list(range(10, 70)), list(range(1600, 1660))
    items = set_of(tmp_path, *([sound(tmp_path, n)] for n in (*short, *long)))
    (tmp_path / "copy.wav").write_bytes((tmp_path / "10.wav").read_bytes())
    items = set_of(tmp_path, *(i.media for i in items), [("audio", "copy.wav")])
    found = found_in(items, tiny_checkpoint)
    assert set(found) == {f"{n}.wav" for n in short} | {"copy.wav"}
    assert len(tried) == len(short) + 2 * PASSES


def family(name: str, directory: Path) -> Path:
    import sys

    import torch

    sys.path.insert(0, str(Path(__file__).parents[1] / "families"))
    from tiny_families import ROWS

    torch.manual_seed(0)
    processor, model = ROWS[name].build()
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Gemma 4", "Gemma4ForConditionalGeneration fails (RuntimeError: Calculated padded input size per channel"),
        ("Phi-4-multimodal", "Phi4MultimodalProcessor fails (RuntimeError: maximum size for tensor"),
        ("Nemotron-H-Omni", "makes values of it that are not finite (input_features)"),
        ("Qwen2-Audio", "makes no token of it"),
    ],
)
def test_each_family_fails_in_its_own_way_and_is_found_out_without_weights(name, says, tmp_path):
    """A convolution of the tower, the processor itself, a variance of one frame, a length that rounds to nothing."""
    items = set_of(tmp_path, [sound(tmp_path, 80)], [sound(tmp_path, 8000)])
    found = found_in(items, family(name, tmp_path / "model"))
    assert set(found) == {"80.wav"} and says in found["80.wav"]


def test_what_fails_whatever_the_size_is_not_blamed_on_the_media(tiny_checkpoint, tmp_path, monkeypatch):
    """A tower that cannot be run without values says nothing of a sound; a processor that fails always is told."""
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

    def fail(*args, **kwargs):
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(Qwen2_5OmniAudioEncoder, "forward", fail)
    items = set_of(tmp_path, [sound(tmp_path, 8000)])
    assert found_in(items, tiny_checkpoint) == {}
    monkeypatch.setattr("gapclose.models.loading.make_prompts", fail)
    assert "no kernel for this" in found_in(items, tiny_checkpoint)["8000.wav"]


def test_hooks_are_gone_afterwards(loaded):
    """Also where the model fails within."""
    with pytest.raises(KeyError), media_fit.up_to_decoder(loaded.model):
        assert loaded.layers[0]._forward_pre_hooks
        raise KeyError
    assert not loaded.layers[0]._forward_pre_hooks


def test_an_interleaved_film_is_tried_with_its_sound(tmp_path):
    part = {"type": "video", "path": "a.mp4", "sound": True}
    other = {"type": "image", "path": "a.png"}
    item = set_of(tmp_path, []).items[0]
    item.messages[0]["content"][:0] = [part, other]
    assert only(item, ("audio", "a.mp4")).media == [("video", "a.mp4"), ("audio", "a.mp4")]
    assert only(item, ("image", "a.png")).media == [("image", "a.png")]


@pytest.mark.parametrize("command", ["validate", "measure", "close"])
def test_every_command_tells_before_a_model_loads_and_may_skip(command, digits_directory, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    """With file and item; `data.on_error skip` leaves the item out."""
    import shutil

    monkeypatch.setattr("gapclose.pipeline.context.load_model", lambda config: pytest.fail("a model was loaded"))
    directory = tmp_path / "set"
    shutil.copytree(digits_directory, directory)
    lines = [json.loads(line) for line in (directory / "items.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["split"] == "fit")
    wav = next(p["path"] for m in first["messages"] for p in m["content"] if p["type"] == "audio")
    users = sum(wav in json.dumps(line) for line in lines)
    sound(directory, 80)
    (directory / "80.wav").replace(directory / wav)
    arguments = [command, "--data.path", str(directory), "--model.path", str(tiny_checkpoint), "--run_dir", str(tmp_path / "run")]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert f"{directory / wav}: item {first['id']!r}: the model cannot take a sound of 0.005 s" in message and "Traceback" not in message
    if command == "validate":
        assert main([*arguments, "--data.on_error", "skip"]) == 0
        assert f"({users} left out)" in capsys.readouterr().out
