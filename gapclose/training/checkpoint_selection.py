"""Which epochs of a run count: their records by round, the best of them, and what kept a round from its last.

Everything is read from the run directory (``gap.jsonl``, ``stopped.json``), so that a training that was interrupted decides as one that was not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapclose.core.distributed import run_on_main
from gapclose.core.files import read_json, write_json
from gapclose.core.logging import say
from gapclose.core.results import Result
from gapclose.evaluation.run_records import read_records, record_of
from gapclose.metrics.bootstrap import Interval
from gapclose.metrics.config import GapConfig
from gapclose.metrics.status import beyond, within
from gapclose.training.context import TrainingSettings
from gapclose.training.early_stopping import check_guards, triggered


class EpochRecords:
    """The measured epochs of the run in ``directory``; rounds count from 1, epochs go on through them.

    All processes ask together, and are told what the main one reads: another node may not see yet what was written.
    """

    def __init__(self, directory: Path, config: TrainingSettings) -> None:
        self.directory, self.config = directory, config

    def read(self, number: int) -> list[dict[str, Any]]:
        """The records of the epochs of a round measured so far, in order, as this process sees them."""
        length = self.config.train.epochs
        found = [r for r in read_records(self.directory) if r["stage"].startswith("epoch-")]
        return sorted((r for r in found if length * (number - 1) < r["epoch"] <= length * number), key=lambda r: r["epoch"])

    def records(self, number: int) -> list[dict[str, Any]]:
        """The same, as the main process sees them."""
        return run_on_main(lambda: self.read(number))

    def best(self, rounds: Iterable[int]) -> dict[str, Any]:
        """The record of the best epoch of these rounds.

        Raises:
            ValueError: when none of them has one.
        """

        def choose() -> dict[str, Any]:
            among = [r for number in rounds for r in self.read(number)]
            epoch = best_epoch(among, self.config.gap, self.config.guards.silent)
            return next(r for r in among if r["epoch"] == epoch)

        return run_on_main(choose)

    def unimproved(self, rounds: Iterable[int]) -> Unimproved | None:
        """Why none of these rounds' epochs is to be preferred to the base model; None where one is."""

        def judge() -> Unimproved | None:
            base, among = record_of(self.directory, "base/val"), [r for number in rounds for r in self.read(number)]
            assert base is not None
            return unimproved(among, self.config.gap, self.config.guards.silent, base)

        return run_on_main(judge)

    def guarded(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record of an epoch with what the guards have against it; a control of training has none."""
        if self.config.targets.control != "none":
            return record | {"objections": {}}
        base = run_on_main(lambda: record_of(self.directory, "base/val"))
        assert base is not None
        return record | {"objections": check_guards(record, base, self.config.gap, self.config.guards)}

    def triggered(self, number: int) -> dict[str, str]:
        """The guards that end a round, with their reasons."""
        return run_on_main(lambda: self._fired(number))

    def stopped(self) -> dict[str, str]:
        """What kept a round from its last epoch; a guard that was turned off since may have been it."""

        def first() -> dict[str, str]:
            for number in range(1, self.config.targets.rounds + 1):
                if len(self.read(number)) < self.config.train.epochs:
                    return self._fired(number) or self._at_a_step(number)
            return {}

        return run_on_main(first)

    def stop(self, number: int, reason: str) -> None:
        """Keep that the guard of the loss ended a round between two measurements; for the main process."""
        write_json(self.directory / "stopped.json", {"round": number, "loss": reason})

    def _fired(self, number: int) -> dict[str, str]:
        off = self.config.guards.silent
        of_epochs = triggered(self.read(number), self.config.guards)
        return of_epochs | {name: why for name, why in self._at_a_step(number).items() if name not in off}

    def _at_a_step(self, number: int) -> dict[str, str]:
        path = self.directory / "stopped.json"
        found = read_json(path) if path.is_file() else {}
        return {name: why for name, why in found.items() if name != "round"} if found.get("round", 1) == number else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Unimproved(Result):
    """Why no epoch is to be preferred to the base model."""

    epoch: int
    """the best one all the same"""
    chosen_by: str
    base: float
    """that figure on val of the base model"""
    adapted: float
    """that of the epoch"""
    why: str
    """a sentence"""


def best_epoch(
    epochs: Sequence[Mapping[str, Any]], config: GapConfig, off: Sequence[str] = (), base: Mapping[str, Any] | None = None
) -> int:
    """The epoch with the highest balanced action on val whose standard accuracy stays within the budget, and that no guard objects to.

    With ``gap.choose: shifted`` (and alarms) it is the action on the option after the best shift, which keeps to the budget. Epochs whose fall
    is within the budget as estimated come first, then those whose fall is not beyond it (:func:`gapclose.metrics.status.beyond`). When guards object
    to all of these, the best of those; when none is left, the one that loses least: its state tells. Of equals the earliest is taken.

    Args:
        epochs: their records on val. off: guards whose objections do not count.
        base: the record of the base model on val, which then is a candidate as epoch 0: it loses nothing, and nothing objects to it.

    Returns:
        Its number; 0 for the base model, where no epoch that might be taken is better.

    Raises:
        ValueError: when there are none.
    """
    if not epochs:
        raise ValueError("no epoch was measured, so none can be chosen; start the same command again")
    after = [r for r in epochs if r["state"] not in ("collapsed", "lost")] or list(epochs)
    shifted = _by_shift(after, config)
    drop = {r["epoch"]: Interval.from_dict(r["change"]["standard_drop"]) for r in after}
    kept = [r for r in after if shifted or not beyond(drop[r["epoch"]], config.standard_budget)]
    clean = [r for r in kept if not set(r["objections"]) - set(off)]
    clean = [r for r in clean if shifted or within(drop[r["epoch"]], config.standard_budget)] or clean
    clean = [r for r in clean if r["state"] not in ("collapsed", "lost")] if base is not None else clean
    if base is not None:
        best = max(clean, key=lambda r: (figure(r, shifted=shifted), -r["epoch"]), default=None)
        return 0 if best is None or figure(best, shifted=shifted) <= figure(base, shifted=shifted) + 1e-9 else best["epoch"]
    if among := clean or kept:
        return max(among, key=lambda r: (figure(r, shifted=shifted), -r["epoch"]))["epoch"]
    say("warning: every epoch loses more standard accuracy than the budget; keeping the one that loses least")
    return min(after, key=lambda r: (drop[r["epoch"]].value, r["epoch"]))["epoch"]


def _by_shift(records: Sequence[Mapping[str, Any]], config: GapConfig) -> bool:
    return config.choose == "shifted" and all(r["shifted"] for r in records)


def figure(record: Mapping[str, Any], *, shifted: bool) -> float:
    """What an epoch is chosen by; the base model has no shift, and is as it is."""
    if not shifted:
        return record["action"]["balanced"]["value"]
    return record["shifted"]["option_balanced"] if record.get("shifted") else record["action"]["option_balanced"]["value"]


def unimproved(epochs: Sequence[Mapping[str, Any]], config: GapConfig, off: Sequence[str], base: Mapping[str, Any]) -> Unimproved | None:
    """Why no epoch is to be preferred to the base model, None where one is."""
    if best_epoch(epochs, config, off, base):
        return None
    shifted = _by_shift(epochs, config)
    best = next(r for r in epochs if r["epoch"] == best_epoch(epochs, config, off))
    by = "balanced accuracy on the option after the best shift" if shifted else "balanced accuracy of the action"
    before, now = (figure(r, shifted=shifted) for r in (base, best))
    why = f"on val no epoch is better than the base model ({by} {before:.3f}; epoch {best['epoch']}: {now:.3f})"
    top = max(epochs, key=lambda r: figure(r, shifted=shifted))
    if figure(top, shifted=shifted) > max(before, now) + 1e-9:
        fall = top["change"]["standard_drop"]["value"]
        why = (
            f"on val no epoch within the budgets is better than the base model ({by} {before:.3f}); epoch {top['epoch']} has "
            f"{figure(top, shifted=shifted):.3f}, and loses {fall:.3f} of standard accuracy (state {top['state']})"
        )
    elif now > before + 1e-9:
        why = (
            f"on val every epoch that is better than the base model ({by} {before:.3f}; epoch {best['epoch']}: {now:.3f}) falls beyond a "
            f"budget, or a guard objects to it (state {best['state']}; {', '.join(best['objections']) or 'no guard'})"
        )
    return Unimproved(epoch=best["epoch"], chosen_by=by, base=before, adapted=now, why=why)
