"""Every family through the project's own code, on tiny models of the real classes: load, prompt, observe, adapt, train, export, reload.

The reference is a plain full forward of one prompt at a time: no padding, no cache, no hooks of ours.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from tiny_families import ROWS, Row

from gapclose.adapters import LoraConfig, add_lora, load_adapter
from gapclose.batches import Example
from gapclose.export import write_adapter, write_merged
from gapclose.items import Item, ItemSet, Option
from gapclose.models import LoadedModel, ModelConfig, decoder_layers, load_model, unwrap
from gapclose.observations import Observations
from gapclose.observe import ObserveConfig, Wanted, forward_batches, plan_batches
from gapclose.prompts import media_signature
from gapclose.trainer import TrainConfig, make_trainer

CONFIG = ObserveConfig(batch_size=4, max_new_tokens=4)
ANSWERS = ["odd", "an odd number", "unseen detail here", "unheard"]
SIZES = [(28, 28), (56, 28), (40, 64)]
PROBE = 2
"""adapters sit on the layers after this one"""
TOLERANCE = 1e-5
"""float32, batch against one by one: what an entry may differ by, as a share of one plus the largest entry; scores in nats"""


@dataclass(kw_only=True)
class Case:
    """A family's checkpoint, loaded, and items with all kinds of media that it takes."""

    name: str
    row: Row
    config: ModelConfig
    loaded: LoadedModel
    items: ItemSet

    @property
    def layers(self) -> range:
        return range(len(self.loaded.layers) + 1)

    def observe(self, loaded: LoadedModel, batches: list[list[Item]], **wanted) -> Observations:
        return forward_batches(loaded, batches, loaded.media(self.items), CONFIG, Wanted(**wanted))


@pytest.fixture(scope="session")
def clips(digits, tmp_path_factory) -> ItemSet:
    """Questions of several lengths about images of several sizes and sounds of several lengths, answered in one to four tokens."""
    root, items = tmp_path_factory.mktemp("clips"), []
    chosen = [i for i in digits.select(split="fit").items if "unseen" in [o.text for o in i.options]][::9][:6]
    for n, item in enumerate(chosen):
        image, sound = (digits.root / path for _, path in item.media)
        with Image.open(image) as picture:
            picture.resize(SIZES[n % 3]).save(root / f"{n}.png")
        (root / f"{n}.wav").write_bytes(sound.read_bytes())
        content = [{"type": "image", "path": f"{n}.png"}, {"type": "audio", "path": f"{n}.wav"}, {"type": "text", "text": item.text}]
        options = [Option(text=t, concept="standard") for t in ANSWERS]
        items.append(replace(item, messages=[{"role": "user", "content": content}], options=options, gold=0))
    assert len({len(i.text) for i in items}) > 2
    return replace(digits, root=root, items=tuple(items))


def keep(item: Item, kinds: tuple[str, ...]) -> Item:
    """The item with only these kinds of media."""
    content = [p for p in item.messages[0]["content"] if p["type"] in ("text", *kinds)]
    return replace(item, id=f"{item.id}/{'-'.join(kinds) or 'text'}", messages=[{"role": "user", "content": content}])


@pytest.fixture(scope="module", params=[pytest.param(n, marks=[pytest.mark.slow] if r.slow else []) for n, r in ROWS.items()])
def case(request, clips, tmp_path_factory) -> Case:
    """The model is built, saved as an ordinary checkpoint directory and loaded from there. Shared by the tests of a row."""
    name, row = request.param, ROWS[request.param]
    missing = [p for p in row.needs if importlib.util.find_spec(p) is None]
    if missing:
        pytest.skip(f"{name} needs {', '.join(missing)} (pip install)")
    directory = tmp_path_factory.mktemp(name.replace(" ", "-"))
    torch.manual_seed(0)
    processor, model = row.build()
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    config = ModelConfig(path=str(directory), dtype="float32")
    kinds = [row.kinds, *([(k,) for k in row.kinds] if len(row.kinds) > 1 else []), *([()] if row.kinds else [])]
    items = tuple(keep(i, k) for k in kinds for i in clips)
    root = one_length(clips.root, tmp_path_factory.mktemp("clips")) if row.one_length else clips.root
    return Case(name=name, row=row, config=config, loaded=load_model(config), items=replace(clips, root=root, items=items))


def one_length(source: Path, target: Path) -> Path:
    """A copy of the clips whose sounds are all as long as the shortest."""
    sounds = {path.name: soundfile.read(path) for path in source.glob("*.wav")}
    shortest = min(len(samples) for samples, _ in sounds.values())
    for name, (samples, rate) in sounds.items():
        soundfile.write(target / name, samples[:shortest], rate)
    for path in source.glob("*.png"):
        (target / path.name).write_bytes(path.read_bytes())
    return target


@torch.no_grad()
def alone(case: Case, item: Item, answer: str = "") -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """One full forward of a prompt with an answer behind it: the answer's log-probability, and the residual stream (D,) at the answer
    position, by layer, as transformers tells it.

    ``output_hidden_states`` gives the last layer after the final norm only, so that one comes from the block itself; all come from
    the blocks where the model cannot give hidden states.
    """
    loaded = case.loaded
    inputs = loaded.prompts([item], loaded.media(case.items))
    length, tokens = inputs["input_ids"].shape[1], loaded.option_tokens(answer) if answer else []
    for key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if key in inputs:  # token types are 0 for text
            inputs[key] = torch.cat([inputs[key], inputs[key].new_zeros(1, len(tokens))], 1)
    inputs["input_ids"][0, length:] = torch.tensor(tokens, dtype=torch.long)
    inputs["attention_mask"][0, length:] = 1
    blocks: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(lambda m, args, out: blocks.append(out[0] if isinstance(out, tuple) else out))
        for block in decoder_layers(loaded.model)
    ]
    told = case.row.no_hidden_states_with not in media_signature(item)
    try:
        output = loaded.model(**inputs, use_cache=False, output_hidden_states=told)
    finally:
        for handle in handles:
            handle.remove()
    logp = output.logits[0, length - 1 :].float().log_softmax(-1)
    score = sum((logp[t, token] for t, token in enumerate(tokens)), torch.zeros(()))
    states = dict(enumerate(output.hidden_states[:-1])) if told else dict(enumerate(blocks, start=1))
    states[len(blocks)] = blocks[-1]
    return score, {layer: (h[0] if h.dim() == 4 else h)[0, length - 1] for layer, h in states.items()}  # 4-D: the active stream is first


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=TOLERANCE * (1 + float(expected.abs().max())), rtol=0)


def test_a_padded_batch_gives_what_its_items_give_alone(case):
    """Residuals equal ``output_hidden_states`` but for the last, which comes before the final norm; longer answers score as in full."""
    found = case.observe(case.loaded, plan_batches(case.items.items, CONFIG.batch_size), layers=case.layers).take([i.id for i in case.items])
    lengths = {len(case.loaded.option_tokens(t)) for t in ANSWERS}
    assert min(lengths) == 1 and max(lengths) > 2
    for n, item in enumerate(case.items):
        for o, option in enumerate(item.options):
            score, residuals = alone(case, item, option.text)
            assert_near(found.scores[n, o], score)
            for layer, residual in residuals.items() if o == 0 else ():
                assert_near(found.residuals[layer][n], residual)


def test_the_decoder_alone_is_adapted(case):
    """Linear modules and fused experts of the chosen layers; nothing in a tower, although its modules have the same leaf names."""
    loaded, layers = load_model(case.config), list(range(PROBE + 1, len(case.loaded.layers) + 1))
    blocks = {id(m) for layer in layers for m in decoder_layers(loaded.model)[layer - 1].modules()}
    add_lora(loaded, LoraConfig(r=2), layers, seed=0)
    base = unwrap(loaded.model)
    adapted = {n: m for n, m in base.named_modules() if isinstance(m, BaseTunerLayer)}
    assert {id(m.get_base_layer()) for m in adapted.values()} <= blocks
    trained = {n for n, p in base.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n for n in trained)
    experts = [m.get_base_layer() for m in adapted.values() if isinstance(m, ParamWrapper)]
    assert len(experts) == case.row.experts and len(adapted) - len(experts) == case.row.linears


def test_training_lowers_the_loss_and_the_export_gives_the_same_scores(case, tmp_path):
    """A few steps of the trainer on several-token targets; what is read below the adapters stays; adapter and merged model reload."""
    loaded = load_model(case.config)
    n = len(loaded.layers)
    batches = plan_batches(case.items.items, CONFIG.batch_size)
    base = case.observe(loaded, batches, layers=(PROBE, n))
    add_lora(loaded, LoraConfig(r=4), range(PROBE + 1, n + 1), seed=0)
    train = TrainConfig(
        epochs=8, global_batch_size=4, micro_batch_size=4, learning_rate=0.02, warmup=0, retain=0, gold=0, logging_steps=1
    )
    weights = np.array([0.1, 0.6, 0.3, 0.0])
    examples = [Example(item=i, term="consistency", weights=weights) for i in case.items.items[:4]]
    trainer = make_trainer(loaded, examples, loaded.media(case.items), train, tmp_path / "run", seed=0, after_epoch=lambda epoch: None)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == train.epochs and losses[-1] < losses[0] - 0.5, losses
    loaded.model.eval()
    after = case.observe(loaded, batches, layers=(PROBE, n), generate=True)
    assert torch.equal(after.residuals[PROBE], base.residuals[PROBE]) and not torch.equal(after.residuals[n], base.residuals[n])
    assert (after.scores - base.scores).abs().max() > 0.5
    write_adapter(loaded, tmp_path / "adapter")
    write_merged(loaded, case.config, tmp_path / "merged")
    for again, tolerance in (
        (load_adapter(case.config, tmp_path / "adapter"), 1e-5),
        (load_model(replace(case.config, path=str(tmp_path / "merged"))), 1e-3),
    ):
        seen = case.observe(again, batches, generate=True)
        torch.testing.assert_close(seen.scores, after.scores, atol=tolerance, rtol=0)
        assert seen.answers == after.answers and any(seen.answers)
