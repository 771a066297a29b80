"""Runs on a model in memory give what the commands give; the import stays light."""

import dataclasses
import importlib
import json
import shutil
import subprocess
import sys

import pytest
import torch

import gapclose
from gapclose import close, load_run, measure
from gapclose.evaluation.run_records import read_records
from gapclose.models.checkpoint import memory_fingerprint
from gapclose.pipeline.cli import main

SETTINGS = {
    "observe": {"batch_size": 32, "shard_batches": 1, "max_new_tokens": 3, "share_prefix": False},
    "probe": {"families": ["logistic", "mean_difference"], "c": [0.01], "folds": 2},
    "gap": {"replicates": 100},
}
OFF = {"layers": False, "blank": False, "nested": False, "codelength": False, "labels": False, "interchange": False, "baselines": False}


def test_measure_gives_the_figures_of_the_command_and_leaves_the_model_alone(loaded, digits, tiny_run, tmp_path):
    """Random networks are drawn in the user's own model, whose weights are the same afterwards."""
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    result = measure(loaded.model, loaded.processor, digits, run_dir=tmp_path / "run", **SETTINGS, controls=OFF | {"random_draws": 2})
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.model.state_dict().items())
    by_command = next(r for r in read_records(tiny_run) if r["stage"] == "base/test")
    assert result.base.record["action"] == by_command["action"] and result.base.record["reading"] == by_command["reading"]
    assert result.adapted is None and result.closure is None and set(result.verdict) == {"audio", "vision"}
    assert load_run(tmp_path / "run").to_dict() == result.to_dict()
    assert (tmp_path / "run" / "report.html").is_file() and result.probe.concepts == digits.concepts


def test_close_trains_as_the_command_does(loaded, digits, tiny_run, tmp_path):
    training = {
        "epochs": 2,
        "global_batch_size": 24,
        "micro_batch_size": 12,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "cache_trunk": False,
    }
    result = close(
        loaded.model, loaded.processor, digits, run_dir=tmp_path / "run", force=True, **SETTINGS, train=training, targets={"gate": 0.8},
        export={"unimproved": True}, controls={"draws": 2, "random_weights": False},
    )  # fmt: skip
    by_command = {r["stage"]: r for r in read_records(tiny_run)}
    assert [r.stage for r in result.records] == list(by_command)
    for record in result.records:
        assert record.record["action"] == by_command[record.stage]["action"]
    assert result.adapted is not None and result.closure == result.adapted.closure
    assert hasattr(result.model, "peft_config") and (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"gab": {}}, r"unknown settings \['gab'\]"),
        ({"gap": {"replicate": 3}}, r"unknown keys \['replicate'\] in gap"),
        ({"data": {"path": "x"}}, r"unknown settings \['data'\]"),
        ({"export": {"merged": True}}, "export.merged needs a checkpoint on disk"),
        ({"gap": {"replicates": 3}}, "gap.replicates is 3"),
        ({"objective": "nowhere_at_all:f"}, "cannot be imported"),
    ],
)
def test_settings_that_do_not_exist_or_do_not_fit_are_refused(loaded, digits, tmp_path, settings, says):
    with pytest.raises(ValueError, match=says):
        measure(loaded.model, loaded.processor, digits, run_dir=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_after_an_interruption_the_model_is_the_user_s_own_and_the_same_call_goes_on(loaded, digits, tmp_path, monkeypatch):
    """In training: the adapters are gone. In the draws of random networks: the weights are back."""
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    how = SETTINGS | {"force": True, "export": {"unimproved": True}, "controls": OFF | {"random_weights": False}}
    how["train"] = {"epochs": 1, "global_batch_size": 24, "micro_batch_size": 12, "learning_rate": 0.01}
    given = (loaded.model, loaded.processor, digits)

    def stopped(*of, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gapclose.training.trainer.term_sums", stopped)
        with pytest.raises(KeyboardInterrupt):
            close(*given, run_dir=tmp_path / "run", **how)
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.model.state_dict().items())
    with monkeypatch.context() as patch:
        patch.setattr("gapclose.evaluation.controls.random_weights._read", stopped)
        with pytest.raises(KeyboardInterrupt):
            measure(*given, run_dir=tmp_path / "drawn", **SETTINGS, controls=OFF | {"random_draws": 2})
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.model.state_dict().items())
    result = close(*given, run_dir=tmp_path / "run", **how)
    assert result.adapted is not None
    with pytest.raises(ValueError, match="the model has adapters already"):
        measure(result.model, loaded.processor, digits, **SETTINGS)


def test_a_change_of_processor_or_weights_is_another_model(loaded):
    first = memory_fingerprint(loaded.model, loaded.processor)
    assert memory_fingerprint(loaded.model, loaded.processor) == first
    template = loaded.processor.chat_template
    loaded.processor.chat_template = template + " "
    assert memory_fingerprint(loaded.model, loaded.processor) != first
    loaded.processor.chat_template = template
    weights, found = max(loaded.model.parameters(), key=torch.numel).data.view(-1), {first}
    for place in (0, -1):  # not the first bytes of a tensor alone
        weights[place] += 1
        found.add(memory_fingerprint(loaded.model, loaded.processor))
    assert len(found) == 3


def test_every_public_name_is_there_and_the_import_is_light():
    for module, names in gapclose.EXPORTS.items():
        found = importlib.import_module(f"gapclose.{module}")
        assert all(getattr(gapclose, name) is getattr(found, name) for name in names)
    assert sorted(gapclose.__all__) == sorted([*(n for names in gapclose.EXPORTS.values() for n in names), "__version__"])
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gapclose.nothing
    code = "import sys, gapclose; print([m for m in ('torch', 'transformers', 'numpy', 'peft', 'wandb') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    code = (
        "import sys\nfrom gapclose.pipeline.cli import main\ntry:\n    main(['close', '--help'])\nexcept SystemExit:\n"
        "    print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip().endswith("[]")


def test_runs_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such run directory"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no measurement of the base model"):
        load_run(tmp_path)


def test_records_that_lack_figures_are_damaged(tiny_run, tmp_path, capsys):
    """Valid JSON that no run wrote: one line, no traceback."""
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    path = tmp_path / "run" / "gap.jsonl"
    path.write_text("".join(json.dumps({k: r[k] for k in ("stage", "epoch", "state")}) + "\n" for r in read_records(tiny_run)))
    with pytest.raises(ValueError, match="gap.jsonl: a record lacks what every run writes"):
        load_run(tmp_path / "run")
    assert main(["report", str(tmp_path / "run")]) == 2 and capsys.readouterr().err.startswith(f"error: {path}: a record lacks")


def test_version_and_near_commands(capsys):
    assert main(["--version"]) == 0 and capsys.readouterr().out.strip() == f"gapclose {gapclose.__version__}"
    assert main(["mesure"]) == 2 and "did you mean 'measure'?" in capsys.readouterr().err


def test_a_notebook_shows_a_result_as_a_table(tiny_run):
    """Figures are those of the summary; without training there is no column for an adapted model."""
    trained = load_run(tiny_run)
    page = trained._repr_html_()
    assert f"<td>{trained.gap.value:.3f} [" in page and f"state: {trained.state}" in page and "next: " in page
    assert page.count("adapted model</th>") == 1 and "closure</th>" in page
    alone = dataclasses.replace(trained, summary=trained.summary | {"adapted": None, "closure": None, "state": "no gap"})
    assert "adapted model" not in alone._repr_html_() and "closure</th>" not in alone._repr_html_()
