"""The hidden-state cache: training and measuring from stored states gives what the whole model gives, and nothing is stored where it cannot be."""

from __future__ import annotations

import errno
import json
import math
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gapclose.data.item_set import ItemSet
from gapclose.data.items import Option
from gapclose.evaluation.run_records import read_records
from gapclose.models.config import ModelConfig
from gapclose.models.hooks import skip_layers
from gapclose.models.loading import LoadedModel, load_model
from gapclose.models.structure import decoder_layers, unwrap
from gapclose.observe import frozen_writer as trunk_fill
from gapclose.observe.batching import plan_batches
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import forward_batches
from gapclose.observe.frozen_cache import HiddenStateCache
from gapclose.observe.frozen_writer import write_cache
from gapclose.observe.request import ObservationRequest
from gapclose.pipeline.cli import main
from gapclose.training.collator import Collator
from gapclose.training.config import LoraConfig, TrainConfig
from gapclose.training.lora import add_lora
from gapclose.training.sampler import Example
from gapclose.training.trainer import make_trainer

FROZEN = 3
BATCH = 8
CONFIG = TrainConfig(epochs=2, global_batch_size=12, micro_batch_size=6, learning_rate=0.003, warmup=0.0, gold=0, logging_steps=1)


@pytest.fixture(scope="module")
def mixed(digits) -> ItemSet:
    """Train items, a third of them with options of several tokens, a third without sound."""
    chosen = []
    for n, item in enumerate(digits.select(split="train", purpose="gap").items[:18]):
        if n % 3 == 1:
            texts = ("an odd number", "an odd one", "even", "unseen detail here")
            item = replace(item, options=[Option(text=t, concept="standard") for t in texts], gold=0)
        if n % 3 == 2:
            content = [p for p in item.messages[0]["content"] if p["type"] != "audio"]
            item = replace(item, messages=[{"role": "user", "content": content}])
        chosen.append(item)
    return replace(digits, items=(*chosen, *digits.select(split="train", purpose="retain").items[:6]))


@pytest.fixture(scope="module")
def examples(mixed) -> list[Example]:
    draw, made = np.random.default_rng(0), []
    for item in mixed:
        if item.purpose == "retain":
            base = torch.randn(50, generator=torch.Generator().manual_seed(len(made))).log_softmax(-1)
            made.append(Example(item=item, term="retain", base_logps=base, base_tokens=torch.arange(50)))
        else:
            weights = draw.dirichlet(np.ones(len(item.options))) * (draw.random(len(item.options)) < 0.7)
            made.append(Example(item=item, term="consistency", weights=weights + 1e-3 * (weights.sum() == 0)))
    return made


def filled(loaded: LoadedModel, items: ItemSet, directory: Path, **how) -> HiddenStateCache | None:
    return write_cache(loaded, items, directory / "train", frozen=FROZEN, batch_size=BATCH, **how)


def trained(checkpoint: Path, items: ItemSet, examples: list[Example], directory: Path, *, cached: bool, **config) -> tuple[list, dict]:
    """Losses of every step, and the adapter."""
    loaded = load_model(ModelConfig(path=str(checkpoint), dtype="float32"))
    add_lora(loaded, LoraConfig(r=4, alpha=8), [4, 5], seed=0)
    trunk = filled(loaded, items, directory) if cached else None
    assert (trunk is not None) == cached
    if trunk:  # nothing may ask for media any more
        items = replace(items, root=directory / "nowhere")
    trainer = make_trainer(
        loaded, examples, loaded.media(items), replace(CONFIG, **config), directory / "checkpoints",
        n_train=len(items.select(purpose="gap")), seed=0, after_epoch=lambda epoch: None, trunk=trunk,
    )  # fmt: skip
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return losses, {n: p.detach().clone() for n, p in loaded.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_from_stored_states_has_the_losses_and_adapters_of_the_whole_model(
    tiny_checkpoint, mixed, examples, tmp_path, checkpointing
):
    more = {"gradient_checkpointing": checkpointing}
    losses, adapter = trained(tiny_checkpoint, mixed, examples, tmp_path / "plain", cached=False, **more)
    found, other = trained(tiny_checkpoint, mixed, examples, tmp_path / "cached", cached=True, **more)
    assert len(losses) == 4 and losses[0] != losses[-1]
    assert found == pytest.approx(losses, abs=1e-5)
    assert max(float((adapter[n] - other[n]).abs().max()) for n in adapter) < 1e-4
    assert any(float(p.abs().max()) > 1e-3 for n, p in adapter.items() if "lora_B" in n)


def test_scores_residuals_and_answers_are_those_of_the_whole_model(loaded, mixed, tmp_path):
    add_lora(loaded, LoraConfig(r=4), [4, 5], seed=0)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    layers, config = [2, 3, 4, 5], ObserveConfig(batch_size=6, max_new_tokens=3, share_prefix=False)
    trunk = filled(loaded, mixed, tmp_path, layers=[2, 3])
    batches, media = plan_batches(mixed.items, 6), loaded.media(mixed)
    wanted = {"layers": layers, "generate": True}
    plain = forward_batches(loaded, batches, media, config, ObservationRequest(**wanted))
    found = forward_batches(loaded, batches, media, config, ObservationRequest(**wanted, trunk=trunk))
    assert (found.ids, found.answers) == (plain.ids, plain.answers)
    finite = torch.isfinite(plain.scores)
    assert torch.equal(torch.isfinite(found.scores), finite)
    torch.testing.assert_close(found.scores[finite], plain.scores[finite], atol=1e-5, rtol=0)
    for layer in layers:
        torch.testing.assert_close(found.residuals[layer], plain.residuals[layer], atol=1e-5, rtol=0)


def test_without_generation_a_measurement_reads_no_media(loaded, mixed, tmp_path):
    trunk = filled(loaded, mixed, tmp_path)
    batches = plan_batches(mixed.items, 6)
    media = loaded.media(replace(mixed, root=tmp_path / "nowhere"))
    found = forward_batches(loaded, batches, media, ObserveConfig(share_prefix=False), ObservationRequest(layers=[5], trunk=trunk))
    assert len(found) == len(mixed)


def test_states_are_stored_in_the_dtype_of_the_model(tiny_checkpoint, mixed, tmp_path):
    loaded = load_model(ModelConfig(path=str(tiny_checkpoint), dtype="bfloat16"))
    trunk = filled(loaded, mixed, tmp_path)
    prompt, _ = trunk.batch([(item, []) for item in mixed.items[:1]])
    assert prompt["inputs_embeds"].dtype == torch.bfloat16


def test_an_interrupted_fill_goes_on_where_it_stopped(loaded, mixed, tmp_path, monkeypatch):
    write, written = trunk_fill.write_tensors, []

    def killed_at_the_third(path, *args):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, *args)

    monkeypatch.setattr(trunk_fill, "write_tensors", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        filled(loaded, mixed, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in written}
    monkeypatch.setattr(trunk_fill, "write_tensors", write)
    trunk = filled(loaded, mixed, tmp_path)
    assert {p: p.stat().st_mtime_ns for p in written} == before
    assert set(trunk.places) == {i.id for i in mixed}
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_belongs_to_other_items_is_removed(loaded, mixed, tmp_path):
    filled(loaded, mixed, tmp_path)
    (old,) = tmp_path.glob("train-*")
    filled(loaded, mixed.holding(mixed.items[:9]), tmp_path)
    assert not old.exists() and len(list(tmp_path.glob("train-*"))) == 1


def test_what_does_not_fit_on_the_disk_is_not_cached(loaded, mixed, tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(trunk_fill.shutil, "disk_usage", lambda path: usage(1, 1, trunk_fill.RESERVE))
    assert filled(loaded, mixed, tmp_path) is None
    assert "GiB free" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_disk_that_fills_up_meanwhile_is_left_as_it_was(loaded, mixed, tmp_path, monkeypatch, capsys):
    write, written = trunk_fill.write_tensors, []

    def full_at_the_third(path, *args):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        write(path, *args)

    monkeypatch.setattr(trunk_fill, "write_tensors", full_at_the_third)
    assert filled(loaded, mixed, tmp_path) is None
    assert "No space left on device" in capsys.readouterr().out
    assert written and not list(tmp_path.glob("train-*"))


def test_the_estimate_is_not_below_what_is_written(loaded, mixed, tmp_path):
    filled(loaded, mixed, tmp_path)
    written = sum(p.stat().st_size for p in tmp_path.rglob("*.safetensors"))
    batches = plan_batches(mixed.items, BATCH)
    usage = namedtuple("usage", "total used free")
    for share, fits in ((0.5, False), (1.5, True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trunk_fill.shutil, "disk_usage", lambda path, s=share: usage(1, 1, trunk_fill.RESERVE + int(s * written)))
            assert (trunk_fill.does_not_fit(loaded, batches, loaded.media(mixed), tmp_path / "new", []) is None) == fits


def test_nothing_below_the_first_adapted_layer_is_nothing_to_cache(loaded, mixed, tmp_path, capsys):
    assert write_cache(loaded, mixed, tmp_path / "train", frozen=0, batch_size=BATCH) is None
    assert "no decoder layer below" in capsys.readouterr().out


def test_layers_that_share_keys_and_values_are_refused(loaded, mixed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(unwrap(loaded.model).model.language_model.config, "num_kv_shared_layers", 2, raising=False)
    assert filled(loaded, mixed, tmp_path) is None
    assert "keys and values of lower ones" in capsys.readouterr().out


def test_a_model_whose_upper_layers_look_below_is_found_out_by_the_trial(loaded, mixed, tmp_path, capsys):
    """Whatever a family does that nobody thought of: here the last layer adds what entered the first one."""
    blocks, entered = decoder_layers(loaded.model), []
    blocks[0].register_forward_hook(lambda module, args, output: entered.append(output))
    blocks[4].register_forward_hook(lambda module, args, output: output + entered[-1])
    assert filled(loaded, mixed, tmp_path) is None
    assert "differs by" in capsys.readouterr().out


def test_blocks_are_themselves_again_after_an_error(loaded, mixed):
    blocks = decoder_layers(loaded.model)
    own = [b.forward for b in blocks]
    with pytest.raises(ZeroDivisionError), skip_layers(loaded.model, [1, 2]):
        assert blocks[0].forward is not own[0] and blocks[0](torch.ones(1, 2, 3)).shape == (1, 2, 3)
        raise ZeroDivisionError
    assert [b.forward for b in blocks] == own
    assert not any("forward" in vars(b) for b in blocks)


def test_rows_of_a_batch_are_padded_as_prompts_are(loaded, mixed, tmp_path):
    trunk, media = filled(loaded, mixed, tmp_path), loaded.media(mixed)
    item = next(i for i in mixed if len(loaded.option_tokens(i.options[0].text)) > 1)
    others = [i for i in mixed if len(i.media) == len(item.media)]
    example = [Example(item=i, term="consistency", weights=np.ones(len(i.options))) for i in (item, *others[:5])]
    (stored,) = Collator(loaded, None, trunk, branching=True)(example)["parts"]
    (plain,) = Collator(loaded, media, branching=True)(example)["parts"]
    assert torch.equal(stored["prompt"]["attention_mask"], plain["prompt"]["attention_mask"])
    for key in ("rows", "positions", "place", "token", "weight", "branch"):
        assert torch.equal(stored[key], plain[key]), key


@pytest.mark.slow
def test_a_whole_run_has_the_same_figures(quick_config, tiny_run, tmp_path, capsys):
    directory = tmp_path / "cached"
    command = ["close", "--config", str(quick_config), "--run_dir", str(directory), "--train.cache_trunk", "true"]
    assert main(command) == 0
    assert "hidden-state cache of" in capsys.readouterr().out
    assert not (directory / "trunk").exists()
    plain, found = ({r["stage"]: r for r in read_records(d)} for d in (tiny_run, directory))
    assert list(plain) == list(found)
    for stage, record in plain.items():
        for path, value in numbers(record):
            other = dict(numbers(found[stage]))[path]
            assert other == pytest.approx(value, abs=2e-3, nan_ok=True), (stage, path)
    manifest = json.loads((directory / "observations" / "epoch-1-val" / "manifest.json").read_text())
    assert manifest["trunk"] >= 1


def numbers(tree, path: str = ""):
    """Every number of a record with where it stands, times left out."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, dict | list):
            yield from numbers(value, f"{path}/{key}")
        elif isinstance(value, int | float) and "seconds" not in str(key):
            yield f"{path}/{key}", math.nan if value is None else float(value)
