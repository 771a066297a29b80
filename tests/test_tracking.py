"""Tracking: what Weights & Biases was given, read back from the offline run's own file; nothing when it is off."""

import dataclasses
import json
import struct
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gapclose.cli import main
from gapclose.config import Config, TrackingConfig
from gapclose.files import read_json
from gapclose.report.summary import read_records, summarise
from gapclose.tracking import MIRRORED, LossLines, NoTracker, WandbTracker, make_tracker, scalars


def stored(path: Path) -> Iterator:
    """The protobuf records of a .wandb file: a 7-byte head, then LevelDB log blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2 as pb

    data, place, body = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # too little for a head: padding
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])  # kind: 1 whole, 2 first, 3 middle, 4 last
        body += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = pb.Record()
            record.ParseFromString(body)
            body = b""
            yield record


def finished(directory: Path) -> tuple[Path, list[tuple[str, Any]]]:
    """The file of a run's one offline run with its records by kind; wandb's service may write the last block after ``finish``."""
    (path,) = directory.glob("wandb/offline-run-*/*.wandb")
    for _ in range(100):
        records = [(r.WhichOneof("record_type"), r) for r in stored(path)]
        if records and records[-1][0] == "exit":
            return path, records
        time.sleep(0.1)
    raise AssertionError(f"{path} does not end with the exit record")


def values(entries) -> dict:
    """Key -> value of the entries of a history, configuration or summary."""
    return {e.key or "/".join(e.nested_key): json.loads(e.value_json) for e in entries}


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """wandb writes nothing outside the test's directory and sends nothing."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


INTERVAL = {"value": 0.5, "lower": 0.25, "upper": 0.75}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"a": 1, "b": {"c": 2.5}}, {"a": 1, "b/c": 2.5}),
        ({"a": {"b": INTERVAL}}, {"a/b": 0.5, "a/b/lower": 0.25, "a/b/upper": 0.75}),
        ({"a": INTERVAL | {"lower": None, "upper": None}}, {"a": 0.5}),
        ({"a": {"value": None, "lower": None, "upper": None}}, {}),
        ({"state": "open", "real": True, "none": None, "list": [1], "deep": {"real": False}}, {}),
        ({}, {}),
    ],
)
def test_scalars(record, expected):
    """Numbers under slash-separated names; words, truth values and what is undefined are left out."""
    assert dict(scalars(record)) == expected


def test_a_run_reads_back_from_its_own_file(offline, tiny_run, tmp_path):
    """Configuration, every figure of two measurements, losses, the final table and the adapter artifact."""
    config = Config(run_dir=str(tmp_path / "mirror"), tracking="wandb", wandb=TrackingConfig(project="test", name="named"))
    Path(config.run_dir).mkdir()
    records, summary, adapter = read_records(tiny_run), summarise(tiny_run), tiny_run / "adapter"
    chosen = [next(r for r in records if r["stage"] == stage) for stage in ("base/test", "epoch-2/val")]

    tracker = make_tracker(config, dataclasses.asdict(config))
    assert isinstance(tracker, WandbTracker)
    tracker.record(chosen[0])
    for step in (1, 2):
        tracker.losses(step, {"loss": 1 / step, "loss/retain": 0.25, "kl": 0.1})
    tracker.record(chosen[1])
    tracker.finish(summary, adapter)

    file, kept = finished(Path(config.run_dir))
    run = next(r.run for kind, r in kept if kind == "run")
    assert (run.project, run.display_name, run.run_id) == ("test", "named", read_json(Path(config.run_dir) / "wandb.json")["id"])
    settings = {k: v for k, v in values(run.config.update).items() if k != "_wandb"}
    assert settings == json.loads(json.dumps(dataclasses.asdict(config)))

    rows = [values(r.history.item) for kind, r in kept if kind == "history"]
    measured = [r for r in rows if "epoch" in r]
    for record, row, split in zip(chosen, measured, ("test", "val"), strict=True):
        figures = {k.removeprefix(f"gap/{split}/"): v for k, v in row.items() if k.startswith("gap/")}
        expected = dict(scalars({k: v for k, v in record.items() if k not in ("epoch", "seed")}))
        assert figures.pop("state") == record["state"] and row["epoch"] == record["epoch"]
        assert figures == pytest.approx(expected) and len(expected) > 100
        assert figures["action/balanced"] == record["action"]["balanced"]["value"]
    assert [(r["step"], r["loss"], r["loss/retain"]) for r in rows if "loss" in r] == [(1, 1.0, 0.25), (2, 0.5, 0.25)]
    steps = {r.metric.glob_name: r.metric.step_metric for kind, r in kept if kind == "metric" and r.metric.glob_name}
    assert steps["gap/*"] == "epoch" and {n: s for n, s in steps.items() if s == "step"}.keys() == {f"{n}*" for n in MIRRORED}

    (table,) = file.parent.glob("files/media/table/*.json")
    assert json.loads(table.read_text())["data"] == [[name, value] for name, value in scalars(summary)]
    final = {}
    for kind, r in kept:
        final |= values(r.summary.update) if kind == "summary" else {}
    assert final["final/state"] == summary["state"] and final["final/base/balanced"] == summary["base"]["balanced"]["value"]

    logged = next(r.artifact for kind, r in kept if kind == "artifact" and r.artifact.type == "model")
    assert logged.name == "tiny-adapter" and json.loads(logged.metadata) == {"state": summary["state"]}
    assert {e.path for e in logged.manifest.contents} == {p.name for p in adapter.iterdir()}


def test_a_resumed_run_keeps_its_id(offline, tmp_path):
    """The id lives in the run directory."""
    config = Config(run_dir=str(tmp_path), tracking="wandb")
    ids = []
    for _ in range(2):
        tracker = WandbTracker(config, {})
        ids.append(tracker.run.id)
        tracker.run.finish()
    assert ids[0] == ids[1] == read_json(tmp_path / "wandb.json")["id"]


def test_nothing_else_differs_when_it_is_off(offline, tiny_run, tiny_config, tmp_path):
    """A tracked measurement writes the same record as an untracked run, to the last digit, and an untracked run no file of a tracker."""
    tracked = tmp_path / "tracked"
    assert main(["measure", "--config", str(tiny_config), "--run_dir", str(tracked), "--tracking", "wandb"]) == 0
    assert [r for r in read_records(tiny_run) if r["stage"] == "base/test"] == read_records(tracked)
    assert list(tracked.glob("wandb/offline-run-*/*.wandb"))
    assert not list(tiny_run.rglob("*wandb*"))
    first, second = (read_json(run / "observations" / "base-test" / "manifest.json") for run in (tiny_run, tracked))
    assert first.pop("cpu_seconds") > 0 and second.pop("cpu_seconds") > 0  # what the measurement took, the one thing that may differ
    assert first == second


def test_loss_lines_show_rewards_and_kl_where_there_are_any(capsys):
    """Few on the line, more in the tracker, and neither what is no figure nor what only times the step."""
    seen = {}

    class Kept(NoTracker):
        def losses(self, step, values):
            seen[step] = dict(values)

    state = types.SimpleNamespace(global_step=3, max_steps=9)
    lines = LossLines(Kept())
    lines.on_log(None, state, None, {"loss": 0.5, "loss/retain": 0.1, "learning_rate": 0.001, "epoch": 1.0})
    logged = {"loss": 0.25, "reward": 0.75, "reward_std": 0.1, "kl": 0.02, "clip_ratio/high_max": None, "step_time": 1.0}
    lines.on_log(None, types.SimpleNamespace(global_step=6, max_steps=9), None, logged)
    lines.on_log(None, state, None, {"train_runtime": 3.0})
    assert capsys.readouterr().out.splitlines() == [
        "step 3/9: loss 0.5000, retain 0.1000",
        "step 6/9: loss 0.2500, reward 0.7500, kl 0.0200",
    ]
    assert seen == {
        3: {"loss": 0.5, "loss/retain": 0.1, "learning_rate": 0.001},
        6: {k: logged[k] for k in ("loss", "reward", "reward_std", "kl")},
    }


def test_no_tracker_keeps_nothing(tmp_path, monkeypatch):
    """It takes every call without wandb being there at all, and is what other ranks get."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would fail
    tracker = make_tracker(Config(), {})
    assert type(tracker) is NoTracker
    tracker.record({})
    tracker.losses(1, {})
    tracker.finish({}, None)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("RANK", "1")
    assert type(make_tracker(Config(tracking="wandb"), {})) is NoTracker
