"""Tracking: what Weights & Biases was given, read back from the offline run's own file; nothing when it is off."""

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import types
from pathlib import Path

import pytest
from tracked_records import INTERVAL, KILLED, RECORDS, SUMMARY, written
from wandb_files import finished, stored, values

from gapclose.core.files import read_json
from gapclose.core.imports import MissingPackage
from gapclose.data.config import DataConfig
from gapclose.evaluation.run_records import read_records, summarise
from gapclose.models.config import ModelConfig
from gapclose.pipeline.cli import main
from gapclose.pipeline.config import Config, parse_config
from gapclose.training.config import GuardsConfig, TargetsConfig
from gapclose.training.trackers.config import TRACKERS
from gapclose.training.trackers.figures import DETAIL, EPOCH_FIGURES, STEP_FIGURES, TEST_FIGURES, epoch_figures, scalars
from gapclose.training.trackers.names import LONGEST, artifact_name, group_name, run_name
from gapclose.training.trackers.wandb_results import EXAMPLE_COLUMNS, MOST, chosen_examples
from gapclose.training.trackers.wandb_service import within
from gapclose.training.trackers.wandb_tracker import RECORD, WandbTracker
from gapclose.training.tracking import CLASSES, LossLines, Trackers, make_trackers, refuse_missing_trackers, tracking_doubts

ROOT = Path(__file__).parents[2]


def switch_offline(patch: pytest.MonkeyPatch, directory: Path) -> None:
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        patch.setenv(name, str(directory / "wandb-home"))
    patch.setenv("WANDB_MODE", "offline")
    patch.setenv("WANDB_SILENT", "true")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """wandb writes nothing outside the test's directory and sends nothing."""
    switch_offline(monkeypatch, tmp_path)


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


def tracked(**settings) -> Trackers:
    """The trackers of a run with these settings, which is mirrored to Weights & Biases."""
    config = Config(**{"tracking": "wandb"} | settings)
    return make_trackers(config, dataclasses.asdict(config))


@pytest.fixture(scope="module")
def mirrored(tiny_run, tmp_path_factory) -> types.SimpleNamespace:
    """A finished run of the tiny model, mirrored from its files: what is in the file of Weights & Biases afterwards."""
    directory = tmp_path_factory.mktemp("mirror") / "mirror"
    shutil.copytree(tiny_run, directory, ignore=shutil.ignore_patterns("observations", "checkpoints", "gap.jsonl"))
    words = ["--tracking", "wandb", "--wandb.project", "test", "--wandb.name", "named", "--wandb.upload", "[examples, media]"]
    config = parse_config(["--run_dir", str(directory), *words])  # as docs/how-to/tracking.md switches the examples on
    records, summary = read_records(tiny_run), summarise(tiny_run)
    with pytest.MonkeyPatch.context() as patch:
        switch_offline(patch, directory.parent)
        trackers = make_trackers(config, dataclasses.asdict(config))
        for step, record in enumerate(records, start=1):
            written(directory, *records[:step])
            trackers.record(record)
            trackers.losses(step, {"loss": 1 / step, "loss/retain": 0.25, "learning_rate": 0.1, "clip_ratio/low": 0.1})
        trackers.finish(summary, directory / "adapter")
        file, kept = finished(directory)
    rows = [values(r.history.item) for kind, r in kept if kind == "history"]
    return types.SimpleNamespace(directory=directory, config=config, records=records, summary=summary, file=file, kept=kept, rows=rows)


def tables(mirrored) -> dict[str, dict]:
    """Name of a table -> its content."""
    files = mirrored.file.parent.glob("files/media/table/**/*.json")
    return {path.name.split("_")[0]: json.loads(path.read_text()) for path in files}


def test_settings_and_group_read_back(mirrored):
    run = next(r.run for kind, r in mirrored.kept if kind == "run")
    assert (run.project, run.display_name, run.run_id) == ("test", "named", read_json(mirrored.directory / "wandb.json")["id"])
    settings = json.loads(json.dumps(dataclasses.asdict(mirrored.config)))
    assert {k: v for k, v in values(run.config.update).items() if k != "_wandb"} == settings
    assert run.run_group == group_name(settings)


def test_the_workspace_shows_few_figures_and_keeps_all(mirrored):
    """Headline figures have readable names and an axis; every number of every record and step is below the hidden prefix."""
    measured = [r for r in mirrored.rows if RECORD in r]
    assert [row[RECORD].split("#")[0] for row in measured] == [r["stage"] for r in mirrored.records]
    for record, row in zip(mirrored.records, measured, strict=True):
        split, prefix = record["stage"].split("/")[-1], "" if record["stage"].endswith("val") else "test/"
        details = {k.removeprefix(f"{DETAIL}{split}/"): v for k, v in row.items() if k.startswith(f"{DETAIL}{split}/")}
        assert details.pop("state") == record["state"] and row["epoch"] == record["epoch"]
        expected = dict(scalars({k: v for k, v in record.items() if k not in ("epoch", "seed")}))
        assert details == pytest.approx(expected) and len(expected) > 100
        assert row[f"{prefix}action/balanced"] == record["action"]["balanced"]["value"]
        assert row[f"{prefix}gap/balanced"] == record["gap"]["balanced"]["value"]
    losses = [
        (r["step"], r["train/loss"], r["train/retain"], r["train/lr"], r[f"{DETAIL}train/clip_ratio/low"])
        for r in mirrored.rows
        if "step" in r
    ]
    assert losses == [(n, 1 / n, 0.25, 0.1, 0.1) for n in range(1, len(mirrored.records) + 1)]

    logged = {name for row in mirrored.rows for name in row if not name.startswith((DETAIL, "_"))} - {"epoch", "step"}
    shown = {"/".join(name.split("/")[:1]) if name.startswith(("examples/", "controls/")) else name for name in logged}
    assert {"gap/balanced", "closure", "excess", "test/closure", "train/loss", "examples", "controls"} < shown and len(shown) <= 25
    assert shown <= {*EPOCH_FIGURES, *(f"test/{n}" for n in TEST_FIGURES), *STEP_FIGURES.values(), "examples", "controls"}
    defined = {r.metric.name or r.metric.glob_name: r.metric for kind, r in mirrored.kept if kind == "metric"}
    assert {name for name, m in defined.items() if m.options.hidden} == {"epoch", "step", f"{DETAIL}*"} and defined[
        f"{DETAIL}*"
    ].summary.none
    assert {name for name, m in defined.items() if m.step_metric == "epoch"} == {*EPOCH_FIGURES, "test/*"}
    assert {name for name, m in defined.items() if m.step_metric == "step"} == {"train/*"}


def test_the_summary_has_the_last_and_the_best_figures(mirrored):
    found = {}
    for kind, r in mirrored.kept:
        found |= values(r.summary.update) if kind == "summary" else {}
    of = {r["stage"]: r for r in mirrored.records}
    best, last = (of[f"epoch-{n}/val"] for n in (mirrored.summary["epoch"], 2))
    for name, value in epoch_figures(best).items():
        assert found[f"best/{name}"] == pytest.approx(value)
    for name, value in epoch_figures(last).items():
        assert found[name] == pytest.approx(value)
    assert found["best/epoch"] == best["epoch"] and found["state"] == mirrored.summary["state"]
    assert found["test/base/action/balanced"] == of["base/test"]["action"]["balanced"]["value"]
    assert found["test/adapted/closure"] == of["adapted/test"]["change"]["closure"]["value"]
    assert {k: v for k, v in found.items() if k.startswith("verdict/")} == {
        f"verdict/{name}": verdict["word"] for name, verdict in mirrored.summary["verdicts"].items()
    }
    assert not [name for name in found if name.startswith(DETAIL) and name != f"{DETAIL}final" and not name.startswith(f"{DETAIL}final/")]


def test_tables_hold_examples_verdicts_and_the_complete_summary(mirrored):
    found, change = tables(mirrored), read_json(mirrored.directory / "change.json")
    assert found["final"]["data"] == [[name, value] for name, value in scalars(mirrored.summary)]
    examples = chosen_examples(change)
    assert (
        found["examples"]["columns"] == [*EXAMPLE_COLUMNS, "image", "audio"] and 0 < len(examples) == len(found["examples"]["data"]) <= MOST
    )
    for (kind, item), row in zip(examples, found["examples"]["data"], strict=True):
        assert row[:4] == [kind, item["modality"], item["text"], item["right"]]
        assert row[4] in (item["base"]["said"], item["base"]["written"]) and row[5] in (item["adapted"]["said"], item["adapted"]["written"])
        assert row[6].split(" (")[0] == max(item["reading"], key=item["reading"].get)
        assert row[7:] == ["Image", "Audio"]  # the files are in the table's artifact
    held = next(r.artifact for kind, r in mirrored.kept if kind == "artifact" and r.artifact.name.endswith("-examples"))
    assert {Path(e.path).parts[1] for e in held.manifest.contents if e.path.startswith("media/")} == {"images", "audio"}
    many = {"examples": {"gained": [{"n": n} for n in range(40)], "lost": [{"n": n} for n in range(40)]}}
    assert [kind for kind, _ in chosen_examples(many)] == ["gained"] * 25 + ["lost"] * 25
    checks = [dict(zip(found["controls"]["columns"], row, strict=True)) for row in found["controls"]["data"]]
    verdicts = {(c["name"], c["modality"]): c["outcome"] for c in checks if c["kind"] == "verdict"}
    for split, of in (("test", mirrored.summary["verdicts"]), ("val", mirrored.summary["gate"]["verdicts"])):
        assert all(verdicts[split, name] == verdict["word"] for name, verdict in of.items())
    controls = {c["name"] for c in read_json(mirrored.directory / "measurement.json")["controls"]}
    assert {c["name"] for c in checks if c["kind"] == "control"} == controls and {"majority", "text_only"} <= controls


def test_artifacts_have_their_evidence(mirrored):
    """The adapter with its probe; of the items the name and the fingerprint alone."""
    found = {r.artifact.type: r.artifact for kind, r in mirrored.kept if kind == "artifact"}
    model, items, adapter = found["model"], found["dataset"], mirrored.directory / "adapter"
    contents = {e.path for e in model.manifest.contents}
    assert contents == {p.relative_to(adapter).as_posix() for p in adapter.rglob("*") if p.is_file()} | {
        "probes/frozen.json", "probes/frozen.safetensors",
    }  # fmt: skip
    told, bound = json.loads(model.metadata), read_json(mirrored.directory / "items.json")
    assert model.name == "mirror-adapter" and told["state"] == mirrored.summary["state"] and told["closure"] == mirrored.summary["closure"]
    assert told["hashes"]["items"] == bound["fingerprint"] and {len(told["hashes"][name]) for name in ("adapter", "probe")} == {64}
    assert items.name == "digits-items" and [e.path for e in items.manifest.contents] == ["fingerprint.json"]
    assert json.loads(items.metadata) == {"name": "digits", "fingerprint": bound["fingerprint"], "items": bound["items"]}


@pytest.mark.parametrize(("upload", "files"), [([], set()), (["--wandb.upload", "[items]"], {"items.jsonl"})])
def test_user_data_is_uploaded_only_where_the_key_says_so(offline, mirrored, tmp_path, upload, files):
    """By default nothing: neither examples nor items."""
    run = tmp_path / "run"
    shutil.copytree(mirrored.directory, run, ignore=shutil.ignore_patterns("wandb*"))
    root = tmp_path / "set"
    root.mkdir()
    (root / "items.jsonl").write_text("{}\n")
    (run / "items.json").write_text(json.dumps({"fingerprint": "abc", "items": 1, "root": str(root)}))
    config = parse_config(["--tracking", "wandb", "--run_dir", str(run), "--wandb.group", "mine", *upload])
    make_trackers(config, dataclasses.asdict(config)).finish(mirrored.summary, None)
    file, kept = finished(run)
    assert next(r.run for kind, r in kept if kind == "run").run_group == "mine"
    assert {path.name.split("_")[0] for path in file.parent.glob("files/media/table/**/*.json")} == {"final", "controls"}
    (items,) = [r.artifact for kind, r in kept if kind == "artifact" and r.artifact.type == "dataset"]
    assert {e.path for e in items.manifest.contents} == {"fingerprint.json"} | files


def test_seeds_have_one_group():
    """Whatever else differs between them; other data, models, objectives and controls have another one."""
    first = dataclasses.asdict(Config(seed=0))
    assert group_name(first) == group_name(dataclasses.asdict(Config(seed=1, run_dir="elsewhere")))
    others = [Config(objective="gold"), Config(targets=TargetsConfig(control="shuffled"))]
    others += [Config(model=ModelConfig(path="a/digits")), Config(data=DataConfig(path="b/digits"))]
    assert len({group_name(first), *(group_name(dataclasses.asdict(c)) for c in others)}) == 5
    long = dataclasses.asdict(Config(model=ModelConfig(path="m" * 300), data=DataConfig(path="d" * 300)))
    assert len(group_name(long)) <= LONGEST


def test_a_resumed_run_keeps_its_id(offline, tmp_path):
    """The id lives in the run directory."""
    ids = []
    for _ in range(2):
        (tracker,) = tracked(run_dir=str(tmp_path)).members
        ids.append(tracker.run.id)
        tracker.run.finish()
    assert ids[0] == ids[1] == read_json(tmp_path / "wandb.json")["id"]


@pytest.mark.slow
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


@pytest.mark.parametrize("interrupted", [pytest.param(False, id="finished"), pytest.param(True, id="interrupted", marks=pytest.mark.slow)])
def test_a_tracker_that_is_added_later_gets_every_measurement(offline, tiny_run, tiny_config, tmp_path, interrupted):
    """The same command with ``--tracking``: measurements, results and adapter, but no losses of steps that were trained before."""
    run, records = tmp_path / "run", read_records(tiny_run)
    shutil.copytree(tiny_run, run)
    saved = sorted(int(p.name.split("-")[1]) for p in run.glob("checkpoints/checkpoint-*"))
    if interrupted:  # in the second epoch
        shutil.rmtree(run / "adapter")
        for place in (f"checkpoint-{saved[-1]}", "epoch-2"):
            shutil.rmtree(run / "checkpoints" / place)
        written(run, *[r for r in records if r["stage"] not in ("epoch-2/val", "adapted/test")])
    assert main(["close", "--config", str(tiny_config), "--run_dir", str(run), "--tracking", "[wandb]"]) == 0
    assert read_records(run) == records and read_json(run / "wandb.json").keys() >= {"final", "adapter"}
    assert stages(run) == [(r["stage"].split("/")[1], r["epoch"]) for r in records]
    assert [r["step"] for r in rows_of(run) if "train/loss" in r] == [*range(saved[-2] + 1, saved[-1] + 1)] * interrupted


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
    for row in rows:  # the headline figures go with the others
        assert sum(name.endswith("action/balanced") and not name.startswith(DETAIL) for name in row) == 1
    return [(next(k.split("/")[1] for k in row if k.endswith("/state")), row["epoch"]) for row in rows]


def alerts_of(directory: Path) -> list[str]:
    """The titles of all alerts in a run directory."""
    files = sorted(directory.glob("wandb/offline-run-*/*.wandb"))
    return [r.alert.title for path in files for r in stored(path) if r.WhichOneof("record_type") == "alert"]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_a_kill_kept_back_is_sent_by_the_next_start(offline, tmp_path, when):
    """Killed between the file of truth and the tracker, or right after the tracker's client was handed the record, which may not have written
    it: every stage arrives once, in order; the finished run sends nothing again."""
    run = tmp_path / "run"
    run.mkdir()
    command = [sys.executable, "-c", KILLED, str(run), json.dumps(RECORDS[:2]), when, "wandb"]
    environment = {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"} | {"PYTHONPATH": str(ROOT)}  # a service of its own
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    known = read_json(run / "wandb.json")
    assert known["open"] and len(known["records"]) == (1 if when == "before" else 2)
    stages(run)  # waits until the client's service has noticed that its process is gone

    def start(*later: dict) -> None:
        tracker = tracked(run_dir=str(run), guards=GuardsConfig(patience=1))
        for record in later:
            written(run, *[r for r in read_records(run) if r["stage"] != record["stage"]], record)
            tracker.record(record)
        tracker.losses(1, {"loss": 0.5})
        tracker.losses(2, {"loss": 0.25})
        tracker.finish(SUMMARY, None)

    start(*RECORDS[2:])
    expected = [("val", 0), ("test", 0), ("val", 1), ("test", 1)]
    assert stages(run) == expected and alerts_of(run) == ["retention"]
    assert [r["step"] for r in rows_of(run) if "train/loss" in r] == [1, 2] and not read_json(run / "wandb.json")["open"]
    before = sorted(run.glob("wandb/offline-run-*"))
    start(RECORDS[-1])
    assert (
        stages(run) == expected and sorted(run.glob("wandb/offline-run-*")) == before and read_json(run / "wandb.json")["id"] == known["id"]
    )
    start(RECORDS[-1] | {"state": "closed"})  # measured anew, with another outcome
    assert stages(run) == [*expected, ("test", 1)] and alerts_of(run) == ["retention"]


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
    tracker = tracked(run_dir=str(tmp_path))
    for number in (1, 2):
        tracker.record(RECORDS[number])
        tracker.losses(number, {"loss": 0.5})
    told = capsys.readouterr().out
    assert told.count("warning: tracking wandb: ") == 1 and "cannot be reached" in told and "the run goes on" in told
    assert not (tmp_path / "wandb.json").exists()
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    written(tmp_path, *RECORDS[:4])
    tracker.record(RECORDS[3])
    tracker.finish(SUMMARY, None)
    assert stages(tmp_path) == [("val", 0), ("test", 0), ("val", 1), ("test", 1)]
    assert [r["step"] for r in rows_of(tmp_path) if "train/loss" in r] == [1, 2]


def test_a_tracker_that_fails_later_costs_nothing(offline, tmp_path, monkeypatch, capsys):
    """Whatever its client raises, at any call: the next one sends what is missing."""
    (tracker,) = tracked(run_dir=str(tmp_path)).members
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
        assert tracked(run_dir=str(tmp_path)).members == ()
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

    class Kept(Trackers):
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


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_refused_with_its_extra(name, monkeypatch):
    """Also where it is one of several; the extras are declared."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    first = project["optional-dependencies"][name][0].partition(">")[0]
    assert first.removesuffix("-skinny") == CLASSES[name].package
    monkeypatch.setitem(sys.modules, CLASSES[name].package, None)
    for tracking in (name, [name]):
        with pytest.raises(MissingPackage, match=rf"tracking {name} needs {CLASSES[name].package}.*gapclose\[{name}\]"):
            refuse_missing_trackers(Config(tracking=tracking))


def test_without_trackers_nothing_is_kept(tmp_path, monkeypatch):
    """It takes every call without wandb being there at all, and is what other ranks get."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would fail
    for tracking in ("none", []):
        trackers = tracked(tracking=tracking)
        assert trackers.members == ()
        trackers.record({})
        trackers.losses(1, {})
        trackers.finish({}, None)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("RANK", "1")
    assert tracked().members == ()
