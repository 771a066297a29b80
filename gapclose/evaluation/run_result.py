"""A finished or unfinished run as typed results: :func:`load_run`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gapclose.evaluation.run_records import read_records, summarise
from gapclose.metrics.bootstrap import Interval
from gapclose.probes.linear import FrozenProbe


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One measurement of a run: a line of ``gap.jsonl``. Accuracies are balanced over modality and concept."""

    stage: str
    """``base/val``, ``epoch-2/val``, ``adapted/test`` and so on"""
    epoch: int
    n_items: int
    n_clips: int
    reading: Interval
    action: Interval
    gap: Interval
    """reading - action"""
    standard_accuracy: Interval
    closure: Interval | None
    """share of the base model's gap that is closed; None for the base model itself, nan where it has no gap"""
    state: str
    """a word of :data:`gapclose.metrics.status.STATES`"""
    record: dict[str, Any] = field(repr=False)
    """everything that was measured, as it stands in the file"""

    @classmethod
    def of(cls, record: dict[str, Any]) -> StageRecord:
        """The typed view of a line of ``gap.jsonl``."""
        closure = record.get("change", {}).get("closure")
        return cls(
            **{name: record[name] for name in ("stage", "epoch", "n_items", "n_clips", "state")},
            reading=Interval.from_dict(record["reading"]["balanced"]),
            action=Interval.from_dict(record["action"]["balanced"]),
            gap=Interval.from_dict(record["gap"]["balanced"]),
            standard_accuracy=Interval.from_dict(record["action"]["standard_accuracy"]),
            closure=None if closure is None else Interval.from_dict(closure),
            record=record,
        )

    def to_dict(self) -> dict[str, Any]:
        """The line of ``gap.jsonl``."""
        return self.record


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run measured, read from its directory."""

    directory: Path
    records: tuple[StageRecord, ...]
    """every measurement, in order"""
    summary: dict[str, Any] = field(repr=False)
    """what ``gapclose report RUN --json`` prints"""
    model: Any = field(default=None, repr=False)
    """the model as :func:`gapclose.close` left it, with its adapter; None where the run was read from disk"""

    def stage(self, name: str) -> StageRecord | None:
        """The measurement of a stage, or None where it was not made."""
        return next((r for r in self.records if r.stage == name), None)

    @property
    def base(self) -> StageRecord:
        """The base model on test."""
        found = self.stage("base/test")
        assert found is not None  # load_run refuses others
        return found

    @property
    def adapted(self) -> StageRecord | None:
        """The adapted model on test; None where nothing was trained."""
        return self.stage("adapted/test")

    @property
    def state(self) -> str:
        """The state of the adapted model on test, or of the base model."""
        return str(self.summary["state"])

    @property
    def gap(self) -> Interval:
        """The base model's gap on test: reading - action."""
        return self.base.gap

    @property
    def closure(self) -> Interval | None:
        """Share of the gap that is closed on test; None where nothing was trained."""
        return None if self.adapted is None else self.adapted.closure

    @property
    def verdict(self) -> dict[str, str]:
        """Modality -> what may be claimed of its reading on test, a word of :data:`gapclose.metrics.verdict.VERDICTS`."""
        return {name: of["word"] for name, of in self.summary["verdicts"].items()}

    @property
    def probe(self) -> FrozenProbe:
        """The frozen probe."""
        return FrozenProbe.load(self.directory / "probes" / "frozen")

    def to_dict(self) -> dict[str, Any]:
        """The summary, for JSON."""
        return self.summary


def load_run(path: str | Path) -> RunResult:
    """Read what a run measured.

    Args:
        path: the run directory.

    Raises:
        ValueError: when there is no such directory, its files are damaged, or the base model was not measured on test.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such run directory")
    summary = summarise(directory)
    return RunResult(directory=directory, records=tuple(StageRecord.of(r) for r in read_records(directory)), summary=summary)
