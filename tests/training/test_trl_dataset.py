"""What TRL is handed: prompts without paths, images where there are any; figures of an epoch; a model that only sees, and one that only reads."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader, skip_first_batches
from digits_model import tiny_model
from torch.utils.data import DataLoader

from gapclose.core.errors import ErrorCollector
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item
from gapclose.data.jsonl import read_items, write_items
from gapclose.models.config import ModelConfig
from gapclose.models.loading import LoadedModel, load_model
from gapclose.training.config import DpoConfig, GrpoConfig, LoraConfig, TrainConfig
from gapclose.training.lora import add_lora, enable_checkpointing
from gapclose.training.trl.dataset import OrderOfEpoch, check_supported_media, epoch_figures, messages_for_trl
from gapclose.training.trl.dpo import Pair, make_dpo_trainer
from gapclose.training.trl.grpo import Reward, make_grpo_trainer

TRAIN = TrainConfig(epochs=1, global_batch_size=8, micro_batch_size=4, learning_rate=0.01, warmup=0, logging_steps=1)


@pytest.fixture(scope="module")
def images(images_directory) -> ItemSet:
    return read_items(images_directory).select(split="train", purpose="gap").unlabelled()


@pytest.fixture(scope="module")
def seeing(tmp_path_factory) -> Path:
    """A random-weight Qwen2.5-VL of the real class."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    torch.manual_seed(0)
    directory, tokenizer, size = (
        tmp_path_factory.mktemp("seeing"),
        tiny_model.build_tokenizer(),
        {"shortest_edge": 784, "longest_edge": 784},
    )
    tokenizer.image_token, tokenizer.video_token = "<|IMAGE|>", "<|VIDEO|>"
    token = {name: tokenizer.convert_tokens_to_ids(text) for name, text in tiny_model.MEDIA_TOKENS.items()}
    thinker = tiny_model.build_model(tokenizer, width=48, layers=3, tower=32).config
    config = Qwen2_5_VLConfig(
        text_config=thinker.text_config.to_dict() | {"model_type": "qwen2_5_vl_text"},
        vision_config=thinker.vision_config.to_dict() | {"model_type": "qwen2_5_vl"},
        image_token_id=token["image_token"],
        video_token_id=token["video_token"],
        vision_start_token_id=token["vision_bos_token"],
        vision_end_token_id=token["vision_eos_token"],
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(directory)
    Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(size=size), tokenizer, Qwen2VLVideoProcessor(size=size), chat_template=tiny_model.CHAT_TEMPLATE
    ).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def reading_only(tmp_path_factory) -> Path:
    """A random-weight Qwen2 with a tokenizer and no processor."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    directory, tokenizer = tmp_path_factory.mktemp("reading"), tiny_model.build_tokenizer()
    tokenizer.chat_template = tiny_model.CHAT_TEMPLATE
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), max_position_embeddings=256, **sizes, **ends)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def without_image(item: Item) -> Item:
    return replace(item, messages=[{"role": "user", "content": item.text}])


class Longer(Reward):
    """Rewards length: a random model hardly ever names an option."""

    def of(self, place: int, answer: str) -> float:
        return float(len(answer))


def trained(loaded: LoadedModel, objective: str, items: ItemSet, directory: Path, train: TrainConfig = TRAIN) -> list[dict]:
    """One epoch of an objective with made-up preferences: for the last option, over the first. Returns what was logged."""
    add_lora(loaded, LoraConfig(r=4), range(1, len(loaded.layers) + 1), seed=0)
    if train.gradient_checkpointing:
        enable_checkpointing(loaded)
    media, common = loaded.media(items), {"seed": 0, "callbacks": ()}
    if objective == "dpo":
        pairs = [Pair(item=i, chosen=len(i.options) - 1, rejected=0) for i in items]
        trainer = make_dpo_trainer(loaded, pairs, media, train, DpoConfig(), directory, **common)
    else:
        reward = Longer(items=items.items, reading=np.tile([0.1, 0.9], (len(items), 1)), concepts=items.concepts)
        config = GrpoConfig(num_generations=4)
        trainer = make_grpo_trainer(loaded, reward, media, train, config, directory, max_new_tokens=2, **common)
    trainer.train()
    assert all(torch.isfinite(p).all() for p in loaded.model.parameters())
    assert any(p.abs().max() > 0 for n, p in loaded.model.named_parameters() if "lora_B" in n)
    return [line for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("objective", ["dpo", "grpo"])
def test_a_vision_model_is_trained(objective, seeing, images, tmp_path):
    """Of the real class."""
    logged = trained(load_model(ModelConfig(path=str(seeing))), objective, replace(images, items=images.items[:16]), tmp_path)
    assert len(logged) == {"dpo": 2, "grpo": 8}[objective]


def test_dpo_takes_items_without_an_image_among_those_with_one_and_grpo_says_that_it_does_not(seeing, images, tmp_path):
    """Which TRL would find out in the middle of a training."""
    some = replace(images, root=tmp_path, items=tuple(without_image(i) if n % 3 == 1 else i for n, i in enumerate(images.items[:8])))
    write_items(some, tmp_path)
    problems = ErrorCollector("the items")
    check_supported_media(some, "dpo", "DPOTrainer", problems)
    assert not problems and trained(load_model(ModelConfig(path=str(seeing))), "dpo", replace(some, root=images.root), tmp_path / "run")
    check_supported_media(some, "grpo", "GRPOTrainer", problems)
    assert f"3 have none (first: {some.items[1].id!r}, {tmp_path / 'items.jsonl'}:2)" in problems.messages[0]


@pytest.mark.parametrize("objective", ["dpo", "grpo"])
def test_a_model_that_only_reads_is_trained(objective, reading_only, images, tmp_path):
    """No processor, no images, messages as plain text."""
    items = replace(images, items=tuple(without_image(i) for i in images.items[:8]))
    assert trained(load_model(ModelConfig(path=str(reading_only))), objective, items, tmp_path)


@pytest.mark.parametrize("objective", ["dpo", "grpo"])
def test_recomputing_activations_changes_nothing(objective, seeing, images, tmp_path):
    """The same losses with train.gradient_checkpointing as without."""
    items = replace(images, items=images.items[:8])
    ways = (TRAIN, replace(TRAIN, gradient_checkpointing=True))
    one, two = (trained(load_model(ModelConfig(path=str(seeing))), objective, items, tmp_path / str(n), w) for n, w in enumerate(ways))
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in two], abs=1e-6)


def test_dpo_asks_what_is_observed(seeing, images, tmp_path):
    """The same prompt tokens and pixels as an observation of the item, then the option and the end of the turn, and nothing behind it."""
    loaded = load_model(ModelConfig(path=str(seeing)))
    add_lora(loaded, LoraConfig(r=4), [3], seed=0)
    pairs = [Pair(item=i, chosen=len(i.options) - 1, rejected=0) for i in images.items[:4]]
    media, common = loaded.media(images), {"seed": 0, "callbacks": ()}
    trainer = make_dpo_trainer(loaded, pairs, media, TRAIN, DpoConfig(), tmp_path, **common)
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(4)])
    answered, asked = batch["completion_mask"].bool(), batch["attention_mask"].bool()
    for row, (pair, option) in enumerate([*((p, p.chosen) for p in pairs), *((p, p.rejected) for p in pairs)]):
        prompt = loaded.prompts([pair.item], media)
        assert batch["input_ids"][row][asked[row] & ~answered[row]].tolist() == prompt["input_ids"][0].tolist()
        tokens = batch["input_ids"][row][answered[row]].tolist()
        wanted = loaded.option_tokens(pair.item.options[option].text)
        assert tokens == [*wanted, loaded.tokenizer.eos_token_id]
        patches = len(prompt["pixel_values"])
        assert torch.equal(batch["pixel_values"][row * patches : (row + 1) * patches], prompt["pixel_values"])


def test_messages_keep_their_order_and_lose_their_paths():
    """A processor gets parts, a tokenizer strings."""
    content = [{"type": "image", "path": "a.png"}, {"type": "text", "text": "Which?"}]
    item = Item(
        id="a", clip="a", split="train", modality="vision", options=[],
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}],
    )  # fmt: skip
    parts = messages_for_trl(item, multimodal=True)
    assert parts[0] == {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert parts[1]["content"] == [{"type": "image"}, {"type": "text", "text": "Which?"}] and content[0]["path"] == "a.png"
    text = replace(item, messages=[item.messages[0], {"role": "user", "content": content[1:]}])
    assert [m["content"] for m in messages_for_trl(text, multimodal=False)] == ["Be brief.", "Which?"]


def test_figures_of_an_epoch_are_means_over_its_steps():
    """A line stands for the steps since the one before; other epochs, times and what is undefined are left out."""
    history = [
        {"epoch": 0.4, "step": 2, "loss": 1.0, "kl": 0.0, "step_time": 9.0},
        {"epoch": 1.0, "step": 5, "loss": 2.0, "kl": 1.0, "reward": None},
        {"epoch": 1.2, "step": 6, "loss": 7.0, "kl": 7.0},
        {"epoch": 2.0, "step": 10, "loss": 3.0, "kl": float("nan")},
        {"epoch": 2.0, "step": 10, "train_loss": 5.0},
    ]
    assert epoch_figures(history, 1) == pytest.approx({"loss": 1.6, "kl": 0.6})
    assert epoch_figures(history, 2) == pytest.approx({"loss": 3.8, "kl": 7.0}) and epoch_figures(history, 3) == {}


@pytest.mark.parametrize("done", [1.25, 2.0, 2.5])
def test_the_rest_of_a_later_epoch_is_in_its_own_order_on_two_processes(done):
    """As accelerate cuts the batches of two processes, with what was trained before skipped, however the epoch is told."""
    items, batch = list(range(32)), 2

    def loader(rank: int) -> Any:
        sampler = SeedableRandomSampler(items, data_seed=5)
        plain = DataLoader(items, sampler=sampler, batch_size=batch)
        return prepare_data_loader(plain, device=torch.device("cpu"), num_processes=2, process_index=rank, put_on_device=False)

    for rank in (0, 1):
        whole, resumed = loader(rank), loader(rank)
        whole.set_epoch(int(done))
        expected = [part.tolist() for part in whole]
        skipped = round(done % 1 * len(expected))
        tell = OrderOfEpoch().on_epoch_begin
        tell(None, SimpleNamespace(epoch=done), None, train_dataloader=resumed)
        rest = skip_first_batches(resumed, skipped) if skipped else resumed
        rest.set_epoch(int(done))  # which reaches no sampler behind two wrappers
        assert [part.tolist() for part in rest] == expected[skipped:]
