"""Weights & Biases: headline figures in its workspace, everything else hidden, and tables, artifacts and alerts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gapclose.evaluation.run_records import read_records, record_of
from gapclose.training.trackers.base import Tracker, logger
from gapclose.training.trackers.figures import (
    DETAIL,
    EPOCH_FIGURES,
    epoch_details,
    epoch_figures,
    scalars,
    split_of,
    step_details,
    step_figures,
)
from gapclose.training.trackers.names import group_name, run_name
from gapclose.training.trackers.wandb_results import adapter_artifact, check_rows, check_table, example_table, items_artifact
from gapclose.training.trackers.wandb_service import (
    FINISH_SECONDS,
    START_SECONDS,
    mode,
    records_written,
    row_of,
    service,
    why_unreached,
    within,
)

RECORD = f"{DETAIL}record"
"""log key of a row's record: its stage and a hash of its content"""


class WandbTracker(Tracker):
    """Mirrors a run to Weights & Biases.

    A row of its history is a measurement or an optimiser step. Headline figures have ``epoch`` or
    ``step`` as x axis. All other figures are below ``detail/``, which the workspace hides. The
    client writes with a delay, so after an unclean end the run's own files determine what was sent.
    """

    name = package = "wandb"

    def open(self, known: str | None) -> tuple[Any, str]:
        """Open the run.

        Raises:
            ConnectionError: when the service cannot be reached.
        """
        if reason := why_unreached():
            raise ConnectionError(reason)
        wandb, where = service(), self.config.wandb
        run = wandb.init(
            project=where.project, name=where.name or run_name(self.directory), group=where.group or group_name(self.settings),
            dir=str(self.directory), config=self.settings, id=known, resume="allow" if known else None,
            settings=wandb.Settings(init_timeout=START_SECONDS, finish_timeout=FINISH_SECONDS, finish_timeout_raises=True),
        )  # fmt: skip
        for axis in ("epoch", "step"):
            run.define_metric(axis, hidden=True)
        for name in (*EPOCH_FIGURES, "test/*"):
            run.define_metric(name, step_metric="epoch")
        run.define_metric("train/*", step_metric="step")
        run.define_metric(f"{DETAIL}*", hidden=True, summary="none")
        return run, run.id

    def send_record(self, record: Mapping[str, Any], digest: str) -> None:
        """Log a row with the headline figures and all others."""
        facts = {f"{DETAIL}{split_of(record)}/state": record["state"], RECORD: f"{record['stage']}#{digest}"}
        self.run.log({**epoch_figures(record), **epoch_details(record), **facts, "epoch": record["epoch"]})

    def send_losses(self, step: int, values: Mapping[str, float]) -> None:
        """Log a row of one optimiser step."""
        self.run.log({**step_figures(values), **step_details(values), "step": step})

    def send_alert(self, guard: str, reason: str) -> None:
        """Send an alert, whose title tells later starts that it was sent."""
        self.run.alert(title=guard, text=f"stopped by the guard {guard}: {reason}", level="WARN")

    def read_back(self) -> dict[str, Any]:
        """Read the files that the client keeps in the run directory, uploaded or not."""
        written = [*records_written(self.directory, self.known["id"])]
        rows = [row for record in written if (row := row_of(record))]
        if mode() == "online":
            logger.warning(
                f"tracking: the last start of this run was cut off. `wandb sync {self.directory / 'wandb'}/*-{self.known['id']}` uploads what it had "
                "written and not sent; nothing else sends it"
            )
        return {
            "records": dict(row[RECORD].rsplit("#", 1) for row in rows if RECORD in row),
            "step": max((row["step"] for row in rows if "step" in row), default=0),
            "alerts": [r.alert.title for r in written if r.WhichOneof("record_type") == "alert"],
        }

    def results(self, summary: Mapping[str, Any]) -> Any:
        """The complete summary and the table of verdicts and controls."""
        return [summary, check_rows(self.directory), self.config.wandb.upload]

    def send_results(self, summary: Mapping[str, Any]) -> None:
        """Log the tables, and write the run's summary."""
        uploads, wandb = self.config.wandb.upload, service()
        tables: dict[str, Any] = {f"{DETAIL}final": wandb.Table(columns=["figure", "value"], data=[[*pair] for pair in scalars(summary)])}
        if rows := check_rows(self.directory):
            tables["controls"] = check_table(rows)
        if "examples" in uploads and (table := example_table(self.directory, media="media" in uploads)):
            tables["examples"] = table
        self.run.log(tables)
        best, last = self.best_figures(summary), [r for r in read_records(self.directory) if split_of(r) == "val"][-1:]
        found: dict[str, Any] = {"state": summary["state"]} | {f"best/{name}": value for name, value in best.items()}
        found |= epoch_figures(last[0]) if last else {}  # offline, a run that was continued knows only its own rows
        found |= {"best/epoch": summary["epoch"]} if best else {}
        found |= {f"verdict/{name}": of["word"] for name, of in (summary.get("verdicts") or {}).items()}
        for stage in ("base", "adapted"):
            if record := record_of(self.directory, f"{stage}/test"):
                found |= {f"test/{stage}/{n.removeprefix('test/')}": v for n, v in epoch_figures(record).items()}
        self.run.summary.update(found)

    def send_adapter(self, adapter: Path, summary: Mapping[str, Any]) -> None:
        """Log the adapter with its probe, unless this very content was logged."""
        artifact = adapter_artifact(self.directory, adapter, summary)
        if artifact.digest != self.known.get("adapter"):
            self.opened().log_artifact(artifact)
            self.keep(adapter=artifact.digest)

    def send_inputs(self) -> None:
        """Declare the items as an input of the run, once.

        Offline the client refuses ``use_artifact``; there they are logged like an output.

        Raises:
            ConnectionError: when their facts were not uploaded in time.
        """
        if not (self.directory / "items.json").is_file():
            return
        name = Path(str(self.settings["data"]["path"])).name or "data"
        artifact = items_artifact(self.directory, name, upload="items" in self.config.wandb.upload)
        if artifact.digest == self.known.get("items"):
            return
        if mode() != "online":
            self.run.log_artifact(artifact)
        elif reason := within(lambda: self.run.use_artifact(artifact), START_SECONDS):  # it waits for the upload
            raise ConnectionError(f"the artifact of the items was not uploaded: {reason}")
        self.keep(items=artifact.digest)

    def close(self) -> None:
        """Finish the run.

        Raises:
            TimeoutError: when not everything was uploaded in time.
        """
        try:
            self.run.finish()
        except TimeoutError as error:
            place = Path(self.run.dir).parent
            raise TimeoutError(f"not all was uploaded within {FINISH_SECONDS:g} s; `wandb sync {place}` sends the rest") from error
