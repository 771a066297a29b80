"""Typed results of a run, finished or not: :func:`load_run`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gapclose.core.files import near_sibling
from gapclose.evaluation.result_table import result_table
from gapclose.evaluation.run_records import read_records, summarise
from gapclose.metrics.bootstrap import Interval
from gapclose.probes.linear import FrozenProbe


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One measurement of a run: a line of ``gap.jsonl``.

    Accuracies are balanced over modality and concept.
    """

    stage: str
    """``base/val``, ``epoch-2/val``, ``adapted/test`` and so on"""
    epoch: float
    """an int, or a fraction where :class:`gapclose.GapCallback` measures between epochs"""
    n_items: int
    n_clips: int
    reading: Interval
    action: Interval
    gap: Interval
    """reading - action"""
    standard_accuracy: Interval
    closure: Interval | None
    """share of the base model's gap that is closed; None for the base model, nan if it has no
    gap"""
    state: str
    """a word of :data:`gapclose.metrics.status.STATES`"""
    record: dict[str, Any] = field(repr=False)
    """the complete record, as in the file"""

    @classmethod
    def of(cls, record: dict[str, Any]) -> StageRecord:
        """Build the typed view of a line of ``gap.jsonl``."""
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
    """Results of a run, read from its directory."""

    directory: Path
    records: tuple[StageRecord, ...]
    """every measurement, in order"""
    summary: dict[str, Any] = field(repr=False)
    """the output of ``gapclose report RUN --json``"""
    model: Any = field(default=None, repr=False)
    """the model with its adapter, as :func:`gapclose.close` returns it; None if the run was read
    from disk"""

    def stage(self, name: str) -> StageRecord | None:
        """Return the measurement of a stage, or None if there is none."""
        return next((r for r in self.records if r.stage == name), None)

    @property
    def base(self) -> StageRecord:
        """The base model on test."""
        found = self.stage("base/test")
        assert found is not None  # load_run refuses others
        return found

    @property
    def adapted(self) -> StageRecord | None:
        """The adapted model on test; None without training."""
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
        """Share of the gap that is closed on test; None without training."""
        return None if self.adapted is None else self.adapted.closure

    @property
    def verdict(self) -> dict[str, str]:
        """Modality -> verdict on its reading on test, a word of
        :data:`gapclose.metrics.verdict.VERDICTS`."""
        return {name: of["word"] for name, of in self.summary["verdicts"].items()}

    @property
    def probe(self) -> FrozenProbe:
        """The frozen probe."""
        return FrozenProbe.load(self.directory / "probes" / "frozen")

    def to_dict(self) -> dict[str, Any]:
        """The summary, for JSON."""
        return self.summary

    def _repr_html_(self) -> str:
        """The figures on test with state and next step, as a notebook shows them."""
        return result_table(self.summary)


def load_run(path: str | Path) -> RunResult:
    """Read the results of a run.

    Args:
        path: the run directory.

    Raises:
        ValueError: when there is no such directory, its files are damaged, or the base model was
            not measured on test.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such run directory{near_sibling(directory)}")
    summary = summarise(directory)
    return RunResult(directory=directory, records=tuple(StageRecord.of(r) for r in read_records(directory)), summary=summary)
