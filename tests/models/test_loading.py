"""Where residuals, logits and LoRA targets come from, against transformers' own outputs."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from types import SimpleNamespace

import peft
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from gapclose.core.errors import ErrorCollector
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.models.checkpoint import checkpoint_fingerprint
from gapclose.models.config import ModelConfig
from gapclose.models.hooks import answer_logits, capture_residuals
from gapclose.models.input_checks import check_options
from gapclose.models.loading import LoadedModel, load_model
from gapclose.models.processing import media_signature
from gapclose.models.structure import decoder_layers, linear_names, train_adapters_alone, unwrap
from gapclose.training.config import LoraConfig
from gapclose.training.lora import add_lora, enable_checkpointing, refuse_misplaced


@pytest.fixture
def prompt(loaded, digits):
    """Three items of unequal length, padded on the left."""
    items = sorted(digits.select(split="fit").items[:12], key=lambda i: len(i.text))
    items = [items[0], items[5], items[-1]]
    inputs = loaded.prompts(items, loaded.media(digits))
    lengths = inputs["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 1 and (inputs["attention_mask"][:, -1] == 1).all()
    return inputs


@torch.no_grad()
def test_residuals_are_hidden_states_of_every_layer_but_the_last_which_comes_before_the_final_norm(loaded, prompt):
    """Layer 0 is the embedding (media included); hidden_states[-1] is the last layer after the norm."""
    n, last = len(loaded.layers), torch.full((3,), prompt["input_ids"].shape[1] - 1)
    assert n == 5 and loaded.width == 48
    with capture_residuals(loaded.model, range(n + 1), last) as found:
        output = loaded.model(**prompt, output_hidden_states=True)
    for layer in range(n):
        assert torch.equal(found[layer], output.hidden_states[layer][:, -1]), layer
    norm = unwrap(loaded.model).get_decoder().norm
    assert torch.equal(norm(found[n]), output.hidden_states[n][:, -1])
    assert not torch.allclose(found[n], output.hidden_states[n][:, -1], atol=1e-2)


@torch.no_grad()
def test_residuals_at_other_positions_and_gradients_stay_out(loaded, prompt):
    """One position a row; what is kept hangs on no graph."""
    positions = torch.tensor([3, 17, 29])
    with capture_residuals(loaded.model, [2], positions) as found, torch.enable_grad():
        output = loaded.model(**prompt, output_hidden_states=True)
    assert output.hidden_states[2].requires_grad and not found[2].requires_grad
    assert torch.equal(found[2], output.hidden_states[2][torch.arange(3), positions])


@torch.no_grad()
def test_answer_logits_are_a_slice_of_the_full_logits(loaded, prompt):
    """Rows may repeat and come in any order."""
    full = loaded.model(**prompt).logits
    rows, positions = torch.tensor([2, 0, 2]), torch.tensor([30, 12, 31])
    with answer_logits(loaded.model, rows, positions):
        kept = loaded.model(**prompt).logits
    assert kept.shape == (1, 3, full.shape[-1])
    torch.testing.assert_close(kept[0], full[rows, positions], atol=1e-5, rtol=0)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_are_gone_after_an_exception(loaded):
    """Whatever happens inside."""
    before = hooks(loaded.model)
    zero = torch.zeros(1, dtype=torch.long)
    for context in (capture_residuals(loaded.model, [0, 1, 5], zero), answer_logits(loaded.model, zero, zero)):
        with pytest.raises(RuntimeError, match="inside"), context:
            assert hooks(loaded.model) > before
            raise RuntimeError("inside")
        assert hooks(loaded.model) == before


class Streams(nn.Module):
    """A decoder block of the AltUp kind: several residual streams at once, the active one first."""

    def forward(self, hidden_states):
        return hidden_states + 1


class FakeDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Streams(), Streams()])

    def forward(self, hidden):
        for layer in self.layers:
            hidden = layer(hidden_states=hidden)
        return hidden


def test_of_several_residual_streams_the_active_one_is_read():
    """(S, B, T, D), as Gemma 3n has it; hidden states may be passed by keyword."""
    hidden = torch.arange(3 * 2 * 4 * 5.0).reshape(3, 2, 4, 5)
    positions = torch.tensor([1, 3])
    decoder = FakeDecoder()
    with capture_residuals(decoder, [0, 2], positions) as found:
        decoder(hidden)
    assert torch.equal(found[0], hidden[0][torch.arange(2), positions])
    assert torch.equal(found[2], hidden[0][torch.arange(2), positions] + 2)


def test_linear_names_lie_inside_the_chosen_decoder_layers_only(loaded):
    """The towers have modules of the same leaf names; none of them is named."""
    names = linear_names(loaded.model, [2, 5])
    blocks = decoder_layers(loaded.model)
    expected = {id(m) for layer in (1, 4) for m in blocks[layer].modules() if isinstance(m, nn.Linear)}
    assert {id(loaded.model.get_submodule(n)) for n in names} == expected and len(names) == len(expected) == 14
    leaves = {n.split(".")[-1] for n in names}
    towers = [n for n, m in loaded.model.named_modules() if isinstance(m, nn.Linear) and n.split(".")[-1] in leaves and n not in names]
    assert any("audio_tower" in n for n in towers) and not any("tower" in n or "visual" in n for n in names)


def with_tower() -> LoadedModel:
    """A text model with a tower whose modules' full names end like those of the decoder: *tower.model.layers.1* after *model.layers.1*."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(vocab_size=50, **sizes)).eval()
    tower = nn.Module()
    tower.model = transformers.Qwen2Model(transformers.Qwen2Config(vocab_size=50, **sizes))
    model.tower = tower
    return LoadedModel(model=model, processor=None, path="", fingerprint="")


def test_a_tower_that_ends_in_the_same_names_gets_no_adapter():
    """PEFT matches names by their ends, and would adapt both; the decoder's layers get all of theirs."""
    made = with_tower()
    wanted = linear_names(made.model, [2, 3])
    add_lora(made, LoraConfig(r=2), [2, 3], seed=0)
    adapted = {n.removesuffix(".lora_A") for n, _ in unwrap(made.model).named_modules() if n.endswith(".lora_A")}
    assert adapted == set(wanted) and len(wanted) == 14


def test_adapters_elsewhere_or_missing_are_refused_by_name():
    """Whoever put them there."""
    made = with_tower()
    wanted = linear_names(made.model, [2])
    model = peft.get_peft_model(made.model, peft.LoraConfig(target_modules=wanted, r=2))
    with pytest.raises(
        ValueError, match=r"7 outside the decoder layers asked for got an adapter \(tower\.model\.layers\.1\.mlp\.down_proj, "
    ):
        refuse_misplaced(model, wanted, [])
    made = with_tower()
    model = peft.get_peft_model(made.model, peft.LoraConfig(target_modules=wanted[:1], exclude_modules=r"tower.*", r=2))
    with pytest.raises(ValueError, match=rf"of its modules 6 inside got none \({re.escape(sorted(wanted[1:])[0])}"):
        refuse_misplaced(model, wanted, [])


def test_what_is_frozen_stays_in_evaluation_mode(loaded):
    """Only the adapters train, also after all of the model was put into training mode; blocks that recompute have their own flag."""
    add_lora(loaded, LoraConfig(r=2), [4, 5], seed=0)
    base, blocks = unwrap(loaded.model), decoder_layers(loaded.model)
    for recomputed in (False, True):
        if recomputed:
            enable_checkpointing(loaded)
        loaded.model.train()
        train_adapters_alone(loaded.model)
        assert [block.training for block in blocks] == [False, False, False, recomputed, recomputed]
        own = {id(m) for m in base.modules() if hasattr(m, "lora_dropout")} | {id(block) for block in blocks[3:] if recomputed}
        training = [(n, m) for n, m in base.named_modules() if m.training]
        assert own <= {id(m) for _, m in training} and all(id(m) in own or "lora_dropout" in n for n, m in training)


def with_dropout(*, recomputed: bool, moved: bool = False, **settings) -> tuple[LoadedModel, Counter[int]]:
    """A Qwen2 of three layers whose attention has dropout, adapters on the last two, and a count of what each layer's attention computes."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(vocab_size=50, attention_dropout=0.2, **sizes)).eval()
    made = LoadedModel(model=model, processor=None, path="", fingerprint="")
    add_lora(made, LoraConfig(r=4, **settings), [2, 3], seed=0)
    if moved:
        for name, parameter in made.model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter)
    if recomputed:
        enable_checkpointing(made)
    calls: Counter[int] = Counter()
    for number, layer in enumerate(made.layers, start=1):
        layer.self_attn.register_forward_hook(lambda *_, number=number: calls.update([number]))
    return made, calls


@pytest.mark.parametrize("recomputed", [False, True])
def test_dropout_of_adapted_blocks_does_not_act_while_adapters_train(recomputed):
    """With adapters that do nothing yet, training forwards are the observed one; activations are recomputed all the same, and gradients flow."""
    made, calls = with_dropout(recomputed=recomputed)
    tokens = torch.arange(20).view(2, 10)
    with torch.no_grad():
        observed = made.model.eval()(tokens, use_cache=False).logits
        noisy = made.model.train()(tokens, use_cache=False).logits
    assert not torch.allclose(noisy, observed)
    calls.clear()
    for _ in range(2):
        made.model.train()
        train_adapters_alone(made.model)
        logits = made.model(tokens, use_cache=False).logits
        assert torch.equal(logits, observed)
        logits.square().sum().backward()
    assert calls == ({1: 2, 2: 4, 3: 4} if recomputed else {1: 2, 2: 2, 3: 2})
    assert all(p.grad.any() for n, p in made.model.named_parameters() if "lora_B" in n)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("use_dora", [False, True])
def test_dropout_of_adapters_acts_while_they_train(recomputed, use_dora):
    """And in no other mode."""
    made, _ = with_dropout(recomputed=recomputed, moved=True, dropout=0.3, use_dora=use_dora)
    tokens = torch.arange(20).view(2, 10)
    train_adapters_alone(made.model)
    first, second = (made.model(tokens, use_cache=False).logits for _ in range(2))
    assert not torch.allclose(first, second)
    made.model.eval()
    first, second = (made.model(tokens, use_cache=False).logits for _ in range(2))
    assert torch.equal(first, second)


def test_decoder_layers_are_found_through_wrapping_and_their_absence_is_named(loaded):
    """DDP-like `.module`, PEFT's base model; a model without layers is refused by class."""
    import peft

    blocks = decoder_layers(loaded.model)
    wrapped = peft.get_peft_model(loaded.model, peft.LoraConfig(target_modules=linear_names(loaded.model, [5]), r=2))
    engine = nn.Module()
    engine.module = wrapped
    assert decoder_layers(engine) is blocks and unwrap(engine) is loaded.model
    with pytest.raises(ValueError, match="Linear: found no decoder layers"):
        decoder_layers(nn.Linear(2, 2))


def test_the_fingerprint_changes_with_the_config_and_the_chat_template(tiny_checkpoint, loaded, tmp_path):
    """Both decide what the model is shown; a copy elsewhere is the same checkpoint."""
    copy = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, copy)
    same = checkpoint_fingerprint(copy, loaded.model)
    assert same == checkpoint_fingerprint(tiny_checkpoint, loaded.model) == loaded.fingerprint
    (copy / "chat_template.jinja").write_text((copy / "chat_template.jinja").read_text() + " ")
    assert checkpoint_fingerprint(copy, loaded.model) != same
    loaded.model.config.text_config.rms_norm_eps *= 2
    assert checkpoint_fingerprint(tiny_checkpoint, loaded.model) != same


@pytest.mark.parametrize("changed", ["first", "middle", "z-last", None])
def test_the_fingerprint_changes_with_any_tensor(loaded, tmp_path, changed):
    """Also one in the middle of a large file: adapters merged into the upper layers leave both ends of it as they were."""
    tensors = {name: torch.zeros(700, 1000) for name in ("first", "middle", "z-last")}
    save_file(tensors, tmp_path / "model.safetensors")
    before = checkpoint_fingerprint(tmp_path, loaded.model)
    if changed:
        tensors[changed] += 0.01
    save_file(tensors, tmp_path / "model.safetensors")
    assert (checkpoint_fingerprint(tmp_path, loaded.model) == before) == (changed is None)


def test_loading_says_what_is_no_checkpoint(tmp_path):
    """And refuses a dtype that does not exist."""
    with pytest.raises(ValueError, match="cannot be read as a transformers checkpoint"):
        load_model(ModelConfig(path=str(tmp_path)))
    with pytest.raises(
        ValueError, match=r"'models/graft': no such directory; make it first: python recipes/graft\.py --model .* --out models/graft"
    ):
        load_model(ModelConfig(path="models/graft"))
    with pytest.raises(ValueError, match="'nobody/nothing' is no directory here, and as a name on the hub it cannot be read"):
        load_model(ModelConfig(path="nobody/nothing"))
    with pytest.raises(ValueError, match=r"model\.dtype is 'fp32'"):
        ModelConfig(dtype="fp32")


def test_options_that_could_not_be_told_apart_are_found():
    """Without tokens, with the same ones, with those that another one begins with, or with too many; once each."""

    def tokenizer(text, add_special_tokens):
        assert not add_special_tokens
        return SimpleNamespace(input_ids=[ord(c) for c in text.lower() if c.isascii()])

    def item(name, *texts):
        options = [Option(text=t, concept="a") for t in texts]
        return Item(id=name, clip="c", split="test", modality="m", messages=[], options=options)

    faults = {
        "no tokens": ("yes", "é"),
        "have the same tokens": ("Yes", "yes"),
        "is how option 'not odd' begins": ("not odd", "not", "odd"),
        "has 9 tokens, but observe.max_new_tokens is 8": ("even", "otherwise"),
    }
    made = [item("fine", "yes", "no"), *(item(f"n{n}", *texts) for n, texts in enumerate(faults.values()))]
    problems = ErrorCollector("options")
    check_options(ItemSet(root=None, name="", concepts=("a", "b"), alarm=(), items=tuple(made)), tokenizer, 8, problems)
    assert len(problems) == len(faults)
    for n, (message, fault) in enumerate(zip(problems.messages, faults, strict=True)):
        assert message.startswith(f"item 'n{n}'") and fault in message


def test_batches_share_their_kinds_of_media(digits):
    """In prompt order."""
    assert media_signature(digits.items[0]) == ("image", "audio")
