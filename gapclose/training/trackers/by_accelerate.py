"""TensorBoard, Trackio and MLflow: the headline figures, by the trackers of accelerate."""

from __future__ import annotations

import hashlib
import io
import os
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from typing import Any, ClassVar

import yaml
from accelerate import PartialState
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, TrackioTracker

from gapclose.core.imports import require
from gapclose.core.settings import flatten
from gapclose.evaluation.run_records import read_records
from gapclose.training.trackers.base import Tracker, records_at
from gapclose.training.trackers.figures import EPOCH_FIGURES, STEP_FIGURES, TEST_FIGURES, epoch_figures, step_figures
from gapclose.training.trackers.names import group_name, run_name

SPLITS = {"val": EPOCH_FIGURES, "test": tuple(f"test/{name}" for name in TEST_FIGURES)}
"""split -> headline figures of its measurements"""
STEPS = tuple(STEP_FIGURES.values())
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""variables of MLflow that bound how long a server that does not answer is waited for, unless the user has set them"""


class ByAccelerate(Tracker):
    """A tracker that keeps numbers by name and step; the step of a measurement is its epoch."""

    @abstractmethod
    def points(self) -> Iterable[tuple[str, int]]:
        """Yield name and step of every number that the tracker holds of the run in ``self.known``."""

    @property
    def run_name(self) -> str:
        """The configured name of the run, or that of its directory."""
        return self.config.wandb.name or run_name(self.directory)

    def imported(self, module: str) -> Any:
        """Import the package, or a module in it, which the extra of this name installs."""
        return require(module, self.name, f"tracking {self.name}")

    def started(self, tracker: GeneralTracker) -> Any:
        """Start a tracker of accelerate."""
        PartialState()  # its logger needs that
        tracker.start()
        return tracker

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send numbers of one step."""
        if values:
            self.run.log(dict(values), step=step)

    def send_record(self, record: Mapping[str, Any], digest: str) -> None:
        """Send the headline figures of a measurement at its epoch."""
        self.log(epoch_figures(record), record["epoch"])

    def send_losses(self, step: int, values: Mapping[str, float]) -> None:
        """Send the headline figures of an optimiser step."""
        self.log(step_figures(values), step)

    def read_back(self) -> dict[str, Any]:
        """Look which epochs and steps the tracker holds."""
        steps = defaultdict[str, set[int]](set)
        for name, step in self.points():
            steps[name].add(step)
        epochs = {split: set().union(*(steps[name] for name in names)) for split, names in SPLITS.items()}
        last = max(set().union(*(steps[name] for name in STEPS)), default=0)
        return {"records": records_at(read_records(self.directory), epochs), "step": last}

    def close(self) -> None:
        """Close the run."""
        self.run.finish()


class TensorBoard(ByAccelerate):
    """Event files in ``RUN/tensorboard``, flushed after every row."""

    name = package = "tensorboard"
    of_project = False
    folder: ClassVar[str] = "tensorboard"

    def open(self, known: str | None) -> tuple[Any, str]:
        """Open an event file; a later start adds one to the same folder."""
        tracker = self.started(TensorBoardTracker(self.folder, str(self.directory)))
        if known is None:
            tracker.log({"config": "```yaml\n" + yaml.safe_dump(self.settings, sort_keys=False) + "```"})
        return tracker, self.folder

    def points(self) -> Iterable[tuple[str, int]]:
        """Read the event files."""
        reader = self.imported("tensorboard.backend.event_processing.event_accumulator")
        events = reader.EventAccumulator(str(self.directory / self.folder), size_guidance={"scalars": 0})
        events.Reload()
        for name in events.Tags()["scalars"]:
            yield from ((name, event.step) for event in events.Scalars(name))


class Trackio(ByAccelerate):
    """A run in Trackio's local database, or in the Space or server that its variables name."""

    name = package = "trackio"

    def open(self, known: str | None) -> tuple[Any, str]:
        """Open the run. Trackio continues runs by name, so a name that another run has gets six digits."""
        name, where = known or self.run_name, self.config.wandb
        if known is None and name in self._names():
            name = f"{name}-{hashlib.sha256(str(self.directory.resolve()).encode()).hexdigest()[:6]}"
        settings = {key: value for key, value in flatten(self.settings).items() if value is not None}
        given: dict[str, Any] = {"name": name, "group": where.group or group_name(self.settings), "config": settings, "resume": "allow"}
        with redirect_stdout(io.StringIO()):  # it prints how to open its dashboard
            return self.started(TrackioTracker(where.project, embed=False, auto_log_gpu=False, auto_log_cpu=False, **given)), name

    def close(self) -> None:
        """Wait until everything is in the database."""
        with redirect_stdout(io.StringIO()):
            super().close()

    def _names(self) -> set[str]:
        """Return the names of the project's runs in the local database."""
        try:
            return {run.name for run in self.imported("trackio").Api().runs(self.config.wandb.project)}
        except ValueError:  # there is no such project yet
            return set()

    def points(self) -> Iterable[tuple[str, int]]:
        """Read the local database."""
        storage = self.imported("trackio.sqlite_storage").SQLiteStorage
        for row in storage.get_logs(self.config.wandb.project, self.known["id"]):
            yield from ((name, row["step"]) for name in row if name in {*STEPS, *(n for names in SPLITS.values() for n in names)})

    def send_alert(self, guard: str, reason: str) -> None:
        """Send an alert."""
        with redirect_stdout(io.StringIO()):  # it prints alerts; the run has logged the guard
            self.run.tracker.alert(title=guard, text=reason)


class OfExperiment(MLflowTracker):
    """accelerate's tracker, which here finds its experiment by the exact name and gives its tags to the run alone.

    accelerate's own ``start`` writes the name into a filter, where quotes have a meaning, and gives
    the tags of the first run to the experiment as well.
    """

    def start(self) -> None:
        """Start the run, in a new experiment if there is none of this name."""
        mlflow = require("mlflow", "mlflow", "tracking mlflow")
        client, name = mlflow.MlflowClient(), self.experiment_name
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        self.active_run = mlflow.start_run(
            run_id=self.run_id, experiment_id=experiment, run_name=self.run_name, nested=self.nested_run, tags=self.tags
        )


class MLflow(ByAccelerate):
    """A run in the MLflow that ``MLFLOW_TRACKING_URI`` names, or in its local default."""

    name = package = "mlflow"

    def _safely(self, job: Callable[[], None]) -> None:
        """Wait for a server within the limits of :data:`PATIENCE`, which the process has during ``job`` only."""
        unset = PATIENCE.keys() - os.environ.keys()
        os.environ.update({variable: PATIENCE[variable] for variable in unset})
        try:
            super()._safely(job)
        finally:
            for variable in unset:
                os.environ.pop(variable, None)

    def open(self, known: str | None) -> tuple[Any, str]:
        """Open the run in the experiment of the project's name."""
        tags = {"group": self.config.wandb.group or group_name(self.settings), "seed": str(self.config.seed)}
        tracker = self.started(OfExperiment(self.config.wandb.project, run_id=known, run_name=self.run_name, tags=tags))
        try:
            if known is None:
                tracker.store_init_configuration(flatten(self.settings))
        except BaseException:  # a run that stays active would keep the next attempt from starting one
            tracker.finish()
            raise
        return tracker, tracker.tracker.info.run_id

    def points(self) -> Iterable[tuple[str, int]]:
        """Ask for the history of every figure."""
        client = self.imported("mlflow").MlflowClient()
        for name in client.get_run(self.known["id"]).data.metrics:
            yield from ((name, metric.step) for metric in client.get_metric_history(self.known["id"], name))

    def send_results(self, summary: Mapping[str, Any]) -> None:
        """Tag the run with its state."""
        self.imported("mlflow").set_tag("state", summary["state"])
