"""Guards: each fires on its planted cause, can be turned off by name, and leaves a trace; a stopped run stays stopped."""

import json
from dataclasses import replace

import pytest
import torch
from test_measurement import measured

from gapclose.core.settings import read_settings
from gapclose.evaluation.record import make_record
from gapclose.evaluation.run_records import read_records, summarise
from gapclose.metrics.bootstrap import Interval
from gapclose.metrics.config import GapConfig
from gapclose.metrics.status import Evidence, beyond, state_of
from gapclose.pipeline.cli import main
from gapclose.pipeline.config import parse_config, save_config
from gapclose.probes.posterior import STANDING
from gapclose.training.checkpoint_selection import best_epoch, unimproved
from gapclose.training.config import GuardsConfig
from gapclose.training.early_stopping import check_guards, triggered

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
    found = check_guards(record, base, GAP, GuardsConfig(off=[]))
    assert set(found) == names and words in "; ".join(found.values())
    assert check_guards(record, base, GAP, GuardsConfig(off=sorted(names))) == {}


def test_retention_ends_no_training_in_which_the_model_still_learns_when_to_object():
    """Seen on a pretrained model: retention fell in the second and third epoch, and came back in the fourth."""

    def of(falling, excess, name="retention"):
        return {"objections": {name: "why"}, "consistency": {"excess": {"value": excess}, "constant": 0.5, "falling": falling}}

    falls, cannot_tell, learned = of(True, 0.3), of(False, 0.6), of(False, 0.3)
    config = GuardsConfig(patience=2)
    assert triggered([learned, learned], config) == triggered([{"objections": {"retention": "why"}}] * 2, config) == {"retention": "why"}
    for records in ([falls, cannot_tell], [falls, learned], [learned, cannot_tell]):
        assert triggered(records, config) == {}
    assert triggered([of(True, 0.3, "parsing")] * 2, config) == {"parsing": "why"}


def test_a_loss_within_chance_is_no_objection():
    """An estimate beyond the budget whose interval reaches zero; above zero it objects, by the rule of the state of that name."""
    record, base = epoch(honest=1.0, content=0.85)
    drop = record["change"]["standard_drop"]
    gap = GapConfig(replicates=100, standard_budget=drop["value"] - 0.001)
    assert 0 < drop["lower"] < gap.standard_budget
    chance = {**record, "change": {**record["change"], "standard_drop": {**drop, "lower": -0.01}}}
    for of, objects in ((record, True), (chance, False)):
        assert (
            ("over-rejection" in check_guards(of, base, gap, GuardsConfig()))
            == objects
            == beyond(Interval.from_dict(of["change"]["standard_drop"]), gap.standard_budget)
        )
    shown, unshown = (Interval.from_dict(of["change"]["standard_drop"]) for of in (record, chance))
    evidence = Evidence(
        closure=shown, beyond_reading=shown, standard_drop=shown, frozen_fell=False, fresh_fell=False, parse_rate=1.0, base_parse_rate=1.0
    )
    assert state_of(evidence, gap) == "over-rejecting" and state_of(replace(evidence, standard_drop=unshown), gap) != "over-rejecting"


def test_a_shift_that_will_keep_to_the_budget_leaves_nothing_to_object_to():
    """However far standard accuracy falls as the model is; the other guards look on."""
    record, base = epoch(honest=1.0, content=0.2)
    assert record["change"]["standard_drop"]["lower"] > 0.5
    found = [check_guards(record, base, GapConfig(replicates=100, choose=choose), GuardsConfig(off=[])) for choose in ("own", "shifted")]
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
    assert set(check_guards(record, base, GAP, config.guards)) == wanted
    assert set(triggered([record | {"objections": dict.fromkeys(wanted, "why")}] * 2, config.guards)) == wanted


def test_it_takes_as_many_epochs_in_a_row_as_patience_says():
    """Another guard in between starts anew."""
    a, b = {"objections": {"fresh": "old", "parsing": "x"}}, {"objections": {"fresh": "new"}}
    config = GuardsConfig()
    assert triggered([], config) == triggered([a], config) == {} and triggered([a, b], config) == {"fresh": "new"}
    assert triggered([b, {"objections": {}}, b], config) == {} and triggered([a], GuardsConfig(patience=1)) == a["objections"]
    assert triggered([a, b], GuardsConfig(off=["fresh"])) == {}


def after(
    number: int, balanced: float, drop: float = 0.0, objections: tuple[str, ...] = (), state: str = "open", around: float = 0.01
) -> dict:
    """The record of an epoch on val, as far as it is chosen by."""
    found = {"epoch": number, "state": state, "objections": dict.fromkeys(objections, "why"), "shifted": None}
    ends = {"value": drop, "lower": drop - around, "upper": drop + around}
    return found | {"action": {"balanced": {"value": balanced}, "option_balanced": {"value": balanced}}, "change": {"standard_drop": ends}}


def test_the_epoch_that_is_kept_is_one_that_no_guard_objects_to():
    """However well it does otherwise; among equals of that kind the highest balanced accuracy within the budget counts, of those the earliest."""
    spoilt = after(2, 0.9, objections=("retention",))
    assert best_epoch([after(1, 0.7), spoilt], GAP) == 1 and best_epoch([spoilt], GAP) == 2
    assert best_epoch([after(1, 0.7), spoilt, after(3, 0.8), after(4, 0.95, drop=0.2)], GAP) == 3
    assert best_epoch([spoilt, after(3, 0.95, drop=0.2)], GAP) == 2  # objected to, and within the budget
    assert best_epoch([after(1, 0.7), spoilt], GAP, off=["retention"]) == 2
    assert best_epoch([after(1, 0.7), after(2, 0.7)], GAP) == 1
    unsure = after(2, 0.9, drop=0.06, around=0.1)  # not beyond the budget, nor within it
    assert best_epoch([after(1, 0.7), unsure], GAP) == 1 and best_epoch([after(1, 0.95, drop=0.2), unsure], GAP) == 2
    assert best_epoch([after(1, 0.95, drop=0.3), after(2, 0.9, drop=0.2)], GAP) == 2


def test_the_base_model_is_a_candidate():
    """As epoch 0: kept where no epoch is better that might be taken; it loses nothing, so an epoch beyond a budget never beats it."""
    base = {"action": {"balanced": {"value": 0.7}, "option_balanced": {"value": 0.7}}}
    assert best_epoch([after(1, 0.6), after(2, 0.8)], GAP, base=base) == 2 and unimproved([after(2, 0.8)], GAP, [], base) is None
    for worse in ([after(1, 0.6)], [after(1, 0.7)]):
        found = unimproved(worse, GAP, [], base)
        assert best_epoch(worse, GAP, base=base) == 0 and found is not None and (found.epoch, found.base) == (1, 0.7)
        assert "no epoch is better than the base model" in found.why
    for spoilt in (after(1, 0.9, drop=0.2), after(1, 0.9, objections=("retention",)), after(1, 0.9, state="lost")):
        found = unimproved([spoilt], GAP, [], base)
        assert best_epoch([spoilt], GAP, base=base) == 0 and found is not None and "falls beyond a budget, or a guard objects" in found.why
    assert best_epoch([after(1, 0.9, objections=("retention",))], GAP, ["retention"], base) == 1
    shifted = GapConfig(replicates=100, choose="shifted")
    by_shift = after(1, 0.2, drop=0.6) | {"shifted": {"option_balanced": 0.75}}
    assert best_epoch([by_shift], shifted, base=base) == 1
    assert best_epoch([by_shift | {"shifted": {"option_balanced": 0.7}}], shifted, base=base) == 0


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


@pytest.mark.slow
def test_a_training_that_changes_nothing_is_stopped_and_stays_stopped(quick_config, tmp_path, capsys):
    """After two epochs of three; the run ends with its figures, the reason is in the evidence, and the same command does not go on."""
    command = ["close", "--config", str(quick_config), "--run_dir", str(tmp_path), "--train.epochs", "3", "--train.learning_rate", "0"]
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
    assert "epoch-3/val" in {r["stage"] for r in read_records(tmp_path)}
    assert summarise(tmp_path)["stopped"] == {} and "stopped by" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_loss_that_is_not_finite_keeps_the_epochs_before_it(quick_config, tmp_path, monkeypatch):
    """Once an epoch is measured the run ends with it; before that there is nothing to keep."""
    from gapclose.training import trainer

    calls, true = [], trainer.term_sums

    def spoilt(model, part):
        calls.append(part)
        return true(model, part) * (torch.nan if len(calls) > limit else 1.0)

    monkeypatch.setattr(trainer, "term_sums", spoilt)
    command = ["close", "--config", str(quick_config), "--export.verify", "false", "--train.max_grad_norm", "0"]
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


@pytest.mark.slow
def test_a_guard_that_objects_at_the_end_has_stopped_nothing(quick_config, tmp_path):
    """Two epochs of two: the objection is in the record, the run is whole."""
    command = ["close", "--config", str(quick_config), "--run_dir", str(tmp_path), "--train.learning_rate", "0", "--train.warmup", "0"]
    assert main([*command, "--export.verify", "false"]) == 0
    assert summarise(tmp_path)["stopped"] == {} and "adapter" in read_records(tmp_path)[-2]["objections"]


@pytest.mark.slow
def test_a_run_that_does_not_beat_its_base_exports_nothing_unless_told_to(quick_config, tmp_path, capsys):
    """Log, record, report and summary say so; another start trains nothing again, and exports where the key asks for it."""
    command = ["close", "--config", str(quick_config), "--run_dir", str(tmp_path), "--train.learning_rate", "0", "--train.warmup", "0"]
    command += ["--train.epochs", "1", "--export.verify", "false"]
    for _ in range(2):
        assert main([*command, "--export.unimproved", "false"]) == 0
        told = capsys.readouterr().out
        assert "warning: not better than the base model: on val no epoch is better" in told and "nothing is exported" in told
    assert not (tmp_path / "adapter").exists() and "step 1/" not in told  # of the second start
    summary, last = summarise(tmp_path), read_records(tmp_path)[-1]
    assert last["stage"] == "adapted/test" and summary["unimproved"] == last["unimproved"] and summary["unimproved"]["epoch"] == 1
    assert "not better than the base model" in (tmp_path / "report.html").read_text()
    assert [of["round"] for of in summary["targets"]] == [1] and summary["targets"][0]["standing"] in STANDING
    assert main(["export", *command[1:5], *command[5:], "--export.unimproved", "false"]) == 2
    assert "--export.unimproved true exports it all the same" in capsys.readouterr().err
    assert main([*command, "--export.unimproved", "true"]) == 0 and "step 1/" not in capsys.readouterr().out
    evidence = json.loads((tmp_path / "adapter" / "evidence.json").read_text())
    assert evidence["unimproved"]["why"] in (tmp_path / "adapter" / "README.md").read_text()
