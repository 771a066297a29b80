"""GapCallback in a Trainer on two CPU processes, under every engine: the same training as without it, and the figures of ``measure``."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftModel
from text_training import SETTINGS, few_passages, text_model
from transformers import AutoModelForCausalLM

from gapclose import Monitor, load_run, measure
from gapclose.core.settings import flatten
from gapclose.models.checkpoint import memory_fingerprint

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ENGINES = ["ddp", "fsdp2", "zero2", "zero3"]
OFF = dict.fromkeys(("random_weights", "layers", "blank", "nested", "codelength", "labels", "interchange", "baselines"), False)
WRAP = {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer"}
FIGURES = ("action", "reading", "gap", "generated", "fresh_probe", "modality")


def figures(record) -> dict[str, float]:
    """The figures of a record by their path."""
    return {name: value for name, value in flatten({f: record[f] for f in FIGURES}).items() if value is not None}


def measured(model, items, directory) -> dict[str, float]:
    """What ``measure`` says on one process."""
    return figures(measure(model, text_model()[0], items, run_dir=directory, **SETTINGS, controls=OFF).base.record)


def equal(found, alone: dict[str, float], engine: str) -> None:
    """Exactly, except that engines that shard the model fill their batches in another way, which rounds otherwise."""
    if engine in ("fsdp2", "zero3"):
        assert figures(found.record) == pytest.approx(alone, rel=1e-5)
    else:
        assert figures(found.record) == alone


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return few_passages(tmp_path_factory.mktemp("passages"))


@pytest.fixture(scope="module")
def base_figures(items, tmp_path_factory):
    return measured(text_model()[1], items, tmp_path_factory.mktemp("base"))


@pytest.fixture(params=ENGINES)
def engine(request) -> str:
    if request.param.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed (extra `deepspeed`)")
    return request.param


def trained_run(engine: str, items, out: Path, *more: str):
    """The callback's run. The script compares the weights with those of a training without it."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "families")))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "FSDP_"))}
    command = [sys.executable, str(HERE / "engines_on_cpu.py"), engine, "2", "--"]
    result = subprocess.run(
        [*command, str(HERE / "callback_training.py"), str(items.root), str(out), engine, *more],
        env=kept | WRAP | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    found = load_run(out / "watched" / "gapclose")
    assert [r.stage for r in found.records] == ["base/val", "base/test", "step-3/val", "step-5/val", "adapted/test"]
    return found


def test_its_figures_are_those_of_measure_on_one_process(engine, items, base_figures, tmp_path):
    """Before and after a training of the model's last layer."""
    found = trained_run(engine, items, tmp_path / "out")
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "watched")
    after = measured(trained, items, tmp_path / "after")
    equal(found.stage("base/test"), base_figures, engine)
    equal(found.stage("adapted/test"), after, engine)
    assert after != base_figures


def test_with_lora_base_and_trained_model_are_measured_apart(engine, items, base_figures, tmp_path):
    found, (tokenizer, base) = trained_run(engine, items, tmp_path / "out", "lora"), text_model()
    equal(found.stage("base/test"), base_figures, engine)
    claimed = json.loads((tmp_path / "out" / "watched" / "gapclose" / "callback.json").read_text())
    assert claimed["base"] == memory_fingerprint(base, tokenizer)
    assert Monitor.from_pretrained(tmp_path / "out" / "monitor").file.model.fingerprint == claimed["base"]
    merged = PeftModel.from_pretrained(base, tmp_path / "out" / "watched" / "adapter").merge_and_unload()
    after = measured(merged, items, tmp_path / "after")
    assert figures(found.stage("adapted/test").record) == pytest.approx(after, rel=1e-3)  # merging rounds
    assert base_figures != pytest.approx(after, rel=1e-3)
    changed = [r.record["adapter_changed"] for r in found.records if "adapter_changed" in r.record]
    assert changed == [True, True]
    assert found.stage("step-5/val").record["frozen_probe_shift"] == 0  # the adapters are above the probe's layer
