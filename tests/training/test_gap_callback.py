"""GapCallback in the trainers of others: its figures are those of `measure`, the training is the same with and without it."""

import json
import logging
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from PIL import Image
from run_schemas import misfits
from text_training import SETTINGS as TEXT
from text_training import few_passages, text_model, trainer_of_text
from tiny_families import qwen2_5_vl, spread
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers.integrations.integration_utils import rewrite_logs
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from wandb_files import finished, values

from gapclose import GapCallback, ItemSet, Monitor, load_items, load_run, measure
from gapclose.core.distributed import engine_of
from gapclose.core.logging import show_warnings
from gapclose.core.settings import decisions
from gapclose.evaluation.run_records import HEADLINES, read_records, record_of
from gapclose.metrics.next_steps import CALLBACK_STEPS
from gapclose.models.config import ModelConfig
from gapclose.models.loading import load_model
from gapclose.models.training_state import training_set_aside
from gapclose.observe.store import read_observations
from gapclose.pipeline.callback_start import FILES, claim_callback_directory, refuse_unmeasurable
from gapclose.pipeline.cli import main
from gapclose.pipeline.measure_context import MeasureContext
from gapclose.training.trl.dataset import messages_for_trl

SETTINGS = {
    "observe": {"batch_size": 32, "shard_batches": 1, "max_new_tokens": 3},
    "probe": {"families": ["logistic"], "c": [0.01], "folds": 2},
    "gap": {"replicates": 100},
}
NO_CONTROLS = dict.fromkeys(("random_weights", "layers", "blank", "nested", "codelength", "labels", "interchange", "baselines"), False)
LAST = {"target_modules": ["q_proj", "down_proj"], "layers_pattern": "layers"}
COMMON = {"use_cpu": True, "save_strategy": "no", "logging_steps": 1, "learning_rate": 0.01, "per_device_train_batch_size": 8}


class Tracker(hf.TrainerCallback):
    """Stands where the trainer puts those of ``report_to``: before the user's callbacks, and closed at the end of training."""

    def __init__(self) -> None:
        self.lines, self.open = list[dict[str, Any]](), False

    def on_train_begin(self, args, state, control, **kwargs):
        self.open = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        assert self.open
        self.lines.append(rewrite_logs(logs) | {"step": state.global_step})

    def on_train_end(self, args, state, control, **kwargs):
        self.open = False


def losses(trainer: hf.Trainer) -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if "loss" in line]


def figures(record: Any) -> dict[str, Any]:
    """What a record says of the model on the items, without what a training adds."""
    return {name: record[name] for name in ("action", "reading", "gap", "generated", "fresh_probe", "sentinel_probe", "modality")}


@pytest.fixture(scope="module")
def images(images_directory) -> ItemSet:
    return load_items(images_directory)


def rows(items: ItemSet, number: int = 16) -> list[dict[str, Any]]:
    found = []
    for item in items.select(split="train", purpose="gap").items[:number]:
        chosen, rejected = ([{"role": "assistant", "content": [{"type": "text", "text": o.text}]}] for o in item.options[:2])
        pictures = [Image.open(items.root / path) for _, path in item.media]
        found.append({"prompt": messages_for_trl(item, multimodal=True), "images": pictures, "chosen": chosen, "rejected": rejected})
    return found


def sft(checkpoint: Path, items: ItemSet, directory: Path, *callbacks: hf.TrainerCallback, **arguments: Any) -> SFTTrainer:
    """TRL's defaults: bf16 by autocast, and activations recomputed; dropout draws random numbers."""
    loaded = load_model(ModelConfig(path=str(checkpoint), dtype="float32"))
    data = Dataset.from_list([{"prompt": r["prompt"], "completion": r["chosen"], "images": r["images"]} for r in rows(items)])
    how = COMMON | {"output_dir": str(directory), "num_train_epochs": 2, "report_to": [], "max_length": None} | arguments
    adapters = LoraConfig(r=4, lora_dropout=0.1, layers_to_transform=[4], **LAST)
    args = SFTConfig(**how)
    assert args.bf16 and args.gradient_checkpointing
    trainer = SFTTrainer(
        loaded.model, args=args, train_dataset=data, processing_class=loaded.processor, peft_config=adapters, callbacks=list(callbacks)
    )
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def trained(tiny_checkpoint, images, tmp_path_factory) -> SimpleNamespace:
    """The same training without and with the callback."""
    directory, tracker = tmp_path_factory.mktemp("sft"), Tracker()
    plain = sft(tiny_checkpoint, images, directory / "plain")
    order = [tracker, GapCallback(images, **SETTINGS)]
    watched = sft(tiny_checkpoint, images, directory / "watched", *order)
    return SimpleNamespace(plain=plain, watched=watched, tracker=tracker, out=directory / "watched" / "gapclose", order=order)


def test_the_training_is_the_same_bit_for_bit(trained):
    ours, theirs = (get_peft_model_state_dict(t.model) for t in (trained.watched, trained.plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and any(v.any() for k, v in theirs.items() if "lora_B" in k)
    assert losses(trained.watched) == losses(trained.plain) and len(losses(trained.plain)) == 4
    assert [c for c in trained.watched.callback_handler.callbacks if c in trained.order] == trained.order


def test_the_base_model_s_figures_are_those_of_measure(trained, loaded, images, tmp_path):
    result = measure(loaded.model, loaded.processor, images, run_dir=tmp_path / "run", **SETTINGS, controls=NO_CONTROLS)
    ours = load_run(trained.out)
    assert ours.base.record == result.base.record
    assert ours.probe.layers == result.probe.layers and torch.equal(ours.probe.weight, result.probe.weight)


def test_records_fit_the_schema_and_the_model_s_own_precision_is_measured(trained):
    """Autocast would move what the frozen probe reads; adapters above it do not."""
    records = read_records(trained.out)
    assert [r["stage"] for r in records] == ["base/val", "base/test", "epoch-1/val", "epoch-2/val", "adapted/test"]
    assert [r.get("step") for r in records] == [None, None, 2, 4, 4] and misfits(trained.out) == {}
    assert {r["frozen_probe_shift"] for r in records[2:]} == {0.0}
    assert all(r["adapter_changed"] for r in records if r["stage"].startswith("epoch"))
    assert records[1]["action"] != records[4]["action"] and load_run(trained.out).adapted is not None
    assert sorted(p.name for p in (trained.out / "observations").iterdir()) == ["base-fit", "base-test", "base-val"]


def test_the_report_is_about_that_training(trained, capsys):
    """It names the step, gives no advice on settings of a run, and is found from the trainer's own directory."""
    assert main(["report", str(trained.out)]) == 0
    said = capsys.readouterr().out
    assert "the model is that after step 4 of a training that GapCallback measured, epoch 2;" in said and "the adapter is that" not in said
    state = load_run(trained.out).state
    assert f"next: {CALLBACK_STEPS['trained'][state]}" in said
    assert "which choose the checkpoint" not in (trained.out / "report.html").read_text()
    assert main(["report", str(trained.out.parent)]) == 2
    assert f"; did you mean '{trained.out}'?" in capsys.readouterr().err


def test_trackers_get_the_headline_figures(trained):
    """While they are open, at the step that was measured, and in lines of their own."""
    shown = [line for line in trained.tracker.lines if "eval/gap/balanced" in line or "test/gap/balanced" in line]
    records = read_records(trained.out)
    assert [line["step"] for line in shown] == [0, 0, 2, 4, 4]
    for line, record in zip(shown, records, strict=True):
        split = "test" if record["stage"].endswith("test") else "eval"
        assert line[f"{split}/action/balanced"] == record["action"]["balanced"]["value"] and line[f"{split}/state"] == record["state"]
        assert {k.removeprefix(f"{split}/") for k in line if k.startswith(f"{split}/")} <= set(HEADLINES)
        assert len(line) >= 15 and "train/loss" not in line
    assert sum("train/loss" in line for line in trained.tracker.lines) == 4


def test_weights_and_biases_gets_them_by_report_to(tiny_checkpoint, images, tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    watched = sft(tiny_checkpoint, images, tmp_path / "out", GapCallback(images, **SETTINGS), report_to=["wandb"], max_steps=1)
    wandb.finish()
    _, records = finished(tmp_path)
    lines = [values(r.history.item) for kind, r in records if kind == "history"]
    (last,) = [line for line in lines if "test/gap/balanced" in line and line["train/global_step"] == 1]
    record = record_of(tmp_path / "out" / "gapclose", "adapted/test")
    assert last["test/gap/balanced"] == record["gap"]["balanced"]["value"] and watched.state.global_step == 1


def test_a_guard_ends_the_training(tiny_checkpoint, images, tmp_path):
    """After two measurements in a row; the records say why, and the end is measured all the same."""
    watch = GapCallback(images, out=tmp_path / "here", every=1, stop_on=["adapter"], **SETTINGS)
    trainer = sft(tiny_checkpoint, images, tmp_path / "out", watch, learning_rate=0.0)
    records = read_records(tmp_path / "here")
    assert [r["stage"] for r in records] == ["base/val", "base/test", "step-1/val", "step-2/val", "adapted/test"]
    assert trainer.state.global_step == 2 and all(set(r["objections"]) == {"adapter"} for r in records[2:4])
    assert "still is: the model is the base model" in records[4]["stopped"]["adapter"] and misfits(tmp_path / "here") == {}
    assert not (tmp_path / "out" / "gapclose").exists()


def test_its_monitor_reads_what_it_observed_and_serves_both_models(trained, tiny_checkpoint, images, tmp_path):
    watch, val = trained.order[1], images.select(split="val", purpose="gap").items[:6]
    watch.monitor(false_alarm_rate=0.2).save(tmp_path)
    monitor, seen = (
        Monitor.from_pretrained(tmp_path),
        read_observations(trained.out / "observations" / "base-val").take([i.id for i in val]),
    )
    wanted = watch.run.probe.predict_proba(watch.run.probe.features(seen.residuals))[:, 1]
    assert monitor.file.false_alarm_rate == 0.2 and monitor.file.model.adapters_above
    base = load_model(ModelConfig(path=str(tiny_checkpoint), dtype="float32"))
    # without the trainer's autocast, in the precision of the observations
    own = trained.watched.accelerator.unwrap_model(trained.watched.model, keep_fp32_wrapper=False)
    for model, processor in ((own.eval(), trained.watched.processing_class), (base.model.eval(), base.processor)):
        found = monitor.check(model, processor, [i.messages for i in val], root=images.root)
        np.testing.assert_allclose([reading.reading for reading in found], wanted, atol=1e-4)


def test_no_monitor_of_a_model_whose_reading_is_not_the_base_models(trained, images, monkeypatch):
    with pytest.raises(ValueError, match="no monitor before the training"):
        GapCallback(images, **SETTINGS).monitor()
    watch = trained.order[1]
    records = read_records(trained.out)
    moved = [r | {"frozen_probe_shift": 1.0} if r["stage"] == "epoch-2/val" else r for r in records]
    with pytest.raises(ValueError, match="false_alarm_rate is 5; it is a share, at least 0 and below 1"):
        watch.monitor(false_alarm_rate=5)
    with monkeypatch.context() as patch:  # numbers that were not finite
        patch.setattr("gapclose.evaluation.run_records.read_records", lambda directory: records[:2])
        with pytest.raises(ValueError, match="val of the trained model was not measured"):
            watch.monitor()
    with monkeypatch.context() as patch:  # a bias or an embedding below the probe was trained beside the adapters above it
        patch.setattr("gapclose.evaluation.run_records.read_records", lambda directory: moved)
        with pytest.raises(ValueError, match="which the probe reads. Put LoRA on the layers above it"):
            watch.monitor()
    monkeypatch.setattr(watch, "lora", False)  # other weights were trained as well
    with pytest.raises(ValueError, match="which the probe reads. Put LoRA on the layers above it"):
        watch.monitor()


# -- a text model, all weights of the last layer, in transformers' own trainer ----------------------


@pytest.fixture(scope="module")
def passages(tmp_path_factory) -> ItemSet:
    return few_passages(tmp_path_factory.mktemp("people"))


@pytest.fixture(scope="module")
def by_steps(passages, tmp_path_factory) -> Path:
    """The directory of a training of five steps that is measured after every second, with checkpoints."""
    directory = tmp_path_factory.mktemp("steps")
    watch = GapCallback(passages.root, every=2, **TEXT)
    trainer_of_text(directory, passages, watch, save_strategy="steps", save_steps=2).train()
    return directory


def test_all_weights_are_trained_as_without_it(by_steps, passages, tmp_path):
    plain = trainer_of_text(tmp_path, passages)
    plain.train()
    watched = hf.AutoModelForCausalLM.from_pretrained(by_steps / "checkpoint-5").state_dict()
    assert all(torch.equal(watched[name], value) for name, value in plain.model.state_dict().items())


def test_the_figures_of_a_checkpoint_are_those_of_measure(by_steps, passages, tmp_path):
    """Exactly: what the probe reads lies below all that was trained, so that measure chooses the same probe."""
    tokenizer, _ = text_model()
    trained = hf.AutoModelForCausalLM.from_pretrained(by_steps / "checkpoint-5")
    result = measure(trained, tokenizer, passages, run_dir=tmp_path / "run", **TEXT, controls=NO_CONTROLS)
    ours = load_run(by_steps / "gapclose").adapted
    without_sentinel = [{k: v for k, v in figures(r.record).items() if k != "sentinel_probe"} for r in (ours, result.base)]
    assert without_sentinel[0] == without_sentinel[1]
    assert ours.record["action"] != load_run(by_steps / "gapclose").base.record["action"]


def test_every_second_step_and_the_end_are_measured(by_steps):
    records = read_records(by_steps / "gapclose")
    assert [r["stage"] for r in records] == ["base/val", "base/test", "step-2/val", "step-4/val", "step-5/val", "adapted/test"]
    assert [r["step"] for r in records[2:]] == [2, 4, 5, 5] and records[2]["epoch"] == 0.6667
    assert misfits(by_steps / "gapclose") == {}


def test_a_resumed_training_goes_on_from_the_measured_base(by_steps, passages, tmp_path):
    """Its weights are no base, which is read from the files of the start; without them it is refused."""
    shutil.copytree(by_steps, tmp_path / "again")
    watch, checkpoint = GapCallback(passages, every=2, **TEXT), str(tmp_path / "again" / "checkpoint-4")
    trainer_of_text(tmp_path / "again", passages, watch).train(resume_from_checkpoint=checkpoint)
    assert read_records(tmp_path / "again" / "gapclose") == read_records(by_steps / "gapclose")
    other = trainer_of_text(tmp_path / "again", passages, GapCallback(passages, every=2, **TEXT | {"gap": {"replicates": 200}}))
    with pytest.raises(ValueError, match="settings of GapCallback are not those with which this training started"):
        other.train(resume_from_checkpoint=checkpoint)
    shutil.rmtree(tmp_path / "again" / "gapclose" / "observations" / "base-val")
    without = trainer_of_text(tmp_path / "again", passages, GapCallback(passages, every=2, **TEXT))
    with pytest.raises(ValueError, match="base model's observations of val are not there, and the weights are trained already"):
        without.train(resume_from_checkpoint=checkpoint)
    shutil.rmtree(tmp_path / "again" / "gapclose")
    lost = trainer_of_text(tmp_path / "again", passages, GapCallback(passages, every=2, **TEXT))
    with pytest.raises(ValueError, match="goes on from step 4, and .* holds no measurement of its base model"):
        lost.train(resume_from_checkpoint=checkpoint)


def test_the_best_checkpoint_is_chosen_by_a_figure_of_val_and_measured(passages, tmp_path):
    """``metric_for_best_model`` finds the callback's figures, and what is measured at the end is the model that was loaded."""
    watch = GapCallback(passages, every=2, **TEXT)
    best = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    trainer = trainer_of_text(tmp_path, passages, watch, **best, metric_for_best_model="action/auroc", greater_is_better=False)
    trainer.train()
    records, at = read_records(tmp_path / "gapclose"), trainer.state.best_global_step
    found = {r["step"]: r["action"]["auroc"]["value"] for r in records if r["stage"].startswith("step-")}
    assert [*found] == [2, 4, 5], "the trainer evaluates after its last step as well"
    assert at == min(found, key=found.get) and trainer.state.best_metric == found[at]
    assert records[-1]["stage"] == "adapted/test" and records[-1]["step"] == at
    assert "eval_action/auroc" not in trainer.evaluate() and read_records(tmp_path / "gapclose") == records, "the training is over"
    plain = trainer_of_text(tmp_path / "plain", passages, GapCallback(passages, every=1000, **TEXT), **best, metric_for_best_model="loss")
    plain.train()  # val was not measured after the step of the best checkpoint
    loaded = plain.state.best_global_step
    assert [r["stage"] for r in read_records(tmp_path / "plain" / "gapclose")][2:] == [f"step-{loaded}/val", "adapted/test"]


def test_figures_that_choose_no_checkpoint(passages, tmp_path, monkeypatch):
    """Some are refused; before the first step nothing is measured; numbers that are not finite are never the best."""
    with pytest.raises(ValueError, match="metric_for_best_model 'excess' chooses no checkpoint"):
        trainer_of_text(tmp_path, passages, GapCallback(passages, **TEXT), metric_for_best_model="eval_excess").train()
    how = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    trainer = trainer_of_text(
        tmp_path / "out", passages, GapCallback(passages, every=2, **TEXT), **how, eval_on_start=True, metric_for_best_model="action/auroc"
    )
    known, measured = MeasureContext.measure, []

    def measure(run, stage, split, **kwargs):
        measured.append(split)
        if stage == "now" and split == "val" and measured.count("val") == 2:  # after step 2
            raise FloatingPointError("layer 2 is not finite")
        return known(run, stage, split, **kwargs)

    monkeypatch.setattr(MeasureContext, "measure", measure)
    trainer.train()
    stages = [r["stage"] for r in read_records(tmp_path / "out" / "gapclose")]
    assert stages == ["base/val", "base/test", "step-4/val", "step-5/val", "adapted/test"]
    assert trainer.state.best_global_step in (4, 5)


def test_lora_that_changes_the_base_is_refused():
    _, with_adapters = text_model()
    with_adapters.peft_config = {"default": SimpleNamespace(init_lora_weights="pissa_niter_4")}
    with pytest.raises(ValueError, match="init_lora_weights='pissa_niter_4' changes the base model"):
        refuse_unmeasurable(with_adapters, None)


def test_warnings_are_seen_without_any_set_up(passages, tmp_path, monkeypatch, capsys):
    """Unless the application has configured logging: then they are its records."""
    package = logging.getLogger("gapclose")
    monkeypatch.setattr(package, "handlers", [logging.NullHandler()])
    monkeypatch.setattr(logging.root, "handlers", [])
    watch, (_, whole) = GapCallback(passages, every=1000, **TEXT | {"probe": TEXT["probe"] | {"layers": [2]}}), text_model()
    whole.model.layers[0].requires_grad_(True)
    trainer_of_text(tmp_path / "here", passages, watch, model=whole, max_steps=1).train()
    told = capsys.readouterr().err
    assert "warning: the probe reads decoder layer 2, and the training changes weights there or below" in told, told
    assert "layers_to_transform from 2, counted from 0" in told
    monkeypatch.setattr(package, "handlers", [logging.NullHandler()])
    monkeypatch.setattr(logging.root, "handlers", [logging.NullHandler()])
    show_warnings()
    assert [type(h) for h in package.handlers] == [logging.NullHandler]


@pytest.mark.parametrize("began", [{"share_prefix": False}, {"share_prefix": True}, {"share_prefix": "auto"}, {}])
def test_a_training_that_began_before_auto_and_device_goes_on(by_steps, passages, tmp_path, began):
    """With the sharing that was given then; where the search runs changes no figure."""
    directory = tmp_path / "gapclose"
    shutil.copytree(by_steps / "gapclose", directory)
    came_to = decisions(directory)["observe.share_prefix"]["value"]
    mark = json.loads((directory / "callback.json").read_text())
    mark["settings"]["probe"].pop("device")
    mark["settings"]["observe"] |= began
    (directory / "callback.json").write_text(json.dumps(mark))
    watch = GapCallback(passages, every=2, **TEXT | {"probe": {**TEXT.get("probe", {}), "device": "cpu"}})
    items = mark["items"]
    run = SimpleNamespace(directory=directory, items=SimpleNamespace(fingerprint=lambda labels: items), config=watch.config)
    assert claim_callback_directory(run, "other", 4, [], base_known=False) == mark["base"]
    assert decisions(directory)["observe.share_prefix"]["value"] is (
        began["share_prefix"] if isinstance(began.get("share_prefix"), bool) else came_to
    )
    watch.config.observe.share_prefix = not decisions(directory)["observe.share_prefix"]["value"]
    with pytest.raises(ValueError, match="settings of GapCallback are not those"):
        claim_callback_directory(run, "other", 4, [], base_known=False)


def test_a_resumed_training_of_adapters_knows_its_base(passages, tmp_path):
    """Its fingerprint leaves the adapters out, so it is the same after steps."""

    def trainer() -> hf.Trainer:
        adapted = get_peft_model(
            text_model()[1], LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[3], layers_pattern="layers")
        )
        watch = GapCallback(passages, every=2, **TEXT)
        return trainer_of_text(tmp_path, passages, watch, model=adapted, save_strategy="steps", save_steps=2, max_steps=4)

    trainer().train()
    before = read_records(tmp_path / "gapclose")
    trainer().train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert read_records(tmp_path / "gapclose") == before


def test_a_resumed_training_of_adapters_needs_the_base_of_its_start(by_steps, passages, tmp_path):
    """Its base is at hand, so that another one is noticed; without the mark of a start nothing is taken over."""
    directory = tmp_path / "gapclose"
    shutil.copytree(by_steps / "gapclose", directory)
    mark = json.loads((directory / "callback.json").read_text())
    watch = GapCallback(passages, every=2, **TEXT)
    run = SimpleNamespace(directory=directory, items=SimpleNamespace(fingerprint=lambda labels: mark["items"]), config=watch.config)
    known = {"base_known": True}
    assert claim_callback_directory(run, mark["base"], 4, [], **known) == mark["base"]
    with pytest.raises(ValueError, match=f"with the hash {mark['base']}, and this one has other"):
        claim_callback_directory(run, "other", 4, [], **known)
    assert FILES[-1] == "callback.json", "a start that is killed while it clears the directory leaves the mark for the next"


def test_a_run_s_own_directory_is_not_taken(passages, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "gap.jsonl").write_text("")
    trainer = trainer_of_text(tmp_path, passages, GapCallback(passages, out=tmp_path / "run", **TEXT))
    with pytest.raises(ValueError, match="holds a run of gapclose; give GapCallback another directory"):
        trainer.train()


def zero(**settings: Any) -> dict[str, Any]:
    return {"deepspeed_plugin": SimpleNamespace(deepspeed_config={"zero_optimization": settings})}


def fsdp2(**settings: Any) -> dict[str, Any]:
    return {"fsdp_plugin": SimpleNamespace(**{"fsdp_version": 2, "cpu_offload": None, "activation_checkpointing": False} | settings)}


ENGINES_REFUSED = [
    ("FSDP", fsdp2(fsdp_version=1), "FSDP version 1 is not supported"),
    ("FSDP", fsdp2(cpu_offload=CPUOffloadPolicy()), "offloading"),
    ("FSDP", fsdp2(activation_checkpointing=True), "activation checkpointing by FSDP"),
    ("DEEPSPEED", zero(stage=1), "ZeRO stage 1 is not supported"),
    ("DEEPSPEED", zero(stage=3, offload_param={"device": "cpu"}), "offloading"),
    ("DEEPSPEED", zero(stage=2, cpu_offload=True), "offloading"),
    ("MEGATRON_LM", {}, "megatron_lm is not supported"),
]


@pytest.mark.parametrize(("kind", "plugins", "says"), ENGINES_REFUSED)
def test_other_engines_are_refused(kind, plugins, says, passages, tmp_path, monkeypatch):
    accelerator = SimpleNamespace(distributed_type=kind, state=SimpleNamespace(**plugins))
    monkeypatch.setattr("gapclose.pipeline.callback_start.engine_of", lambda _: engine_of(accelerator))
    trainer = trainer_of_text(tmp_path, passages, GapCallback(passages, **TEXT))
    with pytest.raises(ValueError, match=says):
        trainer.train()
    assert not (tmp_path / "gapclose").exists()


@pytest.mark.parametrize("what", ["get_tp_size", "get_cp_size", "get_sp_size", "loaded"])
def test_processes_that_share_one_forward_are_refused(what, passages, tmp_path, monkeypatch):
    trainer = trainer_of_text(tmp_path, passages)
    model = trainer.model
    refuse_unmeasurable(model, trainer)
    if what == "loaded":
        monkeypatch.setattr(type(model), "is_distributed_loading_by_transformers", True)
    else:
        monkeypatch.setattr(trainer, what, lambda: 2)
    with pytest.raises(ValueError, match="share one forward"):
        refuse_unmeasurable(model, trainer)


def test_without_a_trainer_a_wrapped_model_is_refused(monkeypatch):
    refuse_unmeasurable(text_model()[1], None)
    monkeypatch.setattr("gapclose.pipeline.callback_start.is_wrapped", lambda model: True)
    with pytest.raises(ValueError, match="without a transformers.Trainer"):
        refuse_unmeasurable(text_model()[1], None)


def test_a_loss_of_the_numbers_does_not_end_the_training(passages, tmp_path, caplog):
    """Weights that are not finite cannot be measured; the callback says so, and measures nothing."""

    class Spoil(hf.TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            with torch.no_grad():
                model.lm_head.weight.fill_(torch.nan)

    with caplog.at_level("WARNING", logger="gapclose"):
        trainer = trainer_of_text(tmp_path, passages, Spoil(), GapCallback(passages, **TEXT), max_steps=1)
        trainer.train()
    assert [r["stage"] for r in read_records(tmp_path / "gapclose")] == ["base/val", "base/test"]
    assert "epoch-1/val is not measured" in caplog.text and trainer.state.global_step == 1
    trainer = trainer_of_text(tmp_path, passages, Spoil(), GapCallback(passages, every=1, stop_on=["parsing"], **TEXT), max_steps=3)
    trainer.train()
    assert trainer.state.global_step == 2  # measured before the weights are spoiled, then not: the guard ends it


def test_dpo_of_a_model_that_only_sees(images, tmp_path):
    """By TRL, with the reference that it keeps; without test items there is no test."""
    torch.manual_seed(0)
    processor, model = qwen2_5_vl()
    spread(model)
    items = images.holding([i for i in images if i.split != "test"])
    adapters, args = (
        LoraConfig(r=4, layers_to_transform=[3], **LAST),
        DPOConfig(**COMMON, output_dir=str(tmp_path), max_steps=2, max_length=None),
    )
    data = Dataset.from_list(rows(items))
    watch = GapCallback(items, processor=processor, every=1, **SETTINGS)
    trainer = DPOTrainer(model, args=args, train_dataset=data, processing_class=processor, peft_config=adapters, callbacks=[watch])
    trainer.train()
    records = read_records(tmp_path / "gapclose")
    assert [r["stage"] for r in records] == ["base/val", "step-1/val", "step-2/val"]
    assert isinstance(trainer.model, PeftModel) and [r["adapter_changed"] for r in records[1:]] == [True, True]
    assert {r["frozen_probe_shift"] for r in records[1:]} == {0.0} and records[2]["action"] != records[0]["action"]
    assert all("rewards/margins" in line for line in losses(trainer))


# -- what is kept and what is refused -----------------------------------------------------------------


def test_a_training_that_is_set_aside_is_left_as_it_was(loaded):
    model = loaded.model.train()
    first, wrapper = model.forward, (lambda *args, **kwargs: pytest.fail("the wrapped forward was called"))
    model._original_forward, model.forward = first, wrapper
    some = next(m for m in model.modules() if isinstance(m, torch.nn.LayerNorm) or "Norm" in type(m).__name__).eval()
    frozen = next(model.parameters()).requires_grad_(False)
    eos, states = model.generation_config.eos_token_id, (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    with pytest.raises(KeyboardInterrupt), torch.autocast("cpu", dtype=torch.bfloat16), training_set_aside(model):
        assert not any(m.training for m in model.modules()) and not torch.is_autocast_enabled("cpu") and model.forward == first
        model.generation_config.eos_token_id = 7
        model.requires_grad_(True)
        random.random(), np.random.rand(), torch.rand(1)
        raise KeyboardInterrupt
    assert model.forward is wrapper and model.training and not some.training and not frozen.requires_grad
    assert model.generation_config.eos_token_id == eos and states[0] == random.getstate()
    assert states[1] == np.random.get_state()[1].tolist() and torch.equal(states[2], torch.get_rng_state())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"every": 0}, "every is 0; it must be 'epoch' or a number of optimiser steps"),
        ({"every": "step"}, "every is 'step'"),
        ({"stop_on": ["rejection"]}, r"stop_on names \['rejection'\]; choose some of \['over-rejection'"),
        ({"guards": {"off": ["parsing"]}}, "stop_on names the guards that are on"),
        ({"train": {"epochs": 1}}, r"unknown settings \['train'\]"),
        ({"probe": {"fold": 1}}, r"unknown keys \['fold'\] in probe"),
        ({"gap": {"replicates": 3}}, "gap.replicates is 3"),
        ({"probe": {"families": ["nowhere_at_all:f"]}}, "cannot be imported"),
    ],
)
def test_settings_that_do_not_exist_or_do_not_fit_are_refused_at_once(passages, settings, says):
    with pytest.raises(ValueError, match=says):
        GapCallback(passages, **settings)


def test_items_and_processor_are_asked_for_before_anything_is_trained(passages, tmp_path):
    unlabelled = passages.holding([i for i in passages if i.split != "val"])
    trainer = trainer_of_text(tmp_path, passages, GapCallback(unlabelled, **TEXT))
    with pytest.raises(ValueError, match="split 'val' has no items with purpose 'gap'"):
        trainer.train()
    trainer = trainer_of_text(tmp_path, passages, GapCallback(passages, **TEXT))
    trainer.callback_handler.processing_class = None
    with pytest.raises(ValueError, match="GapCallback needs a processor"):
        trainer.train()
    assert trainer.state.global_step == 0
