"""Guards: each fires on its planted cause, can be turned off by name, and leaves a trace; a stopped run stays stopped."""

import json

import pytest
import torch
from test_measure import measured

from gapclose.cli import main
from gapclose.config import parse_config, save_config
from gapclose.epochs import best_epoch
from gapclose.gap import GapConfig
from gapclose.guards import GuardsConfig, fired, objections
from gapclose.measure import make_record
from gapclose.report.summary import read_records, summarise
from gapclose.settings import read_settings

GAP = GapConfig(replicates=100)


def epoch(changed: bool = True, **planted) -> tuple[dict, dict]:
    """The record of an epoch of a planted model, and that of its base."""
    before = measured(honest=0.0)
    record = make_record("epoch-1/val", 1, measured(**planted), before, GAP, 0)
    return record | {"adapter_changed": changed}, make_record("base/val", 0, before, None, GAP, 0)


@pytest.mark.parametrize(
    ("planted", "names", "words"),
    [
        ({"honest": 1.0}, set(), ""),
        ({"honest": 1.0, "content": 0.6}, {"over-rejection", "retention"}, "standard accuracy fell by 0."),
        ({"honest": 1.0, "garbled": 0.4}, {"parsing"}, "of the answers parse, 1.000 of the base model's"),
        ({"honest": 1.0, "knows": 0.0}, {"fresh", "sentinel"}, "the fresh probe's accuracy fell by 0."),
        ({"honest": 0.0, "changed": False}, {"adapter"}, "the model is the base model"),
    ],
)
def test_a_guard_objects_to_its_cause(planted, names, words):
    """And to nothing else; turned off by name it is silent."""
    record, base = epoch(**planted)
    found = objections(record, base, GAP, GuardsConfig(off=[]))
    assert set(found) == names and words in "; ".join(found.values())
    assert objections(record, base, GAP, GuardsConfig(off=sorted(names))) == {}


def test_a_loss_within_chance_is_no_objection():
    """The interval must lie beyond the budget, not the estimate alone."""
    record, base = epoch(honest=1.0, content=0.85)
    budget = record["change"]["standard_drop"]["value"] - 0.001
    assert budget > record["change"]["standard_drop"]["lower"]
    gap = GapConfig(replicates=100, standard_budget=budget)
    assert "over-rejection" not in objections(record, base, gap, GuardsConfig())


def test_a_shift_that_will_keep_to_the_budget_leaves_nothing_to_object_to():
    """However far standard accuracy falls as the model is; the other guards look on."""
    record, base = epoch(honest=1.0, content=0.2)
    assert record["change"]["standard_drop"]["lower"] > 0.5
    found = [objections(record, base, GapConfig(replicates=100, choose=choose), GuardsConfig(off=[])) for choose in ("own", "shifted")]
    assert set(found[0]) == {"over-rejection", "retention"} and set(found[1]) == {"retention"}


@pytest.mark.parametrize(
    ("settings", "off"),
    [
        ({"objective": "consistency"}, ["sentinel"]),
        ({"objective": "dpo"}, ["sentinel"]),
        ({"objective": "grpo"}, []),
        ({"objective": "grpo", "guards.off": "[sentinel, fresh]"}, ["sentinel", "fresh"]),
        ({"objective": "consistency", "guards.off": "[]"}, []),
    ],
)
def test_a_reward_that_is_a_probe_is_watched_by_the_sentinel(settings, off, tmp_path):
    """Unless the user says otherwise; the configuration that a run keeps names what is off, and is read again as it is."""
    config = parse_config([word for key, value in settings.items() for word in (f"--{key}", value)])
    assert config.guards.off == config.guards.silent == off
    save_config(config, tmp_path / "config.yaml")
    assert read_settings(tmp_path)["guards.off"] == off
    assert parse_config(["--config", str(tmp_path / "config.yaml")]).guards == config.guards
    record, base = epoch(honest=1.0, content=0.2, knows=0.0)
    wanted = {"over-rejection", "retention", "fresh", "sentinel"} - set(off)
    assert set(objections(record, base, GAP, config.guards)) == wanted
    assert set(fired([record | {"objections": dict.fromkeys(wanted, "why")}] * 2, config.guards)) == wanted


def test_it_takes_as_many_epochs_in_a_row_as_patience_says():
    """Another guard in between starts anew."""
    a, b = {"objections": {"fresh": "old", "parsing": "x"}}, {"objections": {"fresh": "new"}}
    config = GuardsConfig()
    assert fired([], config) == fired([a], config) == {} and fired([a, b], config) == {"fresh": "new"}
    assert fired([b, {"objections": {}}, b], config) == {} and fired([a], GuardsConfig(patience=1)) == a["objections"]
    assert fired([a, b], GuardsConfig(off=["fresh"])) == {}


def test_the_epoch_that_is_kept_is_one_that_no_guard_objects_to():
    """However well it does otherwise; among equals of that kind the highest balanced accuracy within the budget counts."""

    def after(number: int, balanced: float, drop: float = 0.0, objections: tuple[str, ...] = ()) -> dict:
        found = {"epoch": number, "state": "closed", "objections": dict.fromkeys(objections, "why")}
        return found | {"action": {"balanced": {"value": balanced}}, "change": {"standard_drop": {"value": drop}}}

    spoilt = after(2, 0.9, objections=("retention",))
    assert best_epoch([after(1, 0.7), spoilt], GAP) == 1 and best_epoch([spoilt], GAP) == 2
    assert best_epoch([after(1, 0.7), spoilt, after(3, 0.8), after(4, 0.95, drop=0.2)], GAP) == 3
    assert best_epoch([spoilt, after(3, 0.95, drop=0.2)], GAP) == 2  # objected to, and within the budget
    assert best_epoch([after(1, 0.7), spoilt], GAP, off=["retention"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"off": ["speed"]}, r"guards.off is \['speed'\]; choose some of"),
        ({"patience": 0}, "patience is 0"),
        ({"retention_budget": 5}, "budget is 5"),
    ],
)
def test_settings_that_make_no_sense(change, message):
    with pytest.raises(ValueError, match=message):
        GuardsConfig(**change)


def test_a_training_that_changes_nothing_is_stopped_and_stays_stopped(tiny_config, tmp_path, capsys):
    """After two epochs of four; the run ends with its figures, the reason is in the evidence, and the same command does not go on."""
    command = ["close", "--config", str(tiny_config), "--run_dir", str(tmp_path), "--train.epochs", "4", "--train.learning_rate", "0"]
    command += ["--train.warmup", "0", "--export.verify", "false"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "stopped by the guard adapter: every adapter weight" in told and 'with --guards.off "[adapter, sentinel]" goes on' in told
    before = (tmp_path / "gap.jsonl").read_text()
    assert [r["stage"] for r in read_records(tmp_path)] == ["base/val", "base/test", "epoch-1/val", "epoch-2/val", "adapted/test"]
    evidence = json.loads((tmp_path / "adapter" / "evidence.json").read_text())
    assert set(evidence["stopped"]) == {"adapter"} and evidence["state"] != "closed" and evidence["guards_off"] == ["sentinel"]
    assert main(command) == 0
    assert (tmp_path / "gap.jsonl").read_text() == before
    capsys.readouterr()
    assert main([*command, "--guards.off", "[adapter, sentinel]"]) == 0  # as the warning says
    assert {"epoch-3/val", "epoch-4/val"} <= {r["stage"] for r in read_records(tmp_path)}
    assert summarise(tmp_path)["stopped"] == {} and "stopped by" not in capsys.readouterr().out


def test_a_loss_that_is_not_finite_keeps_the_epochs_before_it(tiny_config, tmp_path, monkeypatch):
    """Once an epoch is measured the run ends with it; before that there is nothing to keep."""
    from gapclose import trainer

    calls, true = [], trainer.term_sums

    def spoilt(model, part):
        calls.append(part)
        return true(model, part) * (torch.nan if len(calls) > limit else 1.0)

    monkeypatch.setattr(trainer, "term_sums", spoilt)
    command = ["close", "--config", str(tiny_config), "--export.verify", "false", "--train.max_grad_norm", "0"]
    limit = 0
    assert main([*command, "--run_dir", str(tmp_path / "first")]) == 2
    calls.clear()
    limit = 10**6
    assert main([*command, "--run_dir", str(tmp_path / "whole"), "--train.epochs", "1"]) == 0
    assert summarise(tmp_path / "whole")["stopped"] == {}
    limit = len(calls) + 1
    calls.clear()
    assert main([*command, "--run_dir", str(tmp_path / "second")]) == 0
    found = summarise(tmp_path / "second")
    assert found["epoch"] == 1 and "the loss is nan" in found["stopped"]["loss"]
    before, limit = (tmp_path / "second" / "gap.jsonl").read_text(), 10**6
    assert main([*command, "--run_dir", str(tmp_path / "second")]) == 0  # it would go well now, and stays stopped
    assert (tmp_path / "second" / "gap.jsonl").read_text() == before


def test_a_guard_that_objects_at_the_end_has_stopped_nothing(tiny_config, tmp_path):
    """Two epochs of two: the objection is in the record, the run is whole."""
    command = ["close", "--config", str(tiny_config), "--run_dir", str(tmp_path), "--train.learning_rate", "0", "--train.warmup", "0"]
    assert main([*command, "--export.verify", "false"]) == 0
    assert summarise(tmp_path)["stopped"] == {} and "adapter" in read_records(tmp_path)[-2]["objections"]
