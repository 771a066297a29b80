"""Checkpoints that are not whole, not what they were, or not to be had in the way that was asked for."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import huggingface_hub.constants
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from gapclose.models.chat_template import chat_text
from gapclose.models.checkpoint import checkpoint_fingerprint
from gapclose.models.config import ModelConfig
from gapclose.models.loading import load_model, load_processor
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import forward_batches, observe
from gapclose.observe.request import ObservationRequest
from gapclose.pipeline.cli import main
from gapclose.pipeline.config import parse_config, save_config

pytestmark = pytest.mark.usefixtures("no_outline")


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    """A copy of the tiny checkpoint, to be spoilt."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "copy")


def put(folder, alter) -> None:
    """Write the checkpoint's tensors again, altered."""
    tensors = load_file(folder / "model.safetensors")
    save_file(alter(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_weights_are_refused_by_name(copy):
    """Transformers would fill them with random numbers, others at every start."""
    put(copy, lambda tensors: {n: t for n, t in tensors.items() if "layers.2." not in n or "model.layers" not in n})
    with pytest.raises(ValueError, match=r"lacks weights, .* 12 tensors are not there \(\S*layers\.2\.\S*, \S*, \S*, \.\.\.\)"):
        load_model(ModelConfig(path=str(copy)))


def test_weights_of_another_shape_are_refused_by_name(copy):
    """With both shapes."""
    put(copy, lambda tensors: {n: t[:, :40].contiguous() if n.endswith("layers.2.mlp.up_proj.weight") else t for n, t in tensors.items()})
    with pytest.raises(ValueError, match=r"1 have another shape .*layers\.2\.mlp\.up_proj\.weight \[\d+, 40\] for \[\d+, 48\]"):
        load_model(ModelConfig(path=str(copy)))


def test_a_file_of_weights_that_was_copied_halfway_is_named(copy, tiny_config, tmp_path, capsys):
    """And a checkpoint without any is told of as such; the command shows no traceback."""
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"damaged or was copied halfway, model\.safetensors .*; copy or download it again"):
        load_model(ModelConfig(path=str(copy)))
    assert main(["measure", "--config", str(tiny_config), "--model.path", str(copy), "--run_dir", str(tmp_path / "run")]) == 2
    assert "copied halfway, model.safetensors" in capsys.readouterr().err
    file.rename(copy / "model.bin")
    with pytest.raises(ValueError, match="has no weights in safetensors"):
        load_model(ModelConfig(path=str(copy)))


def test_a_shard_that_is_not_there_is_named(copy):
    """Not told as if there were no safetensors at all."""
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    places = {"lm_head.weight": "model-00001-of-00002.safetensors", "model.audio_tower.ln_post.bias": "model-00002-of-00002.safetensors"}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    with pytest.raises(ValueError, match="has weights that cannot be read .*00002-of-00002.*; copy or download what is missing"):
        load_model(ModelConfig(path=str(copy)))


@pytest.mark.parametrize("where", ["model", "processor"])
def test_a_package_that_is_not_there_is_not_blamed_on_attention(tiny_checkpoint, monkeypatch, where):
    """Unless attention was asked for."""

    def fail(*args, **kwargs):
        raise ImportError("it requires the timm library")

    whose = transformers.AutoModelForMultimodalLM if where == "model" else transformers.AutoProcessor
    monkeypatch.setattr(whose, "from_pretrained", fail)
    with pytest.raises(ValueError, match="needs a package that is not installed: it requires the timm library"):
        load_model(ModelConfig(path=str(tiny_checkpoint)))
    if where == "model":
        with pytest.raises(ValueError, match=r"model\.attention 'flash_attention_2' cannot be used here"):
            load_model(ModelConfig(path=str(tiny_checkpoint), attention="flash_attention_2"))


def test_validate_tells_of_a_processor_without_its_package(digits_directory, tiny_checkpoint, monkeypatch, capsys):
    """As one of the problems with the set."""

    def fail(*args, **kwargs):
        raise ImportError("pip install num2words")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", fail)
    assert main(["validate", "--data.path", str(digits_directory), "--model.path", str(tiny_checkpoint)]) == 2
    assert "needs a package that is not installed: pip install num2words" in capsys.readouterr().err


@pytest.fixture
def cached(tiny_checkpoint, tmp_path, monkeypatch):
    """A hub's cache with two commits of one model; gives the folder of its snapshots. ``main`` is the first."""
    names = ("a" * 40, "b" * 40)
    folder = tmp_path / "hub" / "models--some--tiny"
    for name in names:
        shutil.copytree(tiny_checkpoint, folder / "snapshots" / name)
    (folder / "refs").mkdir()
    for ref, name in zip(("main", "other"), names, strict=True):
        (folder / "refs" / ref).write_text(name)
    for constant in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(huggingface_hub.constants, constant, str(tmp_path / "hub"))
    return folder / "snapshots"


def test_the_fingerprint_of_a_hub_name_sees_its_weights(cached, tiny_checkpoint):
    """It is that of a directory with the same files; ``model.revision`` takes another commit."""
    put(cached / ("b" * 40), lambda tensors: {n: t + 0.01 for n, t in tensors.items()})
    main_branch = load_model(ModelConfig(path="some/tiny"))
    assert main_branch.fingerprint == load_model(ModelConfig(path=str(tiny_checkpoint))).fingerprint
    other = load_model(ModelConfig(path="some/tiny", revision="other"))
    assert other.fingerprint != main_branch.fingerprint
    assert not torch.equal(next(other.model.parameters()), next(main_branch.model.parameters()))
    put(cached / ("a" * 40), lambda tensors: {n: t + 0.02 for n, t in tensors.items()})
    assert load_model(ModelConfig(path="some/tiny")).fingerprint != main_branch.fingerprint


@pytest.mark.parametrize("name", ["tekken.json", "vocab.json", "merges.txt", "spiece.model"])
def test_the_fingerprint_sees_every_tokenizer_file(copy, name):
    """Whatever a tokenizer is kept in."""
    before = load_model(ModelConfig(path=str(copy))).fingerprint
    (copy / name).write_text("{}")
    assert checkpoint_fingerprint(copy, load_model(ModelConfig(path=str(copy))).model) != before


@pytest.mark.parametrize(
    ("size", "changed"), [(1 << 20, (450_000, 525_000)), (1 << 20, ((1 << 20) - 1, 1 << 20)), (65_536, (40_000, 40_001))]
)
def test_the_fingerprint_sees_the_middle_of_a_tensor(loaded, tmp_path, size, changed):
    """A fifteenth of it, its last byte, and of one of 64 KiB every byte."""
    whole = torch.arange(size).remainder(251).to(torch.uint8)
    save_file({"weight": whole}, tmp_path / "model.safetensors")
    before = checkpoint_fingerprint(tmp_path, loaded.model)
    whole[slice(*changed)] += 1
    save_file({"weight": whole}, tmp_path / "model.safetensors")
    assert checkpoint_fingerprint(tmp_path, loaded.model) != before


def test_attention_and_template_are_part_of_an_observation(tiny_checkpoint, digits, tmp_path):
    """Where they are not the default: what was observed with the default stays what it was."""
    few = replace(digits, items=digits.items[:2])
    config = ModelConfig(path=str(tiny_checkpoint), dtype="float32")
    observe(load_model(config), few, tmp_path / "o", ObserveConfig(share_prefix=False), ObservationRequest())
    observe(load_model(config), few, tmp_path / "o", ObserveConfig(share_prefix=False), ObservationRequest())
    with pytest.raises(ValueError, match="attention"):
        observe(
            load_model(replace(config, attention="eager")), few, tmp_path / "o", ObserveConfig(share_prefix=False), ObservationRequest()
        )
    with pytest.raises(ValueError, match="template"):
        observe(
            load_model(replace(config, template={"role": "x"})),
            few,
            tmp_path / "o",
            ObserveConfig(share_prefix=False),
            ObservationRequest(),
        )


# -- variables of the template ---------------------------------------------------------------------------------------------------------

THINKS = "\n{% if enable_thinking is defined and not enable_thinking %}<no>{% endif %}{{ style | default('plain') }}|"


def test_variables_reach_the_template_and_travel_with_the_processor(copy, tmp_path):
    """They stand at its head, so that whoever uses it writes alike; a line break behind them stays."""
    file = copy / "chat_template.jinja"
    file.write_text(THINKS + file.read_text())
    asked = [{"role": "user", "content": "Odd?"}]
    plain = chat_text(load_processor(ModelConfig(path=str(copy))), asked)
    assert plain.startswith("\nplain|<|im_start|>user\nOdd?")
    config = ModelConfig(path=str(copy), template={"enable_thinking": False, "style": 'it\'s "x"'})
    processor = load_processor(config)
    assert chat_text(processor, asked) == plain.replace("plain|", '<no>it\'s "x"|')
    processor.save_pretrained(tmp_path / "again")
    again = ModelConfig(path=str(tmp_path / "again"))
    assert chat_text(load_processor(again), asked) == chat_text(processor, asked)


def test_variables_that_the_template_does_not_know_are_refused(tiny_checkpoint, digits_directory, capsys):
    """As are values that it cannot be given."""
    data = ["validate", "--data.path", str(digits_directory), "--model.path", str(tiny_checkpoint)]
    assert main([*data, "--model.template", "{enable_thinkin: false}"]) == 2
    assert "model.template has ['enable_thinkin'], which the model's chat template does not know" in capsys.readouterr().err
    assert main([*data, "--model.template", "{'no name': 1}"]) == 2
    assert "model.template has 'no name': 1; give names of variables" in capsys.readouterr().err


def test_variables_are_read_from_a_file_and_bind_a_run(tmp_path):
    """They are names of the user's own, so no key of the configuration; a run with others is another run."""
    (tmp_path / "c.yaml").write_text("model: {template: {enable_thinking: false}}\n")
    config = parse_config(["--config", str(tmp_path / "c.yaml")])
    assert config.model.template == {"enable_thinking": False}
    save_config(config, tmp_path / "config.yaml")
    save_config(parse_config(["--config", str(tmp_path / "config.yaml")]), tmp_path / "config.yaml")
    for other in ([], ["--model.template", "{enable_thinking: true}"]):
        with pytest.raises(ValueError, match=r"model\.template: \{'enable_thinking': False\} there"):
            save_config(parse_config(other), tmp_path / "config.yaml")


# -- how answers are generated -------------------------------------------------------------------------------------------------------


def test_generation_ends_with_the_tokenizers_end_token_too(copy):
    """Of a checkpoint that names none, and beside those that one names."""
    transformers.GenerationConfig().save_pretrained(copy)
    loaded = load_model(ModelConfig(path=str(copy)))
    assert loaded.model.generation_config.eos_token_id == [loaded.tokenizer.eos_token_id]
    transformers.GenerationConfig(eos_token_id=[0, 5]).save_pretrained(copy)
    assert load_model(ModelConfig(path=str(copy))).model.generation_config.eos_token_id == sorted({0, 5, loaded.tokenizer.eos_token_id})


def test_answers_are_greedy_by_the_logits_alone(loaded, digits):
    """Whatever the checkpoint's generation config asks for, which stays as it was."""
    batch = [list(digits.items[:8])]

    def answers() -> list[str]:
        found = forward_batches(
            loaded, batch, loaded.media(digits), ObserveConfig(max_new_tokens=6, share_prefix=False), ObservationRequest(generate=True)
        )
        assert found.answers is not None
        return found.answers

    plain = answers()
    own = loaded.model.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size = 5.0, 1
    own.suppress_tokens = loaded.tokenizer(plain[0], add_special_tokens=False).input_ids
    assert answers() == plain and any(plain)
    assert loaded.model.generation_config is own and own.repetition_penalty == 5.0
