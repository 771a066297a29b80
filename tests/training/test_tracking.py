"""Tracking: what Weights & Biases was given, read back from the offline run's own file; nothing when it is off."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from wandb_files import finished, stored, values

from gapclose.core.files import read_json
from gapclose.evaluation.run_records import read_records, summarise
from gapclose.pipeline.cli import main
from gapclose.pipeline.config import Config
from gapclose.training.config import TrackingConfig
from gapclose.training.tracking import MIRRORED, LossLines, NoTracker, WandbTracker, make_tracker, scalars, tracking_doubts
from gapclose.training.trackers.wandb_service import LONGEST, artifact_name, run_name, within

ROOT = Path(__file__).parents[2]


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
        assert figures.pop("gap/record").startswith(f"{record['stage']}#")
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
    assert logged.name == "mirror-adapter" and json.loads(logged.metadata) == {"state": summary["state"]}
    assert {e.path for e in logged.manifest.contents} == {p.relative_to(adapter).as_posix() for p in adapter.rglob("*") if p.is_file()}


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
    """A tracked measurement writes the same record as an untracked run, to the last digit, and an untracked run no file of a tracker.

    A second start of what is finished sends nothing again.
    """
    tracked = tmp_path / "tracked (1), lr=2e-4"
    command = ["measure", "--config", str(tiny_config), "--run_dir", str(tracked), "--tracking", "wandb"]
    off = ("labels", "residualise", "codelength", "blank", "layers", "interchange", "nested", "baselines")
    command += [f"--controls.{name}=false" for name in off] + ["--controls.protocol", "null"]
    assert main(command) == 0
    assert [r for r in read_records(tiny_run) if r["stage"] == "base/test"] == read_records(tracked)
    assert stages(tracked) == [("test", 0)]
    assert not list(tiny_run.rglob("*wandb*"))
    first, second = (read_json(run / "observations" / "base-test" / "manifest.json") for run in (tiny_run, tracked))
    assert first.pop("cpu_seconds") > 0 and second.pop("cpu_seconds") > 0  # what the measurement took, the one thing that may differ
    assert first == second
    before = sorted(tracked.glob("wandb/offline-run-*"))
    assert main(command) == 0
    assert sorted(tracked.glob("wandb/offline-run-*")) == before and stages(tracked) == [("test", 0)]


RECORDS = [
    {"stage": stage, "epoch": epoch, "seed": 0, "state": "open", "action": {"balanced": INTERVAL}}
    for stage, epoch in (("base/val", 0), ("base/test", 0), ("epoch-1/val", 1), ("adapted/test", 1))
]
SUMMARY = {"state": "open", "balanced": 0.5}
KILLED = """
import json, os, signal, sys
from pathlib import Path
from gapclose.pipeline.config import Config
from gapclose.training.tracking import make_tracker

def main():
    directory, records, before = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3] == "before"
    tracker = make_tracker(Config(run_dir=str(directory), tracking="wandb"), {})
    for number, record in enumerate(records):
        with (directory / "gap.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\\n")
        if before and number + 1 == len(records):
            os.kill(os.getpid(), signal.SIGKILL)
        tracker.record(record)
        tracker.losses(number + 1, {"loss": 0.5})
    os.kill(os.getpid(), signal.SIGKILL)

main()
"""


def written(directory: Path, *records: dict) -> None:
    """The file of truth, as a run keeps it."""
    directory.mkdir(exist_ok=True)
    (directory / "gap.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def rows_of(directory: Path) -> list[dict]:
    """The history of all offline runs in a run directory, whether they ended or were killed."""
    files = sorted(directory.glob("wandb/offline-run-*/*.wandb"))
    return [values(r.history.item) for path in files for r in stored(path) if r.WhichOneof("record_type") == "history"]


def stages(directory: Path) -> list[tuple[str, int]]:
    """Split and epoch of every measurement that was sent; wandb's service may write the last block a little later."""
    for _ in range(100):
        files = list(directory.glob("wandb/offline-run-*/*.wandb"))
        if all(any(r.WhichOneof("record_type") == "exit" for r in stored(path)) for path in files):
            break
        time.sleep(0.1)
    rows = [r for r in rows_of(directory) if "epoch" in r]
    return [(next(k.split("/")[1] for k in row if k.endswith("/state")), row["epoch"]) for row in rows]


@pytest.mark.parametrize("when", ["before", pytest.param("after", marks=pytest.mark.slow)])
def test_what_a_kill_kept_back_is_sent_by_the_next_start(offline, tmp_path, when):
    """Killed between the file of truth and the tracker, or right after the tracker's client was handed the record, which may not have written
    it: every stage arrives once, in order; the finished run sends nothing again."""
    run = tmp_path / "run"
    run.mkdir()
    command = [sys.executable, "-c", KILLED, str(run), json.dumps(RECORDS[:2]), when]
    environment = {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"} | {"PYTHONPATH": str(ROOT)}  # a service of its own
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    known = read_json(run / "wandb.json")
    assert known["open"] and len(known["records"]) == (1 if when == "before" else 2)
    stages(run)  # waits until the client's service has noticed that its process is gone

    def start(*later: dict) -> None:
        tracker = make_tracker(Config(run_dir=str(run), tracking="wandb"), {})
        for record in later:
            written(run, *[r for r in read_records(run) if r["stage"] != record["stage"]], record)
            tracker.record(record)
        tracker.losses(1, {"loss": 0.5})
        tracker.losses(2, {"loss": 0.25})
        tracker.finish(SUMMARY, None)

    start(*RECORDS[2:])
    expected = [("val", 0), ("test", 0), ("val", 1), ("test", 1)]
    assert stages(run) == expected
    assert [r["step"] for r in rows_of(run) if "loss" in r] == [1, 2] and not read_json(run / "wandb.json")["open"]
    before = sorted(run.glob("wandb/offline-run-*"))
    start(RECORDS[-1])
    assert (
        stages(run) == expected and sorted(run.glob("wandb/offline-run-*")) == before and read_json(run / "wandb.json")["id"] == known["id"]
    )
    start(RECORDS[-1] | {"state": "closed"})  # measured anew, with another outcome
    assert stages(run) == [*expected, ("test", 1)]


@pytest.fixture
def online(offline, monkeypatch):
    """Settings of a service that does not answer, and wandb as after its import."""
    import wandb

    wandb.teardown()
    for name, value in (("MODE", "online"), ("BASE_URL", "http://127.0.0.1:9"), ("API_KEY", "k" * 40)):
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("NETRC", "/nowhere/netrc")
    yield
    wandb.teardown()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("WANDB_BASE_URL", "http://127.0.0.1:9", "cannot be reached"),
        ("WANDB_API_KEY", "", "there is no API key for http://127.0.0.1:9; run `wandb login`"),
        ("WANDB_MODE", "sometimes", "WANDB_MODE"),
        ("WANDB_MODE", "offline", None),
        ("WANDB_MODE", "dryrun", None),
        ("WANDB_MODE", "disabled", None),
        ("WANDB_MODE", "", "cannot be reached"),
    ],
)
def test_whether_the_service_can_be_reached(online, monkeypatch, name, value, says):
    """Why not, before anything loads; an empty variable is one that is not set, and offline needs nobody."""
    monkeypatch.setenv(name, value)
    found = tracking_doubts(Config(tracking="wandb"))
    assert (found == []) if says is None else (len(found) == 1 and says in found[0] and "\n" not in found[0]), found
    assert tracking_doubts(Config()) == []


def test_a_service_that_never_answers_is_waited_for_within_a_bound(online, monkeypatch):
    """A socket that takes the connection and is silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr("gapclose.training.trackers.wandb_service.SECONDS", 0.2)
        (found,) = tracking_doubts(Config(tracking="wandb"))
    assert "cannot be reached" in found
    assert within(lambda: time.sleep(60), 0.1) == "no answer within 0.1 s"


def test_a_tracker_that_cannot_be_reached_costs_nothing(online, monkeypatch, tmp_path, capsys):
    """One warning; what it missed, losses included, is sent at the first record after it answers."""
    import wandb

    written(tmp_path, *RECORDS[:2])
    tracker = make_tracker(Config(run_dir=str(tmp_path), tracking="wandb"), {})
    for number in (1, 2):
        tracker.record(RECORDS[number])
        tracker.losses(number, {"loss": 0.5})
    told = capsys.readouterr().out
    assert told.count("warning: tracking: ") == 1 and "cannot be reached" in told and "the run goes on" in told
    assert not (tmp_path / "wandb.json").exists()
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    written(tmp_path, *RECORDS[:4])
    tracker.record(RECORDS[3])
    tracker.finish(SUMMARY, None)
    assert stages(tmp_path) == [("val", 0), ("test", 0), ("val", 1), ("test", 1)]
    assert [r["step"] for r in rows_of(tmp_path) if "loss" in r] == [1, 2]


def test_a_tracker_that_fails_later_costs_nothing(offline, tmp_path, monkeypatch, capsys):
    """Whatever its client raises, at any call: the next one sends what is missing."""
    tracker = make_tracker(Config(run_dir=str(tmp_path), tracking="wandb"), {})
    assert isinstance(tracker, WandbTracker) and tracker.run is not None
    written(tmp_path, *RECORDS[:1])
    with monkeypatch.context() as broken:
        for call in ("log", "log_artifact", "finish"):
            broken.setattr(tracker.run, call, lambda *_, call=call, **__: (_ for _ in ()).throw(BrokenPipeError(f"{call} failed")))
        tracker.record(RECORDS[0])
        tracker.losses(1, {"loss": 0.5})
        tracker.finish(SUMMARY, None)
        told = capsys.readouterr().out
    assert "log failed" in told and "finish failed" in told and "the losses of 1 steps were not sent" in told
    tracker.finish(SUMMARY, None)
    assert stages(tmp_path) == [("val", 0)]


def test_a_tracker_that_is_switched_off_keeps_nothing(online, monkeypatch, tmp_path, capsys):
    """WANDB_MODE=disabled, and one that wandb does not know: nothing is remembered as sent."""
    for value, says in (("disabled", "nothing is sent"), ("sometimes", "warning: tracking: ")):
        monkeypatch.setenv("WANDB_MODE", value)
        assert type(make_tracker(Config(run_dir=str(tmp_path), tracking="wandb"), {})) is NoTracker
        assert says in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("digits-seed0_a.b", "digits-seed0_a.b-adapter"),
        ("my run (1)", r"my-run--1--[0-9a-f]{6}-adapter"),
        ("lr=2e-4,seed=0", r"lr-2e-4-seed-0-[0-9a-f]{6}-adapter"),
        ("éà", r"---[0-9a-f]{6}-adapter"),
        ("n" * 200, r"n{113}-[0-9a-f]{6}-adapter"),
    ],
)
def test_artifact_names_are_made_fit(name, expected):
    """By the rule in its docstring; wandb itself takes what comes out, and two directories never share a name."""
    from wandb import Artifact

    found = artifact_name(Path("runs") / name)
    assert re.fullmatch(expected, found) and Artifact(found, type="model").name == found
    assert artifact_name(Path("runs") / f"{name}?") != artifact_name(Path("runs") / f"{name}!")


def test_run_names_are_made_fit(tmp_path, monkeypatch):
    """The directory's own name, also of the one a run starts in."""
    monkeypatch.chdir(tmp_path)
    assert run_name(Path()) == tmp_path.name and run_name(Path("my run (1)")) == "my run (1)"
    assert run_name(Path("/")) == "run" and len(run_name(Path("n" * 200))) == LONGEST


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
