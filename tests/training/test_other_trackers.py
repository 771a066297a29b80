"""TensorBoard, Trackio and MLflow hold the headline figures, each once, whatever happened to the run; read back from their own files."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tracked_records import KILLED, RECORDS, SUMMARY, written

from gapclose.core.files import read_json, write_json
from gapclose.evaluation.run_records import read_records, summarise
from gapclose.pipeline.config import Config
from gapclose.training.trackers.base import digest
from gapclose.training.trackers.by_accelerate import PATIENCE
from gapclose.training.trackers.config import TrackingConfig
from gapclose.training.trackers.figures import epoch_figures
from gapclose.training.tracking import CLASSES, make_trackers

ROOT = Path(__file__).parents[2]
OTHERS = ("tensorboard", "trackio", "mlflow")


@pytest.fixture(params=OTHERS)
def name(request, tmp_path, monkeypatch) -> str:
    """A tracker whose package is installed, with all that it writes in the test's directory."""
    for variable, value in local(tmp_path).items():
        monkeypatch.setenv(variable, value)
    pytest.importorskip(request.param)
    if request.param == "trackio":
        monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")
        monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    if request.param == "mlflow":
        import mlflow

        mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    return request.param


def local(directory: Path) -> dict[str, str]:
    """Variables by which the packages write into a directory and send nothing."""
    return {
        "TRACKIO_DIR": str(directory / "trackio"),
        "MLFLOW_TRACKING_URI": (directory / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",  # its database needs further packages, and takes longer to make
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def start(name: str, run: Path, **settings):
    """Trackers of a run directory, which has only this one."""
    config = Config(run_dir=str(run), tracking=[name], **settings)
    return make_trackers(config, dataclasses.asdict(config))


def held(name: str, run: Path) -> dict[str, list[tuple[int, float]]]:
    """Figure -> its points as step and value, sorted, as the package itself reads them."""
    found: dict[str, list[tuple[int, float]]] = {}
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(run / "tensorboard"))
        events.Reload()
        for figure in events.Tags()["scalars"]:
            found[figure] = [(event.step, event.value) for event in events.Scalars(figure)]
    elif name == "trackio":
        from trackio.sqlite_storage import SQLiteStorage

        for row in SQLiteStorage.get_logs("gapclose", read_json(run / "trackio.json")["id"]):
            for figure in row.keys() - {"timestamp", "step"}:
                found.setdefault(figure, []).append((row["step"], row[figure]))
    else:
        import mlflow

        client, run_id = mlflow.MlflowClient(), read_json(run / "mlflow.json")["id"]
        for figure in client.get_run(run_id).data.metrics:
            found[figure] = [(metric.step, metric.value) for metric in client.get_metric_history(run_id, figure)]
    return {figure: sorted(points) for figure, points in found.items()}


def test_the_headline_figures_read_back(name, tiny_run, tmp_path):
    """Those of val and test at their epochs, those of training at their steps, and nothing else."""
    run, records = tmp_path / "run", read_records(tiny_run)
    run.mkdir()
    trackers = start(name, run)
    for step, record in enumerate(records, start=1):
        written(run, *records[:step])
        trackers.record(record)
        trackers.losses(step, {"loss": 1 / step, "learning_rate": 0.5, "clip_ratio/low": 0.1})
    trackers.finish(summarise(tiny_run), None)
    expected: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for figure, value in epoch_figures(record).items():
            expected.setdefault(figure, []).append((record["epoch"], pytest.approx(value)))
    steps = range(1, len(records) + 1)
    expected |= {"train/loss": [(n, pytest.approx(1 / n)) for n in steps], "train/lr": [(n, 0.5) for n in steps]}
    assert held(name, run) == expected and {"gap/balanced", "closure", "test/closure"} < set(expected)
    known = read_json(run / f"{name}.json")
    assert not known["open"] and list(known["records"]) == [r["stage"] for r in records]


@pytest.mark.parametrize("when", ["before", pytest.param("after", marks=pytest.mark.slow)])
def test_what_a_kill_kept_back_is_sent_once(name, when, tmp_path):
    """Killed between the file of truth and the tracker, or right after the tracker was handed the record."""
    run = tmp_path / "run"
    run.mkdir()
    command = [sys.executable, "-c", KILLED, str(run), json.dumps(RECORDS[:2]), when, name]
    environment = os.environ | local(tmp_path) | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    known = read_json(run / f"{name}.json")
    assert known["open"] and len(known["records"]) == (1 if when == "before" else 2)
    for _ in range(2):  # the second start has nothing to send
        trackers = start(name, run)
        for record in RECORDS[2:]:
            written(run, *[r for r in read_records(run) if r["stage"] != record["stage"]], record)
            trackers.record(record)
        for step in (1, 2, 3):
            trackers.losses(step, {"loss": 1 / step})
        trackers.finish(SUMMARY, None)
        found = held(name, run)
        assert [epoch for epoch, _ in found["action/balanced"]] == [0, 1] == [epoch for epoch, _ in found["test/action/balanced"]]
        assert [step for step, _ in found["train/loss"]] == [1, 2, 3]
        assert read_json(run / f"{name}.json")["id"] == known["id"]


def test_one_that_fails_costs_neither_the_run_nor_the_others(name, tmp_path, monkeypatch, capsys):
    """Whatever its package raises, at the start or later: the others get everything, and it gets what is missing once it works."""
    run = tmp_path / "run"
    written(run, *RECORDS[:1])
    with monkeypatch.context() as broken:
        broken.setattr(CLASSES[name], "open", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        trackers = start(name, run)
        trackers.record(RECORDS[0])
        trackers.losses(1, {"loss": 0.5})
    told = capsys.readouterr().out
    assert told.count(f"warning: tracking {name}: no space left; the run goes on") == 1
    trackers.record(RECORDS[0])
    trackers.finish(SUMMARY, None)
    assert held(name, run)["train/loss"] == [(1, 0.5)] and [epoch for epoch, _ in held(name, run)["action/balanced"]] == [0]


def fails(message: str):
    """A method that always raises."""

    def method(*_, **__):
        raise OSError(message)

    return method


def killed(name: str, run: Path) -> None:
    """Leave what a kill leaves: the first record and loss were written, the second ones only handed over, and the file says open."""
    written(run, RECORDS[0])
    trackers = start(name, run)
    trackers.losses(1, {"loss": 1.0})
    trackers.finish(SUMMARY, None)
    written(run, *RECORDS[:2])
    known = read_json(run / f"{name}.json")
    known["records"][RECORDS[1]["stage"]] = digest(RECORDS[1])
    write_json(run / f"{name}.json", known | {"open": True, "step": 2})


def test_what_cannot_be_read_back_at_first_is_not_lost(name, tmp_path, monkeypatch):
    """A start after a kill sends nothing while the tracker cannot be read, and all that is missing once it can."""
    run = tmp_path / "run"
    killed(name, run)
    with monkeypatch.context() as broken:
        broken.setattr(CLASSES[name], "points", fails("no answer"))
        trackers = start(name, run)
        trackers.record(RECORDS[1])
        trackers.losses(2, {"loss": 0.5})
        assert trackers.members[0].run is None and read_json(run / f"{name}.json")["open"]
    written(run, *RECORDS[:3])
    trackers.record(RECORDS[2])
    trackers.losses(3, {"loss": 0.25})
    trackers.finish(SUMMARY, None)
    found = held(name, run)
    assert [epoch for epoch, _ in found["action/balanced"]] == [0, 1] and [epoch for epoch, _ in found["test/action/balanced"]] == [0]
    assert found["train/loss"] == [(1, 1.0), (2, 0.5), (3, 0.25)] and not read_json(run / f"{name}.json")["open"]


def test_another_project_begins_a_new_run_only_where_runs_belong_to_one(name, tmp_path):
    """TensorBoard's folder is the same, so its points are there once."""
    run, ids = tmp_path / "run", []
    written(run, *RECORDS[:1])
    for project in ("gapclose", "another"):
        start(name, run, wandb=TrackingConfig(project=project, name=project)).finish(SUMMARY, None)
        ids.append(read_json(run / f"{name}.json")["id"])
    if name == "tensorboard":
        assert ids[0] == ids[1] and [epoch for epoch, _ in held(name, run)["action/balanced"]] == [0]
    else:
        assert ids[0] != ids[1]


def test_an_interrupted_call_does_not_keep_later_ones_from_tracking(name, tmp_path, capsys):
    """In one process: the same run directory again, and another one after it."""
    first, second = tmp_path / "first", tmp_path / "second"
    written(first, RECORDS[0])
    written(second, RECORDS[0])
    start(name, first).losses(1, {"loss": 0.5})  # never finished
    written(first, *RECORDS[:2])
    start(name, first).losses(2, {"loss": 0.25})
    start(name, second).finish(SUMMARY, None)
    assert "warning" not in capsys.readouterr().out
    assert held(name, first)["train/loss"] == [(1, 0.5), (2, 0.25)]
    for run, epochs in ((first, {"action/balanced", "test/action/balanced"}), (second, {"action/balanced"})):
        assert {figure: points for figure, points in held(name, run).items() if figure in epochs} == {key: [(0, 0.5)] for key in epochs}
        assert not read_json(run / f"{name}.json")["open"]


@pytest.mark.parametrize("name", ["mlflow"], indirect=True)
def test_mlflow_is_waited_for_within_bounds_at_every_call(name, tmp_path, monkeypatch):
    """Also while a killed run is read back; what the user has set stays, and afterwards the process is as it was."""
    run, seen = tmp_path / "run", []
    killed(name, run)
    mine, other = sorted(PATIENCE)
    monkeypatch.setenv(mine, "3")
    monkeypatch.delenv(other, raising=False)

    def points(*_):
        seen.append({variable: os.environ.get(variable) for variable in PATIENCE})
        raise OSError("no answer")

    with monkeypatch.context() as broken:
        broken.setattr(CLASSES[name], "points", points)
        start(name, run).record(RECORDS[1])
    assert seen == [{mine: "3", other: PATIENCE[other]}] * 2 and os.environ[mine] == "3" and other not in os.environ


@pytest.mark.parametrize("name", ["mlflow"], indirect=True)
def test_an_experiment_of_mlflow_has_any_name_and_no_tags_of_a_run(name, tmp_path, monkeypatch):
    """In a database, as by default; MLflow's own store of files takes no quotes."""
    import mlflow

    pytest.importorskip("alembic")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    project, client = 'it\'s a "name"', mlflow.MlflowClient()
    for seed in (0, 1):
        written(tmp_path / str(seed), RECORDS[0])
        start(name, tmp_path / str(seed), seed=seed, wandb=TrackingConfig(project=project, group="both")).finish(SUMMARY, None)
    runs = [client.get_run(read_json(tmp_path / str(seed) / "mlflow.json")["id"]) for seed in (0, 1)]
    experiment = client.get_experiment_by_name(project)
    assert {run.info.experiment_id for run in runs} == {experiment.experiment_id} and not {"group", "seed"} & set(experiment.tags)
    assert [(run.data.tags["group"], run.data.tags["seed"]) for run in runs] == [("both", "0"), ("both", "1")]


@pytest.mark.parametrize("name", ["mlflow"], indirect=True)
def test_a_run_of_mlflow_that_could_not_be_set_up_does_not_stay_active(name, tmp_path, monkeypatch):
    run = tmp_path / "run"
    written(run, RECORDS[0])
    with monkeypatch.context() as broken:
        broken.setattr("accelerate.tracking.MLflowTracker.store_init_configuration", fails("no space left"))
        trackers = start(name, run)
    trackers.finish(SUMMARY, None)
    assert held(name, run)["action/balanced"] == [(0, 0.5)]
