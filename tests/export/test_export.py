"""What a run leaves behind: exports that reproduce what was measured, and a run that is not computed twice."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
import transformers
import yaml
from run_schemas import misfit
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gapclose.core.tensor_files import write_tensors
from gapclose.data.jsonl import read_items
from gapclose.evaluation.run_records import read_records, summarise
from gapclose.evaluation.summary_text import show
from gapclose.export.model_card import model_card, title
from gapclose.export.peft import write_adapter, write_merged
from gapclose.export.run import check_export, leave_gpu
from gapclose.export.verify import verify_in_fresh_process
from gapclose.models.config import ModelConfig
from gapclose.models.loading import LoadedModel, load_model
from gapclose.models.quantization import quantised_loading
from gapclose.observe.batching import plan_batches
from gapclose.observe.extract import forward_batches
from gapclose.observe.request import ObservationRequest
from gapclose.observe.store import read_observations
from gapclose.pipeline.cli import main
from gapclose.pipeline.config import parse_config
from gapclose.pipeline.verify_export import verify
from gapclose.training.config import LoraConfig
from gapclose.training.lora import adapter_fingerprint, add_lora, load_adapter
from gapclose.training.trainer import GapTrainer


@pytest.fixture
def copied(tiny_run, tmp_path) -> Path:
    """A finished run that a test may damage."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def with_merged(tiny_run, tmp_path_factory) -> Path:
    """The run with its merged export, written again by `gapclose export`."""
    directory = tmp_path_factory.mktemp("merged") / "run"
    shutil.copytree(tiny_run, directory)
    shutil.rmtree(directory / "adapter")
    where = ["--config", str(directory / "config.yaml"), "--run_dir", str(directory)]
    assert main(["export", *where, "--export.merged", "true", "--export.verify", "false"]) == 0
    return directory


@pytest.fixture
def published(tiny_checkpoint, tmp_path) -> Path:
    """A checkpoint that names a temperature which nothing uses, as published ones do, and whose end token is no list yet."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "published"))
    settings = json.loads((folder / "generation_config.json").read_text()) | {"do_sample": False, "temperature": 0.9, "top_p": 0.6}
    settings["eos_token_id"] = settings["eos_token_id"][0] if isinstance(settings["eos_token_id"], list) else settings["eos_token_id"]
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.usefixtures("no_outline")
def test_settings_of_generation_that_change_nothing_do_not_keep_a_merged_model_from_being_saved(
    published, digits_directory, tmp_path, capsys
):
    """Transformers refuses them where the end tokens have changed. They are left out, which validate says; end tokens stay."""
    config = ModelConfig(path=str(published), dtype="float32")
    loaded = load_model(config)
    ends = loaded.model.generation_config.eos_token_id
    add_lora(loaded, LoraConfig(r=2), [5], seed=0)
    write_merged(loaded, config, tmp_path / "merged")
    kept = transformers.GenerationConfig.from_pretrained(tmp_path / "merged")
    assert kept.temperature is None and kept.top_p is None and kept.eos_token_id == ends
    arguments = ["validate", "--data.path", str(digits_directory), "--model.path", str(published), "--export.merged", "true"]
    assert main(arguments) == 0
    assert "export.merged leaves temperature, top_p out of generation_config.json" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (transformers.GenerationConfig, "save_pretrained"),
        (transformers.ProcessorMixin, "save_pretrained"),
        (transformers.PreTrainedModel, "save_pretrained"),
        (transformers.PretrainedConfig, "save_pretrained"),
        (transformers.PreTrainedTokenizerBase, "save_pretrained"),
    ],
)
def test_whatever_saving_refuses_is_refused_before_a_training(tiny_checkpoint, tmp_path, monkeypatch, kind, method):
    """Of the model and of the processor, before weights are read; an adapter alone needs none of it."""
    monkeypatch.setattr("gapclose.models.loading.checkpoint_fingerprint", lambda *_: pytest.fail("weights were read"))
    arguments = ["--model.path", str(tiny_checkpoint), "--run_dir", str(tmp_path / "run")]
    check_export(parse_config([*arguments, "--export.merged", "true"]))
    monkeypatch.setattr(kind, method, refuse)
    check_export(parse_config(arguments))
    with pytest.raises(ValueError, match="could not be exported after the training") as error:
        check_export(parse_config([*arguments, "--export.merged", "true"]))
    assert "(ValueError: what is wrong with it)" in str(error.value) and "set export.merged and export.omni to false" in str(error.value)


def refuse(*args, **kwargs):
    """What saving might say."""
    raise ValueError("what is wrong with it")


def test_a_generation_configuration_that_means_nothing_is_refused(published, tmp_path):
    """What is wrong changes something, so it is left to the user."""
    (published / "generation_config.json").write_text('{"early_stopping": "maybe"}')
    with pytest.raises(ValueError, match="could not be exported after the training .*early_stopping"):
        check_export(parse_config(["--model.path", str(published), "--run_dir", str(tmp_path / "run"), "--export.merged", "true"]))


def test_the_run_verifies_its_adapter_in_a_fresh_process(tiny_run, tiny_config, tmp_path):
    """On whole batches, with no difference on the machine that measured."""
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    shutil.rmtree(run / "adapter")
    assert main(["close", "--config", str(tiny_config), "--run_dir", str(run), "--export.verify", "true"]) == 0
    verified = json.loads((run / "adapter" / "verified.json").read_text())
    assert verified["adapter"]["items"] == 64 and verified["adapter"]["largest_difference"] < 1e-4
    assert misfit("verified", verified) == ""


def test_both_exports_reproduce_what_was_measured(with_merged, tiny_run):
    """The adapter exactly, the merged weights but for rounding."""
    found = verify(with_merged)
    assert found["adapter"]["largest_difference"] < 1e-5 and found["merged"]["largest_difference"] < 1e-4
    assert misfit("verified", found) == ""
    first, second = (load_file(d / "adapter" / "adapter_model.safetensors") for d in (tiny_run, with_merged))
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_the_merged_export_is_an_ordinary_checkpoint(with_merged, tiny_config):
    """Loaded by transformers alone, it gives every stored score of the adapted model."""
    config = parse_config(["--config", str(tiny_config)])
    model = transformers.AutoModelForMultimodalLM.from_pretrained(with_merged / "merged").eval()
    processor = transformers.AutoProcessor.from_pretrained(with_merged / "merged")
    loaded = LoadedModel(model=model, processor=processor, path="", fingerprint="")
    items = read_items(config.data.path).select(split="test")
    stored = read_observations(with_merged / "observations" / "adapted-test")
    batches, how = plan_batches(items.items, config.observe.batch_size), replace(config.observe, share_prefix=False)
    seen = forward_batches(loaded, batches, loaded.media(items), how, ObservationRequest(generate=True)).take(stored.ids)
    torch.testing.assert_close(seen.scores, stored.scores, atol=1e-4, rtol=0)
    assert seen.answers == stored.answers
    base = read_observations(with_merged / "observations" / "base-test", stored.ids)
    finite = torch.isfinite(base.scores)
    assert (base.scores - stored.scores)[finite].abs().max() > 0.1


def damage(kind: str, directory: Path) -> None:
    path = directory / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    first = sorted(tensors)[0]
    if kind == "corrupt":
        tensors[first] = tensors[first] + 0.5
    if kind == "zero":
        tensors = {k: torch.zeros_like(v) if "lora_B" in k else v for k, v in tensors.items()}
    if kind == "lost":
        del tensors[first]
    if kind == "renamed":
        tensors = {k.replace("language_model", "thinker.language_model"): v for k, v in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("corrupt", r"adapter: option scores differ by up to [0-9.e+]+ nats from those measured \(tolerance 0.001\)"),
        ("zero", "adapter: every lora_B is zero; the adapter changes nothing"),
        ("lost", "adapter: 1 adapter keys were not applied"),
        ("renamed", "adapter keys were not applied, e.g. .* was it trained on another model class"),
    ],
)
def test_a_damaged_adapter_does_not_pass(copied, kind, message):
    """Whatever the damage, with a message that tells it."""
    damage(kind, copied)
    with pytest.raises(ValueError, match=message):
        verify(copied)


@pytest.mark.slow
def test_the_fresh_process_tells_what_is_wrong(copied):
    """Its own message and nothing else: no traceback, no progress bars."""
    damage("zero", copied)
    with pytest.raises(ValueError, match="the export does not reproduce what was measured") as error:
        verify_in_fresh_process(copied)
    assert str(error.value).splitlines()[1:] == [
        f"{copied / 'adapter'}: every lora_B is zero; the adapter changes nothing (was there more than one optimiser step?)"
    ]


@pytest.mark.slow
def test_a_verification_that_breaks_is_no_mismatch(copied):
    """Another failure of the fresh process is told as one, with its traceback."""
    shutil.rmtree(copied / "observations" / "adapted-test")
    (copied / "observations" / "adapted-test").mkdir()
    (copied / "observations" / "adapted-test" / "manifest.json").write_text("{}")
    with pytest.raises(RuntimeError, match=r"verifying the export failed \(status 1\)") as error:
        verify_in_fresh_process(copied)
    assert "manifest.json: has no fingerprint, shards" in str(error.value) and "The training is whole" in str(error.value)
    assert f"`gapclose export --config {copied / 'config.yaml'} --run_dir {copied}` writes and verifies again" in str(error.value)


def test_a_merged_model_may_answer_otherwise_where_options_were_near(copied, with_merged, monkeypatch):
    """Where they lay nearer than the tolerance, which is counted; the adapter may not, nor anything where they lay apart."""
    shutil.copytree(with_merged / "merged", copied / "merged")
    best = read_observations(copied / "observations" / "adapted-test").scores[:64].topk(2, dim=1).values  # the verified batches come first
    margins = best[:, 0] - best[:, 1]
    text, between = (copied / "config.yaml").read_text(), float(margins.min() + margins.max()) / 2
    # of a merged model in float32 ten times as much
    (copied / "config.yaml").write_text(re.sub(r"tolerance: .*", f"tolerance: {between / 10}", text))

    def answered_otherwise(row):
        def read(*args):
            seen = read_observations(*args)
            seen.answers[int(row)] = "something else"
            return seen

        monkeypatch.setattr(sys.modules["gapclose.pipeline.verify_export"], "read_observations", read)

    answered_otherwise(margins.argmin())
    with pytest.raises(ValueError, match="adapter: 1 generated answers differ"):
        verify(copied)
    shutil.rmtree(copied / "adapter")
    assert verify(copied)["merged"]["flipped"] == 1
    answered_otherwise(margins.argmax())
    with pytest.raises(ValueError, match="merged: 1 generated answers differ"):
        verify(copied)


def test_the_gpu_is_left_before_anything_is_written(loaded, monkeypatch):
    """The model is moved to the CPU, its gradients and what the allocator holds are let go; a quantised one stays where it is."""
    for quantisation, moves in ((None, ["cpu"]), ("4bit", [])):
        moved, emptied = list[str](), list[bool]()
        monkeypatch.setattr(loaded.model, "to", moved.append)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda emptied=emptied: emptied.append(True))
        first = next(loaded.model.parameters())
        first.grad = torch.ones_like(first)
        leave_gpu(loaded, SimpleNamespace(model=SimpleNamespace(quantisation=quantisation)))
        assert moved == moves and emptied == [True] and first.grad is None


def test_what_is_shared_does_not_tell_where_the_base_lies(tiny_run, loaded, tiny_checkpoint):
    """Only the last part of its directory; the adapter loads on a base that is given, wherever that lies. The card of an upload neither."""
    settings = json.loads((tiny_run / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == tiny_checkpoint.name
    for path in (tiny_run / "adapter").rglob("*.json"):
        assert str(tiny_checkpoint.parent) not in path.read_text(), path
    config = parse_config(["--config", str(tiny_run / "config.yaml"), "--export.push", "me/mine", "--export.verify", "true"])
    card = model_card(summarise(tiny_run), config, loaded)
    assert str(tiny_checkpoint.parent) not in card and f'from_pretrained("{tiny_checkpoint.name}", ' in card
    assert f"`{tiny_checkpoint.name}` is a directory of the machine that trained: replace it" in card


def test_a_card_names_a_local_base_by_its_path(tiny_run, loaded, tiny_checkpoint, tmp_path, monkeypatch):
    """As `model.path` has it, with the sentence that it must be replaced; a name on the hub is what anyone has."""
    written = (tiny_run / "adapter" / "README.md").read_text()
    assert f"Base model: `{tiny_checkpoint}`.\n" in written
    assert written.count(f'from_pretrained("{tiny_checkpoint}"') == 3  # the adapter's base; the monitor's, and its processor
    assert written.count(f"`{tiny_checkpoint}` is a directory of the machine that trained: replace it by your own copy") == 1
    header, hub = carded(tiny_run, loaded, "adapter", path="owner/base")
    assert 'from_pretrained("owner/base", ' in hub and "replace it" not in hub and header["base_model"] == "owner/base"
    (tmp_path / "owner" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    header, local = carded(tiny_run, loaded, "adapter", path="owner/base")
    assert "`owner/base` is a directory of the machine that trained" in local and "base_model" not in header
    shipped = carded(tiny_run, loaded, "adapter", path="digits")[1]
    assert Path(eval(shipped.split("replace it by `")[1].split("`")[0], {"ModelConfig": ModelConfig}), "config.json").is_file()


def test_verification_copes_with_items_of_other_option_counts_beyond_the_verified_ones(copied, tiny_config):
    """The stored table is as wide as the longest list of the whole split, the verified batches may be narrower."""
    directory = copied / "observations" / "adapted-test"
    for shard in directory.glob("shard-*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            tensors, meta = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
        tensors["scores"] = torch.nn.functional.pad(tensors["scores"], (0, 3), value=-torch.inf)
        write_tensors(shard, tensors, meta)
    assert verify(copied)["adapter"]["items"] == 64


def test_the_adapter_is_the_best_epochs(tiny_run):
    """The epoch named in the summary, bit for bit as it was saved after that epoch."""
    summary = summarise(tiny_run)
    kept = load_file(tiny_run / "checkpoints" / f"epoch-{summary['epoch']}" / "adapter_model.safetensors")
    exported = load_file(tiny_run / "adapter" / "adapter_model.safetensors")
    assert kept.keys() == exported.keys() and all(torch.equal(kept[k], exported[k]) for k in kept)
    val = {r["epoch"]: r for r in read_records(tiny_run) if r["stage"].startswith("epoch-")}
    within = {e: r["action"]["balanced"]["value"] for e, r in val.items() if r["change"]["standard_drop"]["value"] <= 0.05}
    if within:
        assert within[summary["epoch"]] == max(within.values())


def test_the_model_card_holds_the_evidence(tiny_run, tiny_config, tiny_checkpoint, monkeypatch):
    """Figures with intervals, numbers of clips and items, the state, the settings; the same as in evidence.json."""
    card, summary = (tiny_run / "adapter" / "README.md").read_text(), summarise(tiny_run)
    assert json.loads((tiny_run / "adapter" / "evidence.json").read_text()) == summary
    for key in ("balanced", "standard_accuracy", "rejection", "false_alarm", "auroc", "retention"):
        assert f"| {show(summary['base'][key])} | {show(summary['adapted'][key])} |" in card
    for label, key in (("probability of the options", "option_mass"), ("generated answers that match an option", "parse_lenient")):
        assert f"| {label} | {show(summary['base'][key])} | {show(summary['adapted'][key])} |" in card
    assert f"{summary['n_clips']} clips, {summary['n_items']} items" in card and f"state: {summary['state']}" in card
    header = yaml.safe_load(card.split("---")[1])
    loading = card.split("```python\n")[1].split("```")[0].replace(".eval()", "")
    monkeypatch.chdir(tiny_run)
    base = loading.split('from_pretrained("')[1].split('"')[0]
    exec(loading.replace(f'"{base}"', f'"{tiny_checkpoint}"'), found := {})
    ours = load_adapter(parse_config(["--config", str(tiny_config)]).model, tiny_run / "adapter")
    assert adapter_fingerprint(found["model"]) == adapter_fingerprint(ours.model)
    assert header["library_name"] == "peft" and "gapclose" in header["tags"]


def carded(tiny_run, loaded, kind: str, **model) -> tuple[dict, str]:
    """Header and text of a card, of the tiny run with other settings of its model."""
    config = parse_config(["--config", str(tiny_run / "config.yaml")])
    config.model = replace(config.model, **model)
    _, header, text = model_card(summarise(tiny_run), config, loaded, kind=kind).split("---\n", 2)
    return yaml.safe_load(header), text


def test_names_in_a_card_are_no_markup(tiny_run, loaded):
    """A sentence about a modality holds its name, whatever that is."""
    summary = summarise(tiny_run)
    summary["verdicts"] = {name: of | {"sentence": "a|b *c* <d>"} for name, of in summary["verdicts"].items()}
    card = model_card(summary, parse_config(["--config", str(tiny_run / "config.yaml")]), loaded)
    assert card.count(r"a\|b \*c\* \<d>") == 2 and "a|b" not in card


KINDS = {
    "adapter": ("Adapter of a run", "Adapter that lets the model act"),
    "merged": ("Model with the adapter folded in, of a run", "Model with the adapter folded in that lets it act"),
    "omni": (
        "Whole omni model with the adapter folded into its thinker, of a run",
        "Whole omni model with the adapter folded into its thinker that lets it act",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_names_the_kind_of_its_export(tiny_run, loaded, kind):
    """In header and title, which says no more than was measured; the base stands in the header only under a name that the hub has."""
    header, text = carded(tiny_run, loaded, kind)
    if kind == "adapter":
        assert header == {"library_name": "peft", "tags": ["gapclose", "lora"]}
    else:
        assert header == {"library_name": "transformers", "base_model_relation": "finetune", "tags": ["gapclose"]}
    ended, acts = KINDS[kind]
    assert f"\n# {ended} that ended in state `" in text and f"Base model: `{loaded.path}`.\n" in text
    config = parse_config(["--config", str(tiny_run / "config.yaml")])
    closed = {"state": "closed", "stopped": None, "unimproved": None, "verdicts": {"gap": {"word": "real"}}}
    assert title(closed, config, kind) == f"{acts} on what it represents"
    config.targets.control = "shuffled"
    assert title(closed, config, kind) == "A control (targets.control: shuffled), not meant for use"
    assert carded(tiny_run, loaded, kind, path="owner/base.1-b")[0] == header | {"base_model": "owner/base.1-b"}


def test_a_card_loads_the_base_as_it_was_measured(tiny_run, loaded, monkeypatch):
    """Its revision, its own code, its quantisation; what the template was told stands beside it. What was not set is not said."""
    plain = carded(tiny_run, loaded, "adapter")[1]
    assert not any(word in plain for word in ("revision", "trust_remote_code", "quantis", "Asked with"))
    settings = {
        "path": "owner/base",
        "revision": "v1.2",
        "trust_remote_code": True,
        "template": {"enable_thinking": False, "system": "mine"},
    }
    text = carded(tiny_run, loaded, "adapter", quantisation="4bit", **settings)[1]
    assert "Base model: `owner/base`, revision `v1.2`." in text
    assert 'Asked with `enable_thinking=False`, `system="mine"` in the chat template.' in text
    assert "The base was quantised (4bit, by bitsandbytes), and is loaded so here." in text
    snippet, given = text.split("```python\n")[1].split("```")[0], {}
    monkeypatch.chdir(tiny_run)
    own = type(loaded.model)
    real = own.from_pretrained
    monkeypatch.setattr(own, "from_pretrained", lambda name, **how: given.update(name=name, **how) or real(loaded.path, dtype=how["dtype"]))
    exec(snippet, found := {})
    quantised = given.pop("quantization_config")
    assert given == {"name": "owner/base", "dtype": "float32", "revision": "v1.2", "trust_remote_code": True}
    assert quantised.to_dict() == quantised_loading("4bit", loaded.model, loaded.layers)["quantization_config"].to_dict()
    assert not found["model"].training and any("lora_B" in n for n, _ in found["model"].named_parameters())
    whole = carded(tiny_run, loaded, "merged", **settings)[1]
    assert '.from_pretrained("merged", dtype="float32", trust_remote_code=True).eval()' in whole and "Asked with" in whole
    assert "Asked with" in carded(tiny_run, loaded, "omni", **settings)[1]


def test_a_card_loads_a_class_of_the_checkpoints_own_code_by_an_auto_class(tiny_run, loaded):
    """transformers has no class of that name."""
    loaded.model.__class__ = type("OwnModel", (type(loaded.model),), {})
    text = carded(tiny_run, loaded, "adapter", trust_remote_code=True)[1]
    assert "from transformers import AutoModelForMultimodalLM\n" in text and "OwnModel" not in text


def test_an_adapter_names_the_revision_of_its_base(tiny_run, loaded, tmp_path):
    """Where PEFT looks for it; null where none was asked for."""
    assert json.loads((tiny_run / "adapter" / "adapter_config.json").read_text())["revision"] is None
    add_lora(loaded, LoraConfig(r=2), [5], seed=0)
    write_adapter(loaded, tmp_path / "adapter", "v1.2")
    assert peft.PeftConfig.from_pretrained(str(tmp_path / "adapter")).revision == "v1.2"


def test_no_pickle_is_left_in_what_is_shared(with_merged):
    """Adapter, merged model, probes, targets and observations are safetensors and JSON."""
    for folder in ("adapter", "merged", "probes", "observations"):
        kinds = {p.suffix for p in (with_merged / folder).rglob("*") if p.is_file()}
        assert kinds <= {".safetensors", ".json", ".md", ".jinja"}, folder
    assert sorted(p.name for p in with_merged.glob("*.safetensors")) == ["targets.safetensors"]


def test_the_same_command_again_computes_nothing_and_gives_the_same_figures(copied, tiny_config, monkeypatch):
    """No forward, no step; the record of truth keeps every byte."""
    before, summary = (copied / "gap.jsonl").read_bytes(), summarise(copied)
    adapter = load_file(copied / "adapter" / "adapter_model.safetensors")

    def refuse(*args, **kwargs):
        raise AssertionError("nothing should be computed")

    monkeypatch.setattr("gapclose.observe.extract._forward", refuse)
    monkeypatch.setattr(GapTrainer, "training_step", refuse)
    assert main(["close", "--config", str(tiny_config), "--run_dir", str(copied), "--export.verify", "false"]) == 0
    assert summarise(copied) == summary and (copied / "gap.jsonl").read_bytes() == before
    again = load_file(copied / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(adapter[k], again[k]) for k in adapter)


def test_other_settings_in_the_same_directory_are_refused(copied, tiny_config, capsys):
    """By name, with both values; what changes no number may differ."""
    assert main(["close", "--config", str(tiny_config), "--run_dir", str(copied), "--targets.gate", "0.5"]) == 2
    assert "targets.gate: 0.8 there, 0.5 now" in capsys.readouterr().err


def test_a_loaded_adapter_is_in_eval_mode_and_applied(tiny_run, tiny_config):
    """As a user would load it."""
    loaded = load_adapter(parse_config(["--config", str(tiny_config)]).model, tiny_run / "adapter")
    assert not loaded.model.training and any("lora_B" in n and p.abs().max() > 0 for n, p in loaded.model.named_parameters())
