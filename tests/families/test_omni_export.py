"""The whole omni checkpoint with an adapter in its thinker, and adapters under the names that a server looks for."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import ROWS
from whole_omni import WHOLE, save_whole

from gapclose.core.files import read_json, write_json
from gapclose.export.omni import check_whole, compare_parts, write_omni
from gapclose.export.peft import write_adapter
from gapclose.export.vllm import served_by_vllm, write_for_vllm
from gapclose.models.config import ModelConfig
from gapclose.models.families import LORA_IN_VLLM, InVllm
from gapclose.models.loading import LoadedModel, load_model
from gapclose.models.structure import unwrap
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import forward_batches
from gapclose.observe.request import ObservationRequest
from gapclose.pipeline.cli import main
from gapclose.training.config import LoraConfig
from gapclose.training.lora import add_lora


@dataclass(kw_only=True)
class Exported:
    """A whole checkpoint, its adapted thinker, and the export of both together."""

    base: Path
    folder: Path
    config: ModelConfig
    loaded: LoadedModel
    whole_class: Any


def adapt(loaded: LoadedModel, **settings) -> None:
    """Adapters on all layers that change something."""
    layers = range(1, len(loaded.layers) + 1)
    add_lora(loaded, LoraConfig(**{"r": 4, **settings}), list(layers), seed=0)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    loaded.model.eval()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


@pytest.fixture(scope="module", params=WHOLE)
def exported(request, tmp_path_factory) -> Exported:
    directory = tmp_path_factory.mktemp("whole")
    whole_class = save_whole(request.param, directory / "base")
    config = ModelConfig(path=str(directory / "base"), dtype="float32")
    loaded = load_model(config)
    adapt(loaded)
    before = {n: p.clone() for n, p in loaded.model.state_dict().items()}
    write_omni(loaded, config, directory / "omni")
    assert all(torch.equal(p, before[n]) for n, p in loaded.model.state_dict().items())
    return Exported(base=directory / "base", folder=directory / "omni", config=config, loaded=loaded, whole_class=whole_class)


def test_its_class_loads_it_and_the_thinker_is_the_adapted_one(exported, digits):
    """Logits of the whole class's thinker on text and residuals on pictures and sounds are those in memory."""
    whole = exported.whole_class.from_pretrained(exported.folder).eval()
    ids = torch.randint(10, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    base = load_model(exported.config)
    with torch.no_grad():
        told, expected, untouched = (m(input_ids=ids).logits for m in (whole.thinker, exported.loaded.model, base.model))
    torch.testing.assert_close(told, expected, atol=1e-4, rtol=0)
    assert (untouched - expected).abs().max() > 0.1
    again = load_model(replace(exported.config, path=str(exported.folder)))
    batch, config = list(digits.select(split="fit").items[:4]), ObserveConfig(max_new_tokens=3, share_prefix=False)
    seen, known = (
        forward_batches(m, [batch], m.media(digits), config, ObservationRequest(layers=[4], generate=True))
        for m in (again, exported.loaded)
    )
    torch.testing.assert_close(seen.scores, known.scores, atol=1e-4, rtol=0)
    largest = float(known.residuals[4].abs().max())
    torch.testing.assert_close(seen.residuals[4], known.residuals[4], atol=1e-5 * (1 + largest), rtol=0)
    assert seen.answers == known.answers


def test_everything_else_is_the_base_bit_for_bit(exported):
    """Talker, vocoder, towers and embeddings; file by file the same names in the same order, and what travels travels unopened."""
    base, found = tensors(exported.base), tensors(exported.folder)
    assert list(base) == list(found)
    changed = {n for n in base if not torch.equal(base[n].view(torch.uint8), found[n].view(torch.uint8))}
    assert changed and all(n.startswith("thinker.model.layers.") for n in changed)
    assert any(n.startswith("talker.") for n in base)
    others = sum(not n.startswith("thinker.") for n in base)
    assert compare_parts(exported.config, exported.folder) == {"changed": len(changed), "same": others}
    names = {
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        *(["spk_dict.pt"] if (exported.base / "spk_dict.pt").exists() else []),
    }
    for name in names:
        assert (exported.folder / name).read_bytes() == (exported.base / name).read_bytes()
    assert {p.name for p in exported.folder.iterdir()} == {p.name for p in exported.base.iterdir()}


def test_another_part_that_differs_does_not_pass(exported, tmp_path):
    """One bit of the talker, or a file that is gone."""
    import shutil

    folder = Path(shutil.copytree(exported.folder, tmp_path / "omni"))
    file = next(f for f in sorted(folder.glob("*.safetensors")) if any(n.startswith("talker.") for n in load_file(f)))
    held = load_file(file)
    name = next(n for n in held if n.startswith("talker."))
    held[name].view(-1)[0] += 1
    save_file(held, file, metadata={"format": "pt"})
    (folder / "generation_config.json").unlink()
    with pytest.raises(ValueError, match=r"2 problems with the omni export") as error:
        compare_parts(exported.config, folder)
    assert f"tensor {name!r} differs" in str(error.value) and "generation_config.json is not that of the base" in str(error.value)


def test_half_precision_is_rounded_once(tmp_path):
    """In the checkpoint's own type, whatever the model was loaded as: the float32 sum, rounded to bfloat16."""
    save_whole("Qwen2.5-Omni", tmp_path / "base", dtype=torch.bfloat16)
    config = ModelConfig(path=str(tmp_path / "base"), dtype="float32")
    loaded = load_model(config)
    adapt(loaded)
    write_omni(loaded, config, tmp_path / "omni")
    found, expected = tensors(tmp_path / "omni"), loaded.model.merge_and_unload().state_dict()
    for n in range(4):
        own = expected[f"model.language_model.layers.{n}.mlp.up_proj.weight"].bfloat16()
        assert torch.equal(found[f"thinker.model.layers.{n}.mlp.up_proj.weight"], own)


def test_what_cannot_be_written_whole_is_refused_before_anything_is(tmp_path, tiny_checkpoint):
    """A single model, a checkpoint without the file that travels, and one that changed since."""
    with pytest.raises(ValueError, match="is a single model .* export.merged writes it"):
        check_whole(ModelConfig(path=str(tiny_checkpoint)))
    save_whole("Qwen2.5-Omni", tmp_path / "base")
    config = ModelConfig(path=str(tmp_path / "base"), dtype="float32")
    loaded = load_model(config)
    adapt(loaded)
    voices = (tmp_path / "base" / "spk_dict.pt").read_bytes()
    (tmp_path / "base" / "spk_dict.pt").unlink()
    with pytest.raises(ValueError, match=r"has no spk_dict\.pt, which the whole model needs; put it there"):
        write_omni(loaded, config, tmp_path / "omni")
    (tmp_path / "base" / "spk_dict.pt").write_bytes(voices)
    for file in (tmp_path / "base").glob("*.safetensors"):
        save_file({n: t * 2 for n, t in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="is not what the adapted model holds; was the checkpoint changed since"):
        write_omni(loaded, config, tmp_path / "omni")
    assert not (tmp_path / "omni" / "config.json").exists()


def test_close_refuses_it_before_a_weight_is_read(tiny_config, tmp_path, capsys):
    command = ["close", "--config", str(tiny_config), "--run_dir", str(tmp_path / "run"), "--export.omni", "true"]
    assert main(command) == 2
    assert "is a single model (qwen2_5_omni_thinker)" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_whole_way_with_all_exports(tiny_config, tmp_path):
    """Trained on the thinker of a whole checkpoint, written three times over, and each verified in a fresh process."""
    save_whole("Qwen2.5-Omni", tmp_path / "base")
    less = ["--train.epochs", "1", "--probe.families", "[mean_difference]", "--export.merged", "true", "--export.omni", "true"]
    less += ["--export.verify", "true"]
    where = ["--run_dir", str(tmp_path / "run"), "--model.path", str(tmp_path / "base")]
    assert main(["close", "--config", str(tiny_config), *where, *less]) == 0
    verified = read_json(tmp_path / "run" / "adapter" / "verified.json")
    assert set(verified) == {"adapter", "merged", "omni"} and all(v["items"] == 64 for v in verified.values())
    assert verified["omni"]["changed"] > 0 and verified["omni"]["same"] > 0 and verified["omni"]["largest_difference"] < 1e-3
    for name in verified:
        card = (tmp_path / "run" / name / "README.md").read_text()
        assert "serves in vLLM: yes, because" in card and "(by rule, not tried); give it the folder `vllm/`" in card
        assert read_json(tmp_path / "run" / name / "serving.json")["vllm"]["tried"] is False
    keys = load_file(tmp_path / "run" / "adapter" / "vllm" / "adapter_model.safetensors")
    assert keys and all(k.startswith("base_model.model.thinker.model.layers.") for k in keys)


def made(name: str, directory: Path, **settings) -> LoadedModel:
    torch.manual_seed(0)
    processor, model = ROWS[name].build()
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    loaded = load_model(ModelConfig(path=str(directory), dtype="float32"))
    adapt(loaded, **settings)
    return loaded


JUDGED = {
    "the same names": ("Qwen3-VL", {}, "yes", "."),
    "other names": ("Qwen2.5-VL", {}, "yes", "vllm"),
    "rank": ("Qwen", {"r": 9}, "yes", "."),
    "too high a rank": ("Qwen", {"r": 513}, "its rank is 513, above 512", None),
    "DoRA": ("Qwen", {"use_dora": True}, "it is DoRA", None),
    "a part alone": ("Qwen2.5-Omni", {}, "as part of a whole checkpoint, and this one holds that part alone", None),
    "experts": ("Nemotron-H-Omni", {}, "it adapts experts that are one tensor, which it was reported to drop silently", None),
    "no LoRA for it": ("Qwen2-Audio", {}, "its list of models has no LoRA for Qwen2AudioForConditionalGeneration", None),
    "nothing known": ("Phi-4-multimodal", {}, "not known", "."),
}


@pytest.mark.parametrize("case", JUDGED)
def test_what_vllm_would_say_of_an_adapter(case, tmp_path):
    """Yes, no or not known, with the reason; under the checkpoint's names where those differ."""
    name, settings, says, folder = JUDGED[case]
    loaded = made(name, tmp_path / "base", **settings)
    write_adapter(loaded, tmp_path / "adapter")
    served = served_by_vllm(loaded, tmp_path / "adapter")
    write_for_vllm(tmp_path / "adapter", served)
    if folder is None:
        assert served.word == "no" and says in served.sentence() and not (tmp_path / "adapter" / "vllm").exists()
        return
    assert served.word == says and served.folder == folder and served.rank == (16 if case == "rank" else 8)
    given = tmp_path / "adapter" / folder
    modules = {k.removeprefix("base_model.model.").rpartition(".lora_")[0] for k in load_file(given / "adapter_model.safetensors")}
    assert {f"{m}.weight" for m in modules} <= set(tensors(tmp_path / "base"))
    if folder == "vllm":  # PEFT's own may have leaf names, where those tell the modules apart in its model
        assert set(read_json(given / "adapter_config.json")["target_modules"]) == modules
    assert (tmp_path / "adapter" / "vllm").exists() == (folder == "vllm")


def test_where_reports_contradict_the_list_nothing_is_known(tmp_path, monkeypatch):
    """Both are named; a smallest version is told where one is known, and else that none is."""
    loaded = made("Qwen", tmp_path / "base")
    write_adapter(loaded, tmp_path / "adapter")
    kind = type(unwrap(loaded.model)).__name__
    served = served_by_vllm(loaded, tmp_path / "adapter")
    assert served.word == "yes" and "of which version of vLLM is not known" in served.sentence() and served.to_dict()["since"] is None
    monkeypatch.setitem(LORA_IN_VLLM, kind, InVllm("", since="0.1.2"))
    assert "vLLM 0.1.2 or newer" in served_by_vllm(loaded, tmp_path / "adapter").sentence()
    monkeypatch.setitem(LORA_IN_VLLM, kind, InVllm("", doubt=LORA_IN_VLLM["Qwen3OmniMoeThinkerForConditionalGeneration"].doubt))
    served = served_by_vllm(loaded, tmp_path / "adapter")
    assert served.word == "not known" and "#51347" in served.sentence() and served.rank == 8


def test_whole_modules_are_refused_by_the_rule(tmp_path):
    """A setting that gapclose does not make, and another program may have."""
    loaded = made("Qwen", tmp_path / "base")
    write_adapter(loaded, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    write_json(path, read_json(path) | {"modules_to_save": ["lm_head"], "bias": "all"})
    assert served_by_vllm(loaded, tmp_path / "adapter").reasons == ["it carries whole modules", "it carries biases"]
