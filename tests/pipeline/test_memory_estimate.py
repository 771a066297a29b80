"""Memory by sizes alone against what the allocator says; what the estimate knows of the settings; nothing of it reads a weight."""

import itertools
from pathlib import Path

import pytest
import torch
from measured_step import configured, measured, without_weights
from torch.profiler import ProfilerActivity, profile

import gapclose.pipeline.memory_estimate
from gapclose.core.memory_meter import Meter
from gapclose.data.jsonl import read_items
from gapclose.models.architecture import build_on_meta, read_architecture
from gapclose.models.loading import LoadedModel, assemble, load_processor
from gapclose.observe.store import read_observations
from gapclose.pipeline.config import parse_config
from gapclose.pipeline.items import prepare_items
from gapclose.pipeline.memory_estimate import observation_bytes, observed_batch, text_batch, training_step, weight_bytes
from gapclose.pipeline.prompt_lengths import look_at
from gapclose.training.lora import add_lora


@pytest.mark.slow
@pytest.mark.parametrize("recomputed", [False, True])
def test_the_estimate_is_within_a_fifth_of_the_measured_peak(recomputed, digits_directory, digits, tmp_path):
    """Two steps of the real trainer on the shipped model: weights, adapters, gradients, states and activations."""
    config, file = configured("digits", digits_directory, tmp_path, **{"train.gradient_checkpointing": recomputed})
    loaded, parts = without_weights(config, 3, digits)
    found, peak = training_step(loaded, parts, config), measured(file, 3)
    assert not found.by_formula and abs(found.peak / peak - 1) < 0.2, (found.peak, peak)
    assert found.activations > found.weights > 0


def test_the_estimate_of_observing_is_within_a_fifth_of_the_measured_peak(tiny_checkpoint, digits_directory, tmp_path):
    """Scores and generated answers of one batch; options of several tokens would be scored on copies of the key-value cache."""
    data = digits_directory
    config, file = configured(
        tiny_checkpoint, data, tmp_path, **{"observe.batch_size": 32, "observe.max_new_tokens": 3, "observe.share_prefix": False}
    )
    items = read_items(data)
    loaded = assemble(build_on_meta(read_architecture(config.model), config.model), load_processor(config.model), path="", fingerprint="")
    gap = look_at(loaded, items).gap
    prompt = loaded.prompts([gap] * 32, loaded.media(items))
    found, with_longer = (observed_batch(loaded, prompt, None, longer=n) for n in (0, 2))
    peak = measured(file, 0)
    assert abs(found / peak - 1) < 0.2, (found, peak)
    assert with_longer > found


def step(config, first=3, items=None):
    return training_step(*without_weights(config, first, items), config)


@pytest.mark.slow
def test_what_the_estimate_knows_of_the_settings(tiny_checkpoint, digits_directory, digits, tmp_path):
    """Activations grow with the items and with the layers above the lowest adapter, and shrink where they are recomputed."""
    config, _ = configured(tiny_checkpoint, digits_directory, tmp_path)
    two, _ = configured(tiny_checkpoint, digits_directory, tmp_path, **{"train.micro_batch_size": 24})
    recomputed, _ = configured(tiny_checkpoint, digits_directory, tmp_path, **{"train.gradient_checkpointing": True})
    low, high = step(config, 2, digits), step(config, 5, digits)
    assert low.activations > 2 * high.activations and low.adapters == pytest.approx(4 * high.adapters)
    assert step(two, 2, digits).activations == pytest.approx(2 * low.activations, rel=0.1)
    assert step(recomputed, 2, digits).activations < 0.6 * low.activations
    assert step(two, 2, digits).weights == low.weights


@pytest.mark.slow
def test_experts_under_adapters_cost_a_copy_of_them(digits_directory, tmp_path):
    """PEFT adds them up into a weight that autograd keeps; the attention alone costs none."""
    sizes = Path(__file__).parents[2] / "configs" / "architectures" / "qwen3_omni_30b_a3b"
    config, _ = configured(sizes, digits_directory, tmp_path, **{"lora.experts": False})
    model = build_on_meta(read_architecture(config.model), config.model)
    experts = sum(p.nbytes for n, p in model.model.language_model.layers[-1].named_parameters() if "experts" in n)
    found = []
    for wanted in (False, True):
        config.lora.experts = wanted
        bare = build_on_meta(read_architecture(config.model), config.model)
        loaded = LoadedModel(model=bare, processor=None, path="", fingerprint="")
        with torch.device("meta"):
            add_lora(loaded, config.lora, [48], 0)
        found.append(training_step(loaded, [text_batch(1, 64)], config))
    without, with_them = found
    assert not with_them.by_formula and with_them.activations - without.activations > experts


def test_a_model_that_looks_at_values_is_estimated_by_formula(tiny_checkpoint, digits_directory, digits, tmp_path, monkeypatch):
    """Which is said, and is no wild guess: it is 0.47 of the exact figure here."""
    config, _ = configured(tiny_checkpoint, digits_directory, tmp_path)
    exact = step(config, 3, digits)

    def looks(model, part):
        return model.get_input_embeddings().weight.sum().item()

    monkeypatch.setattr(gapclose.pipeline.memory_estimate, "term_sums", looks)
    found = step(config, 3, digits)
    assert found.by_formula and found.adapters == exact.adapters and found.weights == exact.weights
    assert 0.4 < found.activations / exact.activations < 2.5, (found, exact)


def test_what_is_stored_is_what_was_foretold(tiny_run, digits, tiny_config):
    """Residuals and scores of every stage of a finished `close`, but for the length of shards' headers."""
    config = parse_config(["--config", str(tiny_config)])
    config.controls.layers = False
    items = prepare_items(config, closing=True)
    stages = [p.name for p in (tiny_run / "observations").iterdir()]
    stored = 0
    for stage in stages:
        seen = read_observations(tiny_run / "observations" / stage)
        kept = [*seen.residuals.values(), seen.scores, *(t for t in (seen.top_logps, seen.top_tokens) if t is not None)]
        stored += sum(t.nbytes for t in kept)
    expected = observation_bytes(items, config, n_layers=5, width=48, itemsize=4)["close"]
    assert expected == pytest.approx(stored, rel=0.1), stages


def test_shared_weights_count_once(tiny_checkpoint, digits_directory, tmp_path):
    """As many bytes as the checkpoint's file holds, but for its header."""
    config, _ = configured(tiny_checkpoint, digits_directory, tmp_path)
    loaded, _ = without_weights(config, 3)
    file = (tiny_checkpoint / "model.safetensors").stat().st_size
    assert weight_bytes(loaded.model, None) == pytest.approx(file, rel=0.05)


def test_a_longer_prompt_takes_more_of_a_forward(tiny_checkpoint, digits_directory, tmp_path):
    """Weights and key-value cache included."""
    config, _ = configured(tiny_checkpoint, digits_directory, tmp_path)
    model = assemble(build_on_meta(read_architecture(config.model), config.model), load_processor(config.model), path="", fingerprint="")
    short, long = (observed_batch(model, text_batch(4, n)["prompt"], None) for n in (32, 320))
    assert weight_bytes(model.model, None) < short < long


def by_choices(x, mask, weight):
    """Masks, choices, views, in-place changes, and a backward pass."""
    chosen = x[mask] @ weight
    _, places = chosen.softmax(-1).topk(2, dim=-1)
    held = torch.zeros(4, dtype=torch.long, device=x.device).index_add_(0, places.reshape(-1) % 4, torch.ones_like(places).reshape(-1))
    assert held.sum() == places.numel()
    shifted = chosen.clone()
    shifted[: len(shifted) // 2].mul_(2)
    return shifted.relu().square().sum()


def test_the_meter_counts_what_the_allocator_counts():
    """Forward and backward, byte for byte but for scalars; of what kernels take for themselves (attention's on a CPU) nothing is known."""
    mask = torch.arange(512) % 3 > 0
    real = torch.randn(512, 64), torch.randn(64, 32, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        by_choices(real[0], mask, real[1]).backward()
    events = sorted((e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    peak = max(itertools.accumulate(e.nbytes() for e in events))
    x, weight = real[0].to("meta"), real[1].detach().to("meta").requires_grad_()
    with Meter() as meter:
        meter.count(x, mask, weight)
        before = meter.live
        by_choices(x, mask, weight).backward()
    assert meter.peak - before == pytest.approx(peak, rel=0.03)
    assert weight.grad is not None and weight.grad.shape == (64, 32)


@pytest.mark.parametrize("looks", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: torch.zeros(4).masked_fill_(x > 0, 1)])
def test_the_meter_says_what_it_cannot_know(looks):
    """Instead of a figure that would be wrong."""
    with pytest.raises((NotImplementedError, RuntimeError)), Meter():
        looks(torch.empty(4, device="meta"))
