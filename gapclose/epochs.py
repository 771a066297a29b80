"""Which epochs of a run count: their records by round, the best of them, and what kept a round from its last.

Everything is read from the run directory (``gap.jsonl``, ``stopped.json``), so that a training that was interrupted decides as one that was not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gapclose.config import Config
from gapclose.files import read_json, write_json
from gapclose.gap import GapConfig
from gapclose.guards import fired, objections
from gapclose.progress import say
from gapclose.report.summary import read_records, record_of
from gapclose.spread import main_alone


class Epochs:
    """The measured epochs of the run in ``directory``; rounds count from 1, epochs go on through them.

    All processes ask together, and are told what the main one reads: another node may not see yet what was written.
    """

    def __init__(self, directory: Path, config: Config) -> None:
        self.directory, self.config = directory, config

    def read(self, number: int) -> list[dict[str, Any]]:
        """The records of the epochs of a round measured so far, in order, as this process sees them."""
        length = self.config.train.epochs
        found = [r for r in read_records(self.directory) if r["stage"].startswith("epoch-")]
        return sorted((r for r in found if length * (number - 1) < r["epoch"] <= length * number), key=lambda r: r["epoch"])

    def records(self, number: int) -> list[dict[str, Any]]:
        """The same, as the main process sees them."""
        return main_alone(lambda: self.read(number))

    def best(self, rounds: Iterable[int]) -> dict[str, Any]:
        """The record of the best epoch of these rounds.

        Raises:
            ValueError: when none of them has one.
        """

        def choose() -> dict[str, Any]:
            among = [r for number in rounds for r in self.read(number)]
            epoch = best_epoch(among, self.config.gap, self.config.guards.silent)
            return next(r for r in among if r["epoch"] == epoch)

        return main_alone(choose)

    def guarded(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record of an epoch with what the guards have against it; a control of training has none."""
        if self.config.targets.control != "none":
            return record | {"objections": {}}
        base = main_alone(lambda: record_of(self.directory, "base/val"))
        assert base is not None
        return record | {"objections": objections(record, base, self.config.gap, self.config.guards)}

    def fired(self, number: int) -> dict[str, str]:
        """The guards that end a round, with their reasons."""
        return main_alone(lambda: self._fired(number))

    def stopped(self) -> dict[str, str]:
        """What kept a round from its last epoch; a guard that was turned off since may have been it."""

        def first() -> dict[str, str]:
            for number in range(1, self.config.targets.rounds + 1):
                if len(self.read(number)) < self.config.train.epochs:
                    return self._fired(number) or self._at_a_step(number)
            return {}

        return main_alone(first)

    def stop(self, number: int, reason: str) -> None:
        """Keep that the guard of the loss ended a round between two measurements; for the main process."""
        write_json(self.directory / "stopped.json", {"round": number, "loss": reason})

    def _fired(self, number: int) -> dict[str, str]:
        off = self.config.guards.silent
        of_epochs = fired(self.read(number), self.config.guards)
        return of_epochs | {name: why for name, why in self._at_a_step(number).items() if name not in off}

    def _at_a_step(self, number: int) -> dict[str, str]:
        path = self.directory / "stopped.json"
        found = read_json(path) if path.is_file() else {}
        return {name: why for name, why in found.items() if name != "round"} if found.get("round", 1) == number else {}


def best_epoch(epochs: Sequence[Mapping[str, Any]], config: GapConfig, off: Sequence[str] = ()) -> int:
    """The epoch with the highest balanced action on val whose standard accuracy stays within the budget, and that no guard objects to.

    With ``gap.choose: shifted`` (and alarms) it is the action on the option after the best shift, which keeps to the budget. When guards
    object to all within the budget, the best of those; when none is within it, the one that loses least: its state tells.

    Args:
        epochs: their records on val. off: guards whose objections do not count.

    Raises:
        ValueError: when there are none.
    """
    if not epochs:
        raise ValueError("no epoch was measured, so none can be chosen; start the same command again")
    after = [r for r in epochs if r["state"] not in ("collapsed", "lost")] or list(epochs)
    shifted = config.choose == "shifted" and all(r["shifted"] for r in after)
    within = [r for r in after if shifted or r["change"]["standard_drop"]["value"] <= config.standard_budget]
    within = [r for r in within if not set(r["objections"]) - set(off)] or within
    if within:
        by = {r["epoch"]: r["shifted"]["option_balanced"] if shifted else r["action"]["balanced"]["value"] for r in within}
        return max(sorted(by), key=by.__getitem__)
    say("warning: every epoch loses more standard accuracy than the budget; keeping the one that loses least")
    return min(after, key=lambda r: r["change"]["standard_drop"]["value"])["epoch"]
