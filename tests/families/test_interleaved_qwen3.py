"""Qwen3-Omni lays out frames and sound token by token: alone and in a batch the same, at the places in time that its model gives them."""

import numpy as np
import pytest
import torch
from tiny_families import QWEN_OMNI_CHAT, ROWS, spread

from gapclose.data.digits.videos import write_film
from gapclose.data.interleave import interleave
from gapclose.data.item_set import Framing, ItemSet
from gapclose.data.items import Item, Option
from gapclose.models.families import apply_family_fixes
from gapclose.models.loading import LoadedModel
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import forward_batches
from gapclose.observe.request import ObservationRequest

pytest.importorskip("av")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    torch.manual_seed(0)
    processor, model = ROWS["Qwen3-Omni"].build()
    spread(model)
    processor.chat_template = QWEN_OMNI_CHAT.replace(
        "{% elif part['type'] == 'audio' %}",
        "{% elif part['type'] == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>{% elif part['type'] == 'audio' %}",
    )
    processor.tokenizer.padding_side = "left"
    for module in model.modules():  # as the published checkpoints have it; the class says 25, its processor 13
        if hasattr(getattr(module, "config", None), "position_id_per_seconds"):
            module.config.position_id_per_seconds = 13
    apply_family_fixes(model, processor)
    return LoadedModel(model=model.eval(), processor=processor, path="", fingerprint="")


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> ItemSet:
    root, rng, items = tmp_path_factory.mktemp("films"), np.random.default_rng(0), []
    options = [Option(text=t, concept=c) for t, c in (("odd", "x"), ("an even number", "y"))]
    for name, seconds in (("a", 3.1), ("b", 1.6), ("c", 2.4)):
        pictures = rng.integers(0, 255, (round(seconds * 10), 32, 32, 3), dtype=np.uint8)
        write_film(root / f"{name}.mp4", pictures, (0.3 * rng.standard_normal(round(seconds * 16_000))).astype(np.float32))
        content = [{"type": k, "path": f"{name}.mp4"} for k in ("video", "audio")] + [
            {"type": "text", "text": "Odd or even? " * len(items)}
        ]
        messages = [{"role": "user", "content": content}]
        items.append(Item(id=name, clip=name, split="fit", modality="v", messages=messages, options=options))
    return interleave(ItemSet(root=root, name="m", concepts=("x", "y"), alarm=(), items=tuple(items), framing=Framing(frames=6)))


def test_a_padded_batch_gives_what_its_items_give_alone(loaded, films):
    batch, config, wanted = (
        list(films),
        ObserveConfig(max_new_tokens=3, share_prefix=False),
        ObservationRequest(layers=[0, 2, 4], generate=True),
    )
    together = forward_batches(loaded, [batch], loaded.media(films), config, wanted)
    alone = forward_batches(loaded, [[i] for i in batch], loaded.media(films), config, wanted)
    for layer in wanted.layers:
        torch.testing.assert_close(together.residuals[layer], alone.residuals[layer], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.scores, alone.scores, atol=1e-4, rtol=0)
    assert together.answers == alone.answers


def test_every_token_stands_where_its_time_is(loaded, films):
    """Rising positions over frames and sound together, thirteen a second, each kind at its own pace."""
    inner = next(m for m in loaded.model.modules() if hasattr(m, "get_rope_index"))
    for item in films:
        prompt = loaded.prompts([item], loaded.media(films))
        lengths = prompt["feature_attention_mask"].sum(1)
        positions, _ = inner.get_rope_index(
            prompt["input_ids"], None, prompt["video_grid_thw"], prompt["attention_mask"], True, lengths, prompt["video_second_per_grid"]
        )
        time, ids = positions[0, 0], prompt["input_ids"][0]
        tokens = loaded.tokenizer.convert_tokens_to_ids
        shown, heard = ids == tokens("<|VIDEO|>"), ids == tokens("<|AUDIO|>")
        woven = time[shown | heard]
        assert (woven.diff() >= 0).all()
        grids = int(prompt["video_grid_thw"][0, 0])
        spacing = prompt["video_second_per_grid"][0] * 13
        assert time[shown].unique() == pytest.approx(woven[0] + torch.arange(grids) * spacing)
        assert (time[heard] - woven[0]).tolist() == list(range(int(heard.sum())))
