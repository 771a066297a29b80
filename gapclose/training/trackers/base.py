"""What all trackers share: what was sent, what is missing, and that no error of theirs ends a run."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from gapclose.core.errors import in_one_line
from gapclose.core.files import read_json, write_json
from gapclose.core.logging import get_logger
from gapclose.evaluation.run_records import read_records
from gapclose.training.context import TrainingSettings
from gapclose.training.early_stopping import triggered
from gapclose.training.trackers.figures import epoch_figures, split_of

logger = get_logger(__name__)


def digest(value: Any) -> str:
    """Return a short hash of a value of JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class Tracker(ABC):
    """One tracker of a run. Subclasses say how to open it, send to it, read it back and close it.

    Errors here never end a run; each different error gives one warning. ``NAME.json`` in the run
    directory stores the run's id in the tracker and what was sent: records by stage with a hash of
    their content, the last step of the losses, alerts, and a hash of the results. Unsent records of
    ``gap.jsonl`` are sent at the next record or the next start. Unsent losses wait in memory. After
    an unclean end (``open`` in that file) the tracker's own data determine what was sent, and nothing
    is sent before they were read.
    """

    name: ClassVar[str]
    """as in the key ``tracking``, of which it also is the extra"""
    package: ClassVar[str]
    """what it imports"""
    of_project: ClassVar[bool] = True
    """whether a run belongs to a project, so that another ``wandb.project`` begins a new one"""
    unclosed: ClassVar[dict[str, Tracker]] = {}
    """name -> tracker of this process whose run is open"""

    def __init__(self, config: TrainingSettings, settings: dict[str, Any]) -> None:
        """``settings``: the complete configuration, as the tracker is to show it."""
        self.config, self.settings, self.directory = config, settings, Path(config.run_dir)
        self.path, self.known = self.directory / f"{self.name}.json", dict[str, Any]()
        self.run: Any = None
        """what :meth:`open` returned; None before"""
        self.waiting, self.warned, self.failing = list[tuple[int, dict[str, float]]](), set[str](), False
        self.recover = False
        """whether what was sent must still be read back"""
        if (before := self.unclosed.pop(self.name, None)) is not None:  # its call was interrupted; MLflow has one open run at a time
            before._safely(before._close)
        self._safely(self._begin)

    @abstractmethod
    def open(self, known: str | None) -> tuple[Any, str]:
        """Open the run, a new one or that with the id ``known``; return it and its id."""

    @abstractmethod
    def send_record(self, record: Mapping[str, Any], digest: str) -> None:
        """Send one measurement."""

    @abstractmethod
    def send_losses(self, step: int, values: Mapping[str, float]) -> None:
        """Send the figures of one optimiser step, by their names in the trainer's log."""

    @abstractmethod
    def read_back(self) -> dict[str, Any]:
        """Return what reached the run of ``self.known``: ``records`` (stage -> hash), ``step`` and ``alerts``."""

    @abstractmethod
    def close(self) -> None:
        """Close the run, and wait until everything is written."""

    def send_inputs(self) -> None:
        """Declare what the run has as input, after it was opened, where the tracker takes it."""
        return

    def send_alert(self, guard: str, reason: str) -> None:
        """Send an alert about a guard that was triggered, where the tracker has alerts."""
        return

    def results(self, summary: Mapping[str, Any]) -> Any:
        """Return what :meth:`send_results` would send, as a value of JSON: it is sent when that has changed."""
        return [summary.get("state"), self.best_figures(summary)]

    def send_results(self, summary: Mapping[str, Any]) -> None:
        """Send the results of the finished run."""
        return

    def send_adapter(self, adapter: Path, summary: Mapping[str, Any]) -> None:
        """Send the exported adapter, where the tracker takes files."""
        return

    def record(self, record: Mapping[str, Any]) -> None:
        """Send the figures of one measurement, after any unsent records."""
        self._safely(lambda: self._catch_up(record))

    def losses(self, step: int, values: Mapping[str, float]) -> None:
        """Send training figures of one optimiser step, unless an earlier start did."""
        if self.recover or step > self.known.get("step", 0):
            self.waiting.append((step, dict(values)))
        if self.run is not None and not self.failing:  # after an error they wait for the next record
            self._safely(self._send_losses)

    def finish(self, summary: Mapping[str, Any], adapter: Path | None) -> None:
        """Send the results and the adapter, and close the run."""
        self._safely(lambda: self._finish(summary, adapter))
        if self.run is not None:
            self._safely(self._close)
        if self.waiting:
            logger.warning(
                f"  tracking {self.name}: the losses of {len(self.waiting)} steps were not sent; they are in the checkpoints' trainer_state.json"
            )

    def best_figures(self, summary: Mapping[str, Any]) -> dict[str, float]:
        """Return the headline figures on val of the epoch that the run chose; empty without training."""
        stage = f"epoch-{summary.get('epoch')}/val"
        return next((epoch_figures(r) for r in read_records(self.directory) if r["stage"] == stage), {})

    def _safely(self, job: Callable[[], None]) -> None:
        """Run ``job`` and turn any error (service, client, disk, network) into a warning;
        tracking must not end a run."""
        try:
            job()
            self.failing = False
        except Exception as error:
            self.failing, reason = True, in_one_line(error)
            if reason not in self.warned:
                self.warned.add(reason)
                logger.warning(
                    f"  tracking {self.name}: {reason}; the run goes on. gap.jsonl keeps every record, and those that are missing there are sent "
                    "at the next record or the next start"
                )

    def _begin(self) -> None:
        """Read what was sent and open the run; a completely sent run is opened only if there are
        new records."""
        known = read_json(self.path) if self.path.is_file() else {}
        self.known = known if not self.of_project or known.get("project") == self.config.wandb.project else {}
        self.recover = bool(self.known.get("open"))  # the last start was killed
        if self.recover or "final" not in self.known:
            self._catch_up()

    def opened(self) -> Any:
        """Return the run, and open it first if necessary. After a kill what was sent is read back
        before, at every attempt until that succeeds."""
        if self.run is None:
            if self.recover:
                self.known |= self.read_back()
                self.known.pop("final", None)
                self.recover = False
            self.run, name = self.open(self.known.get("id"))
            self.unclosed[self.name] = self
            self.keep(id=name, project=self.config.wandb.project, open=True)
            self._safely(self.send_inputs)
        return self.run

    def keep(self, **news: Any) -> None:
        """Store what was sent, for later processes."""
        self.known |= news
        write_json(self.path, self.known)

    def _catch_up(self, record: Mapping[str, Any] | None = None) -> None:
        """Send new and changed records of ``gap.jsonl`` and ``record``; a fresh run is opened
        even without any."""
        records = {r["stage"]: r for r in [*read_records(self.directory), *([record] if record else [])]}
        digests = {stage: digest(r) for stage, r in records.items()}
        if not self.recover and self.known.get("final") and not self._missing(digests):
            return
        self.opened()
        for stage in self._missing(digests):
            self.send_record(records[stage], digests[stage])
            self.keep(records=self.known.get("records", {}) | {stage: digests[stage]})
            self._send_alerts(records[stage], [*records.values()])
        self._send_losses()

    def _missing(self, digests: Mapping[str, str]) -> list[str]:
        """Return the stages whose records are new or have changed."""
        return [stage for stage, found in digests.items() if self.known.get("records", {}).get(stage) != found]

    def _send_alerts(self, record: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
        """Send an alert about each guard that has ended the training; one alert per guard."""
        guards = dict(record.get("stopped", {}))
        if "objections" in record:
            among = [r for r in records if "objections" in r and r.get("round") == record.get("round") and r["epoch"] <= record["epoch"]]
            guards |= triggered(among, self.config.guards)
        for guard, reason in guards.items():
            if guard not in self.known.get("alerts", []):
                self.send_alert(guard, f"{reason} ({record['stage']} of {self.directory.resolve().name})")
                self.keep(alerts=[*self.known.get("alerts", []), guard])

    def _send_losses(self) -> None:
        while self.waiting:
            (step, values), sent = self.waiting[0], self.known.get("step", 0)
            if step > sent:  # otherwise an earlier start sent it, as its data show
                self.send_losses(step, values)
            self.waiting.pop(0)
            self.keep(step=max(step, sent))

    def _finish(self, summary: Mapping[str, Any], adapter: Path | None) -> None:
        self._catch_up()
        if (final := digest(self.results(summary))) != self.known.get("final"):
            self.opened()
            self.send_results(summary)
            self.keep(final=final)
        if adapter is not None:
            self.send_adapter(adapter, summary)

    def _close(self) -> None:
        self.close()
        if self.unclosed.get(self.name) is self:
            del self.unclosed[self.name]
        self.keep(open=False)


def records_at(records: Sequence[Mapping[str, Any]], epochs: Mapping[str, set[int]]) -> dict[str, str]:
    """Return stage -> hash of the records whose split and epoch a tracker holds.

    For trackers that keep numbers only: a record that was measured anew counts as the one that they hold.

    Args:
        records: those of ``gap.jsonl``.
        epochs: split -> epochs of the points that the tracker holds.
    """
    return {r["stage"]: digest(r) for r in records if r["epoch"] in epochs.get(split_of(r), ())}
