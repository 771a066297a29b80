"""Training: each term by hand from full forwards, the same step however it is cut, and the same run however it is interrupted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
import transformers
from accelerate.state import GradientState
from transformers.training_args import OptimizerNames

from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.models.config import ModelConfig
from gapclose.models.loading import LoadedModel, load_model
from gapclose.observe.answer_rows import append_tokens, longest_contexts
from gapclose.observe.batching import plan_batches
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import forward_batches, observe
from gapclose.observe.request import ObservationRequest
from gapclose.training import trainer
from gapclose.training.callbacks import SetSamplerEpoch
from gapclose.training.collator import Collator
from gapclose.training.config import TERMS, LoraConfig, TrainConfig
from gapclose.training.lora import add_lora, enable_checkpointing
from gapclose.training.resume import last_complete_checkpoint
from gapclose.training.sampler import Example, MixedSampler, pair_twins
from gapclose.training.trainer import make_trainer, term_sums

OBSERVE = ObserveConfig(batch_size=16, share_prefix=False)
CONFIG = TrainConfig(
    epochs=2, global_batch_size=12, micro_batch_size=6, learning_rate=0.003, warmup=0.0, gold=0.5, retain_share=0.25, logging_steps=1
)  # 6 consistency, 3 gold and 3 retain items a step, three steps an epoch
LAYERS = [4, 5]


def fresh(checkpoint: Path) -> LoadedModel:
    return load_model(ModelConfig(path=str(checkpoint), dtype="float32"))


@pytest.fixture(scope="module")
def examples(tiny_checkpoint, digits, tmp_path_factory) -> list[Example]:
    """All three terms; a third of the train items has options of several tokens, a third no sound."""
    rng, made = np.random.default_rng(0), []
    for n, item in enumerate(digits.select(split="train", purpose="gap").items[:18]):
        if n % 3 == 1:
            texts = ("an odd number", "an odd one", "even", "unseen detail here")
            item = replace(item, options=[Option(text=t, concept="standard") for t in texts], gold=0)
        if n % 3 == 2:
            content = [p for p in item.messages[0]["content"] if p["type"] != "audio"]
            item = replace(item, messages=[{"role": "user", "content": content}])
        made.append(Example(item=item, term="consistency", weights=rng.dirichlet(np.ones(len(item.options)))))
    for item in digits.select(split="fit", purpose="gap").items[:9]:
        made.append(Example(item=item, term="gold", weights=np.eye(len(item.options))[item.gold]))
    retain = replace(digits, items=digits.select(split="train", purpose="retain").items[:6])
    seen = observe(fresh(tiny_checkpoint), retain, tmp_path_factory.mktemp("retain"), OBSERVE, ObservationRequest(top_tokens=1000))
    for item, logps, tokens in zip(retain, seen.top_logps, seen.top_tokens, strict=True):
        made.append(Example(item=item, term="retain", base_logps=logps, base_tokens=tokens))
    return made


class Interrupted(Exception):
    """Stands for a killed process."""


class StopAt(transformers.TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Interrupted


class Trained:
    """One training run with fresh objects, as a new process would make them."""

    def __init__(self, checkpoint, items, examples, directory, config=CONFIG, *, sgd=False, stop=None, after_epoch=None, lora=LAYERS):
        self.loaded, self.measured = fresh(checkpoint), []
        add_lora(self.loaded, LoraConfig(r=4, alpha=8), lora, seed=0)
        callbacks = [] if stop is None else [StopAt(stop)]
        self.trainer = make_trainer(
            self.loaded, examples, self.loaded.media(items), config, directory, n_train=27, seed=0,
            after_epoch=after_epoch or self.measured.append, callbacks=callbacks,
        )  # fmt: skip
        if sgd:
            self.trainer.args.optim = OptimizerNames.SGD
        resume = last_complete_checkpoint(directory)
        self.resumed = resume.name if resume else None
        self.trainer.train(resume_from_checkpoint=str(resume) if resume else None)

    @property
    def adapter(self) -> dict[str, torch.Tensor]:
        return {k: v.clone() for k, v in peft.get_peft_model_state_dict(self.loaded.model).items()}

    @property
    def losses(self) -> list[dict[str, float]]:
        return [{k: float(v) for k, v in log.items() if k.startswith("loss")} for log in self.trainer.state.log_history if "loss" in log]


@pytest.fixture(scope="module")
def whole(tiny_checkpoint, digits, examples, tmp_path_factory) -> Trained:
    """Two epochs without interruption."""
    return Trained(tiny_checkpoint, digits, examples, tmp_path_factory.mktemp("whole"))


@torch.no_grad()
def log_probabilities(loaded: LoadedModel, items: ItemSet, item, tokens=()) -> torch.Tensor:
    """(1 + len(tokens), V) from the answer position on, by one full forward of one prompt and ``tokens`` after it."""
    inputs = loaded.prompts([item], loaded.media(items))
    length = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([list(tokens)], dtype=torch.long)], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return loaded.model(**inputs, use_cache=False).logits[0, length - 1 :].log_softmax(-1)


def by_hand(loaded: LoadedModel, items: ItemSet, example: Example) -> float:
    """The term of one example: - sum_o t(o) log p(o's tokens), or the exact KL(base || model)."""
    if example.term == "retain":
        now = log_probabilities(loaded, items, example.item)[0]
        base = torch.zeros_like(now).scatter(0, example.base_tokens.long(), example.base_logps)
        return torch.nn.functional.kl_div(now, base, log_target=True, reduction="sum").item()
    total = 0.0
    for option, weight in zip(example.item.options, example.weights, strict=True):
        tokens = loaded.option_tokens(option.text)
        logp = log_probabilities(loaded, items, example.item, tokens[:-1])
        total -= weight * sum(logp[t, token].item() for t, token in enumerate(tokens))
    return total


def test_every_term_is_what_full_forwards_give(tiny_checkpoint, digits, examples):
    """On an adapted model with opinions: options of one and several tokens that share beginnings, mixed media, gold and retain items."""
    loaded = fresh(tiny_checkpoint)
    add_lora(loaded, LoraConfig(r=4), LAYERS, seed=0)
    with torch.no_grad():
        for name, value in loaded.model.named_parameters():
            if "lora_B" in name:
                value.copy_(0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
        loaded.model.get_output_embeddings().weight *= 5
    chosen = [*examples[:6], *examples[18:20], *examples[27:30]]
    batch = Collator(loaded, loaded.media(digits))(chosen)
    assert batch["counts"].tolist() == [6, 2, 3] and len(batch["parts"]) == 2
    expected = [sum(by_hand(loaded, digits, e) for e in chosen if e.term == t) for t in TERMS]
    found = sum(term_sums(loaded.model, part) for part in batch["parts"])
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    assert expected[2] > 1e-3
    gold = chosen[6].item
    loss = -log_probabilities(loaded, digits, gold)[0, loaded.option_tokens(gold.options[gold.gold].text)[0]].item()
    assert by_hand(loaded, digits, chosen[6]) == pytest.approx(loss)


def test_the_logged_loss_is_the_weighted_sum_of_the_means_of_each_term(tiny_checkpoint, digits, examples, whole):
    """The first step sees the base model: means over the whole global batch, retain zero."""
    first = whole.losses[0]
    sampler = MixedSampler(examples, CONFIG.counts(), seed=0, steps=CONFIG.epoch_steps(27))
    batch = [examples[i] for i in list(sampler)[: CONFIG.global_batch_size]]
    loaded = fresh(tiny_checkpoint)
    for term in ("consistency", "gold"):
        mean = np.mean([by_hand(loaded, digits, e) for e in batch if e.term == term])
        assert first[f"loss/{term}"] == pytest.approx(mean, rel=1e-4)
    assert first["loss/retain"] == pytest.approx(0, abs=1e-6)
    aims = [e.weights[e.weights > 0] for e in batch if e.term == "consistency"]
    floor = np.mean([-(aim * np.log(aim)).sum() for aim in aims])
    assert first["loss/excess"] == pytest.approx(first["loss/consistency"] - floor, rel=1e-4)
    for line in whole.losses:
        weighted = line["loss/consistency"] + 0.5 * line["loss/gold"] + line["loss/retain"]
        assert line["loss"] == pytest.approx(weighted, abs=1e-3)


def test_the_step_does_not_depend_on_how_it_is_cut(tiny_checkpoint, digits, examples, tmp_path):
    """24 x 1, 12 x 2 and 6 x 4: the same losses and the same adapters.

    By plain SGD, since AdamW turns the rounding of a vanishing gradient into a full step.
    """
    config = replace(CONFIG, epochs=3, global_batch_size=24, learning_rate=0.3)
    cuts = {m: replace(config, micro_batch_size=m) for m in (24, 12, 6)}
    runs = {m: Trained(tiny_checkpoint, digits, examples, tmp_path / str(m), cut, sgd=True) for m, cut in cuts.items()}
    assert {m: r.trainer.args.gradient_accumulation_steps for m, r in runs.items()} == {24: 1, 12: 2, 6: 4}
    reference = runs[24].adapter
    assert len(runs[24].losses) == 3 and max(v.abs().max() for k, v in reference.items() if "lora_B" in k) > 1e-3
    for m in (12, 6):
        for mine, theirs in zip(runs[m].losses, runs[24].losses, strict=True):
            assert mine == pytest.approx(theirs, abs=2e-5)
        for key, value in runs[m].adapter.items():
            torch.testing.assert_close(value, reference[key], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("step", "epoch"), [(0, 0), (5, 0), (6, 1), (11, 1)])
def test_the_sampler_is_told_its_epoch_where_a_training_goes_on_within_it(examples, step, epoch):
    """Whatever the data loaders of several processes forget to tell."""
    sampler = MixedSampler(examples, CONFIG.counts(), 0, steps=6)
    SetSamplerEpoch(sampler).on_epoch_begin(None, SimpleNamespace(global_step=step), None)
    assert sampler.epoch == epoch


def test_every_training_tells_its_sampler(whole):
    """By the sampler that the data loader draws from."""
    (told,) = (c.sampler for c in whole.trainer.callback_handler.callbacks if isinstance(c, SetSamplerEpoch))
    assert told is whole.trainer.sampler and told.steps * CONFIG.epochs == whole.trainer.state.global_step


def test_a_backward_pass_for_every_kind_of_media_gives_the_same_step(tiny_checkpoint, digits, examples, tmp_path, monkeypatch):
    """As under ZeRO-3: same losses, same adapter, and the optimizer steps with the last part of the last micro-batch alone."""
    config = replace(CONFIG, epochs=1, learning_rate=0.3)
    plain = Trained(tiny_checkpoint, digits, examples, tmp_path / "plain", config, sgd=True)
    true, seen = trainer.term_sums, list[bool]()

    def watched(model, part):
        seen.append(GradientState().sync_gradients)
        return true(model, part)

    monkeypatch.setattr(trainer, "term_sums", watched)
    monkeypatch.setattr(trainer, "is_zero3", lambda model: True)
    apart = Trained(tiny_checkpoint, digits, examples, tmp_path / "apart", config, sgd=True)
    ends = [n for n, steps in enumerate(seen, start=1) if steps]
    assert len(ends) == len(plain.losses) == 3 and ends[-1] == len(seen) == 11  # of six micro-batches, all but one with two kinds
    for mine, theirs in zip(apart.losses, plain.losses, strict=True):
        assert mine == pytest.approx(theirs, abs=2e-5)
    assert max(v.abs().max() for k, v in plain.adapter.items() if "lora_B" in k) > 1e-3
    for key, value in apart.adapter.items():
        torch.testing.assert_close(value, plain.adapter[key], atol=1e-6, rtol=1e-4)


PINNED = [
    [15.1984, 12.1476, 6.1015, 0.0000],
    [17.2891, 14.2408, 6.0964, 0.0002],
    [12.0662, 9.0352, 6.0610, 0.0005],
    [18.1911, 15.1614, 6.0575, 0.0009],
    [16.8747, 13.8872, 5.9719, 0.0016],
    [8.8769, 5.9145, 5.9211, 0.0019],
]


def test_the_loss_trajectory_is_pinned(whole):
    """Six steps of the tiny random model: total, consistency, gold, retain. Whoever changes these numbers changes every result."""
    found = [[line[name] for name in ("loss", *(f"loss/{t}" for t in TERMS))] for line in whole.losses]
    np.testing.assert_allclose(found, PINNED, atol=1e-3, rtol=1e-4)


def test_training_lowers_the_loss_and_measures_after_every_epoch(whole):
    """On its own items."""
    assert whole.measured == [1, 2] and len(whole.losses) == 6
    assert whole.losses[-1]["loss/consistency"] < 0.8 * whole.losses[0]["loss/consistency"]


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("save_steps", "stop", "resumed"),
    [(0, 4, "checkpoint-3"), (2, 5, "checkpoint-4"), (2, 3, "checkpoint-3")],
    ids=["within an epoch", "after a checkpoint within an epoch", "between epochs"],
)
def test_an_interrupted_training_ends_bit_for_bit_where_an_uninterrupted_one_does(
    tiny_checkpoint, digits, examples, whole, tmp_path, save_steps, stop, resumed
):
    """New objects, the last whole checkpoint, the same adapters; and the loss lines go on as they were."""
    config = replace(CONFIG, save_steps=save_steps)
    with pytest.raises(Interrupted):
        Trained(tiny_checkpoint, digits, examples, tmp_path, config, stop=stop)
    second = Trained(tiny_checkpoint, digits, examples, tmp_path, config)
    assert second.resumed == resumed
    assert same_bits(second.adapter, whole.adapter)
    assert second.measured == [e for e in (1, 2) if 3 * e > int(resumed.split("-")[1])]
    assert second.losses == whole.losses


def test_a_finished_training_is_not_repeated(tiny_checkpoint, digits, examples, whole):
    """Resuming at the end takes no step and measures nothing, yet has the weights."""
    again = Trained(tiny_checkpoint, digits, examples, Path(whole.trainer.args.output_dir), stop=6)
    assert again.resumed == "checkpoint-6" and not again.measured
    assert same_bits(again.adapter, whole.adapter)


@pytest.mark.parametrize(("save_steps", "epoch"), [(0, 2), (1, 1), (2, 2)])
def test_an_interrupted_measurement_is_repeated(tiny_checkpoint, digits, examples, whole, tmp_path, save_steps, epoch):
    """Also when a step's own checkpoint falls on the end of the epoch: no epoch may stay unmeasured."""

    def fail(now: int) -> None:
        if now == epoch:
            raise Interrupted

    config = replace(CONFIG, save_steps=save_steps)
    with pytest.raises(Interrupted):
        Trained(tiny_checkpoint, digits, examples, tmp_path, config, after_epoch=fail)
    second = Trained(tiny_checkpoint, digits, examples, tmp_path, config)
    assert epoch in second.measured and same_bits(second.adapter, whole.adapter)


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    """Numbers count as numbers; without ``complete.json`` a checkpoint does not exist."""
    assert last_complete_checkpoint(tmp_path) is None
    for step, complete in ((2, True), (10, True), (30, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}")
        if complete:
            (folder / "complete.json").write_text("{}")
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_adapters_sit_in_the_chosen_decoder_layers_and_nothing_else_is_trained(tiny_checkpoint, examples, digits, whole):
    """Not in the towers, whose modules have the same names; base weights keep every bit, and get no gradient."""
    path, attention, mlp = "model.language_model.layers.", ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
    adapted = {n.split(".lora_")[0].split(path)[-1] for n, _ in whole.loaded.model.named_parameters() if "lora_" in n}
    leaves = [*(f"self_attn.{leaf}" for leaf in attention), *(f"mlp.{leaf}" for leaf in mlp)]
    assert adapted == {f"{layer - 1}.{leaf}" for layer in LAYERS for leaf in leaves}
    trainable = {n for n, p in whole.loaded.model.named_parameters() if p.requires_grad}
    assert trainable == {n for n, _ in whole.loaded.model.named_parameters() if "lora_" in n}
    base, now = fresh(tiny_checkpoint).model.state_dict(), whole.loaded.model.get_base_model().state_dict()
    assert base.keys() <= {k.replace(".base_layer", "") for k in now}
    assert all(torch.equal(value, base[key.replace(".base_layer", "")]) for key, value in now.items() if "lora_" not in key)
    batch = Collator(whole.loaded, whole.loaded.media(digits))(examples[:4])
    sum(term_sums(whole.loaded.model, part).sum() for part in batch["parts"]).backward()
    assert {n for n, p in whole.loaded.model.named_parameters() if p.grad is not None} == trainable
    whole.loaded.model.zero_grad()


def test_what_the_probe_reads_stays_bit_for_bit_the_base_models(tiny_checkpoint, digits, whole):
    """With adapters after layer 3, residuals of layers up to 3 are untouched; those above and the action are not."""
    items = digits.select(split="val", purpose="gap").items[:32]
    batches, layers = plan_batches(items, 16), [0, 1, 2, 3, 4, 5]
    base, whole_model = fresh(tiny_checkpoint), whole.loaded
    whole_model.model.eval()
    before, after = (forward_batches(m, batches, m.media(digits), OBSERVE, ObservationRequest(layers=layers)) for m in (base, whole_model))
    changed = [not torch.equal(before.residuals[layer], after.residuals[layer]) for layer in layers]
    assert changed == [False, False, False, False, True, True]
    assert (before.scores - after.scores)[torch.isfinite(before.scores)].abs().max() > 0.1


def test_gradient_checkpointing_changes_nothing(tiny_checkpoint, digits, examples, whole, tmp_path):
    """But memory and time."""
    found = Trained(tiny_checkpoint, digits, examples, tmp_path, replace(CONFIG, gradient_checkpointing=True))
    for mine, theirs in zip(found.losses, whole.losses, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_with_gradient_checkpointing_too_the_backward_pass_stops_below_the_first_adapter(tiny_checkpoint, examples, digits):
    """Nothing below it is recomputed: transformers' own switch would make every residual require a gradient."""
    loaded = fresh(tiny_checkpoint)
    add_lora(loaded, LoraConfig(), LAYERS, 0)
    enable_checkpointing(loaded)
    calls: Counter[int] = Counter()
    for number, layer in enumerate(loaded.layers, start=1):
        layer.self_attn.register_forward_hook(lambda module, args, output, number=number: calls.update([number]))
    batch = Collator(loaded, loaded.media(digits))(examples[:4])
    loaded.model.train()
    for part in batch["parts"]:
        term_sums(loaded.model, part).sum().backward()
    parts = len(batch["parts"])
    assert calls == {1: parts, 2: parts, 3: parts, 4: 2 * parts, 5: 2 * parts}


def test_a_loss_that_is_not_finite_stops_the_training(tiny_checkpoint, digits, examples, tmp_path, monkeypatch):
    """At once, with the step and the remedy; no checkpoint of it is kept."""
    monkeypatch.setattr("gapclose.training.trainer.term_sums", lambda model, part: term_sums(model, part) * float("nan"))
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 0; lower train\.learning_rate"):
        Trained(tiny_checkpoint, digits, examples, tmp_path)
    assert last_complete_checkpoint(tmp_path) is None


def plain(term: str, n: int) -> list[Example]:
    return [Example(item=None, term=term) for _ in range(n)]  # type: ignore[arg-type]


def test_every_global_batch_holds_the_counts_and_every_micro_batch_its_share():
    """Every term goes round in shuffles of its own."""
    examples = [*plain("retain", 5), *plain("consistency", 50), *plain("gold", 7)]
    sampler = MixedSampler(examples, {"consistency": 12, "gold": 4, "retain": 8}, seed=0, steps=4)
    order = list(sampler)
    assert len(order) == len(sampler) == 4 * 24
    for start in range(0, len(order), 24):
        window = order[start : start + 24]
        assert Counter(examples[i].term for i in window) == {"consistency": 12, "gold": 4, "retain": 8}
        for cut in range(0, 24, 6):
            assert Counter(examples[i].term for i in window[cut : cut + 6]) == {"consistency": 3, "gold": 1, "retain": 2}
    lead = [i for i in order if examples[i].term == "consistency"]
    assert len(lead) == len(set(lead)) == 48
    others = [i for i in order if examples[i].term == "retain"]
    assert all(sorted(others[k : k + 5]) == [0, 1, 2, 3, 4] for k in range(0, 30, 5))


def test_the_order_depends_on_seed_and_epoch_alone():
    """The same twice, another in every epoch and under every seed."""
    examples = [*plain("consistency", 30), *plain("retain", 30)]

    def order(seed: int, epoch: int) -> list[int]:
        sampler = MixedSampler(examples, {"consistency": 10, "gold": 0, "retain": 5}, seed, steps=3)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6
    lead = [[i for i in order(0, e) if i < 30] for e in (0, 1)]
    assert sorted(lead[0]) == sorted(lead[1]) == list(range(30))


def twinned(term: str, n: int, single: int = 0) -> list[Example]:
    """``n`` pairs of twins, then items without one."""

    def item(ident: str, twin: str | None) -> Item:
        tags = {"twin": twin} if twin else {}
        return Item(id=ident, clip=ident[:-1], split="train", modality="vision", messages=[], options=[], tags=tags)

    names = [(f"{k}{a}", f"{k}{b}") for k in range(n) for a, b in ("tf", "ft")] + [(f"s{k}", None) for k in range(single)]
    return [Example(item=item(*name), term=term) for name in names]


def parted(examples: list[Example], counts: dict[str, int], seed: int) -> tuple[list[int], int]:
    """The order of an epoch, and how many twins in it are in another global batch than their own."""
    lead = sum(e.term == "consistency" for e in examples)
    sampler = MixedSampler(examples, counts, seed, steps=lead // counts["consistency"], twins=True)
    order, size = list(sampler), sum(counts.values())
    batch = {(examples[i].term, examples[i].item.id): n // size for n, i in enumerate(order)}
    there = [(k, (k[0], t)) for k in batch for t in [next(e for e in examples if e.item.id == k[1]).item.tags.get("twin")] if t]
    return order, sum(batch.get(twin) != batch[own] for own, twin in there)


@pytest.mark.parametrize(
    ("number", "single", "count", "most"), [(24, 0, 8, 0), (24, 9, 8, 6), (24, 8, 7, 8), (20, 20, 5, 4), (15, 0, 5, 6)]
)
def test_twins_stay_in_one_global_batch(number, single, count, most):
    """All of them under an even count of nothing but pairs; else few are parted (of pairs alone under an odd count, one every two batches).
    Every item still comes once an epoch, and other terms are not touched."""
    examples = [*twinned("consistency", number, single), *twinned("retain", 0, 10)]
    counts = {"consistency": count, "gold": 0, "retain": 3}
    for seed in range(3):
        order, apart = parted(examples, counts, seed)
        plainly = list(MixedSampler(examples, counts, seed, steps=(2 * number + single) // count))
        lead = [i for i in order if examples[i].term == "consistency"]
        assert len(lead) == len(set(lead)) == (2 * number + single) // count * count
        left_out = sum(e.term == "consistency" for e in examples) - len(lead)
        assert apart <= most + left_out
        assert [i for i in order if examples[i].term == "retain"] == [i for i in plainly if examples[i].term == "retain"]
        assert order != plainly != parted(examples, counts, seed + 1)[0]


def test_a_twin_that_is_not_there_leaves_the_other_single():
    """As where the gate left one out."""
    examples = twinned("gold", 3)
    assert sorted(map(sorted, pair_twins(examples, range(6)))) == [[0, 1], [2, 3], [4, 5]]
    assert sorted(map(len, pair_twins(examples, [0, 2, 3]))) == [1, 2]


def test_a_sampler_without_items_of_a_term_says_which():
    """And fewer items than one batch holds go round."""
    with pytest.raises(ValueError, match=r"no items for the loss term\(s\) \['retain'\]; set train\.retain to 0"):
        MixedSampler(plain("consistency", 9), {"consistency": 4, "gold": 0, "retain": 2}, 0, steps=2)
    few = MixedSampler(plain("gold", 3), {"consistency": 0, "gold": 8, "retain": 0}, 0, steps=1)
    assert len(few) == 8 and Counter(few).keys() == {0, 1, 2}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"gold": 0.0}, (48, 0, 24)),
        ({"gold": 0.0, "retain": 0.0}, (72, 0, 0)),
        ({}, (30, 18, 24)),
        ({"consistency": 0.0, "gold": 1.0}, (0, 48, 24)),
        ({"consistency": 0.0, "gold": 0.5, "retain": 0.0}, (0, 72, 0)),
        ({"global_batch_size": 8, "gold": 2.0}, (3, 2, 3)),
    ],
)
def test_counts_add_up_to_the_global_batch(change, expected):
    """Terms with weight zero get nothing."""
    counts = TrainConfig(**change).counts()
    assert tuple(counts.values()) == expected and list(counts) == list(TERMS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"global_batch_size": 1, "gold": 0.0, "micro_batch_size": 1}, "leaves no room"),
        ({"global_batch_size": 2, "gold": 1.0, "micro_batch_size": 1}, "leaves no room"),
        ({"gold": 0.0, "retain_share": 1.0}, r"global_batch_size 72 with .* leaves no room for \['consistency'\]"),
    ],
)
def test_a_batch_too_small_for_its_terms_is_refused(change, message):
    """Before anything is loaded."""
    with pytest.raises(ValueError, match=message):
        TrainConfig(**change).counts()


def test_accumulation_divides_the_global_batch_or_names_sizes_that_would():
    """Over all processes."""
    assert TrainConfig(global_batch_size=24, micro_batch_size=6).accumulation(2) == 2
    with pytest.raises(ValueError, match=r"24 cannot be cut into micro-batches of 5 on 2 processes; .* \[1, 2, 3, 4, 6, 12\]"):
        TrainConfig(global_batch_size=24, micro_batch_size=5).accumulation(2)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("after_probe", [4, 5]),
        ("all", [1, 2, 3, 4, 5]),
        ([5, 2, 5], [2, 5]),
        ([6], "1..5"),
        ([0], "counted from 1"),
        ([], "counted from 1"),
    ],
)
def test_chosen_lora_layers(layers, expected):
    """Counted from 1, the probe's own layer left out of after_probe."""
    if isinstance(expected, list):
        assert LoraConfig(layers=layers).chosen(5, probe_layer=3) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            LoraConfig(layers=layers).chosen(5, probe_layer=3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoraConfig(layers="after"), "lora.layers"),
        (lambda: LoraConfig(r=0), "lora.r"),
        (lambda: TrainConfig(epochs=0), "train.epochs"),
        (lambda: TrainConfig(retain=-1.0), "must not be negative"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, message):
    """By name, when the configuration is read."""
    with pytest.raises(ValueError, match=message):
        make()


def test_rows_hold_the_contexts_that_are_no_beginning_of_another():
    """Their tokens go behind the prompt and are masked where they end; a mask of sounds that happens to be as wide is none of tokens."""
    assert longest_contexts([[], [1], [1, 2], [3], [1]]) == [[1, 2], [3]] and longest_contexts([[], []]) == [[]]
    prompt = {"input_ids": torch.tensor([[0, 7], [8, 9]]), "attention_mask": torch.tensor([[0, 1], [1, 1]]), "sounds": torch.ones(2, 2)}
    append_tokens(prompt, [[4, 5], [6]])
    assert prompt["input_ids"].tolist() == [[0, 7, 4, 5], [8, 9, 6, 0]]
    assert prompt["attention_mask"].tolist() == [[0, 1, 1, 1], [1, 1, 1, 0]] and prompt["sounds"].shape == (2, 2)


def test_a_target_that_is_no_number_is_refused(digits, loaded):
    """By item, where a weight would be dropped in silence or spoil the loss; so is one of too few or too many weights."""
    item = digits.select(split="train", purpose="gap").items[0]
    for broken in (np.nan, np.inf, -0.1):
        with pytest.raises(ValueError, match=f"item {item.id}: the target .* has a weight that is negative or not finite"):
            Example(item=item, term="consistency", weights=np.array([broken, *[0.1] * (len(item.options) - 1)]))
    with pytest.raises(ValueError, match=f"item {item.id}: a log-probability of the base model is not a number"):
        Example(item=item, term="retain", base_logps=torch.tensor([0.0, torch.nan]), base_tokens=torch.tensor([1, 2]))
    for weights in (np.ones(1), np.ones(len(item.options) + 1)):
        with pytest.raises(ValueError, match=f"item {item.id}: a target of {len(weights)} weights for {len(item.options)} options"):
            Collator(loaded, None)([Example(item=item, term="consistency", weights=weights)])
