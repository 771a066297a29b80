"""Selection of an epoch: the records of each round, the best epoch, and why a round stopped early.

Everything is read from the run directory (``gap.jsonl``, ``stopped.json``), so an interrupted
training selects as an uninterrupted one does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gapclose.core.distributed import run_on_main
from gapclose.core.files import read_json, write_json
from gapclose.core.logging import get_logger
from gapclose.core.results import Result
from gapclose.evaluation.run_records import read_records, record_of
from gapclose.metrics.bootstrap import Interval
from gapclose.metrics.config import GapConfig
from gapclose.metrics.status import UNFINISHED, beyond, within
from gapclose.training.context import TrainingSettings
from gapclose.training.early_stopping import check_guards, triggered

logger = get_logger(__name__)

FALLING = 0.1
"""an epoch counts as falling if it lowers the excess loss by more than this share"""
NEARLY_DONE = 0.1
"""share of the base model's excess loss below which a training counts as finished"""


class EpochRecords:
    """The measured epochs of the run in ``directory``; rounds and epochs count from 1.

    Epochs count on through the rounds. All processes must call a method together, except
    :meth:`read` and :meth:`stop`. They get the main process's result, because another node may not
    see recent files yet.
    """

    def __init__(self, directory: Path, config: TrainingSettings) -> None:
        self.directory, self.config = directory, config

    def read(self, number: int) -> list[dict[str, Any]]:
        """Return the records of a round's measured epochs, in order, as this process sees them."""
        length = self.config.train.epochs
        found = [r for r in read_records(self.directory) if r["stage"].startswith("epoch-")]
        return sorted((r for r in found if length * (number - 1) < r["epoch"] <= length * number), key=lambda r: r["epoch"])

    def records(self, number: int) -> list[dict[str, Any]]:
        """Return the same records as the main process sees them."""
        return run_on_main(lambda: self.read(number))

    def best(self, rounds: Iterable[int], *, shifted: bool = False) -> dict[str, Any]:
        """Return the record of the best epoch of these rounds.

        Args:
            shifted: compare epochs as ``gap.choose: shifted`` does.

        Raises:
            ValueError: when they have no measured epoch.
        """
        gap = replace(self.config.gap, choose="shifted") if shifted else self.config.gap

        def choose() -> dict[str, Any]:
            among = [r for number in rounds for r in self.read(number)]
            epoch = best_epoch(among, gap, self.config.guards.silent)
            return next(r for r in among if r["epoch"] == epoch)

        return run_on_main(choose)

    def unimproved(self, rounds: Iterable[int]) -> Unimproved | None:
        """Explain why the base model is preferred to every epoch of these rounds; None if one is
        better."""

        def judge() -> Unimproved | None:
            base, among = record_of(self.directory, "base/val"), [r for number in rounds for r in self.read(number)]
            assert base is not None
            return unimproved(among, self.config.gap, self.config.guards.silent, base)

        return run_on_main(judge)

    def guarded(self, record: dict[str, Any]) -> dict[str, Any]:
        """Add the guards' objections to the record of an epoch; none for a control of training.

        A first round on labels alone may over-reject: the operating point comes with the readings
        of the next.
        """
        if self.config.targets.control != "none":
            return record | {"objections": {}}
        base = run_on_main(lambda: record_of(self.directory, "base/val"))
        assert base is not None
        objections = check_guards(record, base, self.config.gap, self.config.guards)
        if self.config.targets.first == "labels" and record["round"] == 1:
            objections.pop("over-rejection", None)
        return record | {"objections": objections}

    def consistency(self, number: int, epoch: int, excess: Interval, base: float, constant: float) -> dict[str, Any]:
        """Return the consistency loss on val above its floor, for the record of an epoch.

        Args:
            excess: mean over the gap items in nats (:func:`gapclose.training.targets.excess_loss`).
            base: the same of the base model.
            constant: the same of a model that cannot tell items apart
                (:func:`gapclose.training.targets.constant_loss`).

        Returns:
            ``excess``, ``base``, ``constant``, and ``falling``: whether it is more than :data:`FALLING` below the
            epoch before. The first epoch of a run is compared with the base model; that of a later
            round is not falling, because its targets are new.
        """
        earlier = [r for r in self.records(number) if r["epoch"] < epoch and r.get("consistency")]
        before = earlier[-1]["consistency"]["excess"]["value"] if earlier else base if number == 1 else 0.0
        return {"excess": excess.to_dict(), "base": base, "constant": constant, "falling": bool(excess.value < (1 - FALLING) * before)}

    def finished(self, number: int, epoch: int | None = None) -> bool:
        """Return whether a round has ended: by its last epoch, a guard, or ``train.patience``.

        Args:
            epoch: look at no later one, whose record may be of a training that was interrupted.
        """
        return run_on_main(lambda: self._complete(number, epoch) or bool(self._fired(number)))

    def unfinished(self, rounds: Iterable[int]) -> str | None:
        """Explain that training ended at its last epoch although its loss on val was still falling.

        None if a guard or ``train.patience`` ended it, or if the loss is below :data:`NEARLY_DONE`
        of the base model's.
        """

        def judge() -> str | None:
            records = [of for of in (self.read(number) for number in rounds) if of][-1]
            last = records[-1]
            loss = last.get("consistency")
            if len(records) < self.config.train.epochs or not loss or not loss["falling"]:
                return None
            if loss["excess"]["value"] <= NEARLY_DONE * loss["base"]:
                return None
            return (
                f"after epoch {last['epoch']} the consistency loss on val is {loss['excess']['value']:.3f} nats above its floor (base model: "
                f"{loss['base']:.3f}) and was still falling; train again with more train.epochs, in another run_dir"
            )

        return run_on_main(judge)

    def triggered(self, number: int) -> dict[str, str]:
        """Return the guards that end a round, with their reasons."""
        return run_on_main(lambda: self._fired(number))

    def stopped(self) -> dict[str, str]:
        """Return what ended a round early, including guards that have been turned off since."""

        def first() -> dict[str, str]:
            for number in range(1, self.config.targets.rounds + 1):
                if len(self.read(number)) < self.config.train.epochs:
                    if found := self._fired(number) or self._at_a_step(number):
                        return found
                    if not self._complete(number):
                        return {}
            return {}

        return run_on_main(first)

    def stop(self, number: int, reason: str) -> None:
        """Store that a non-finite loss ended a round between two measurements. Main process
        only."""
        write_json(self.directory / "stopped.json", {"round": number, "loss": reason})

    def _complete(self, number: int, epoch: int | None = None) -> bool:
        """Whether a round has all its epochs, or ``train.patience`` ended it."""
        records, patience = self.read(number), self.config.train.patience
        records = [r for r in records if epoch is None or r["epoch"] <= epoch]
        if len(records) >= self.config.train.epochs:
            return True
        if patience is None or not records or self.config.targets.control != "none":
            return False
        shifted = _by_shift(records, self.config.gap)
        by_loss = all(r.get("consistency") for r in records)
        worth = [-r["consistency"]["excess"]["value"] if by_loss else figure(r, shifted=shifted) for r in records]
        return len(records) - 1 - worth.index(max(worth)) >= patience

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
    """Return the epoch with the highest balanced action on val that respects budget and guards.

    The budget limits the drop of standard accuracy. With ``gap.choose: shifted`` (and alarm
    concepts) epochs are compared by the accuracy on the option after the best shift, which keeps to
    the budget by itself. Candidates are, in this order:

    - epochs without objections whose drop is within the budget as estimated,
    - epochs without objections whose drop is not :func:`~gapclose.metrics.status.beyond` it,
    - epochs whose drop is not beyond it, despite objections,
    - the epoch with the smallest drop, with a warning.

    Epochs in the states collapsed and lost are left out unless all epochs are. The earliest of
    equal epochs is taken.

    Args:
        epochs: their records on val. off: guards whose objections do not count.
        base: the base model's record on val, a candidate as epoch 0. If given, only epochs without
            objections, neither collapsed nor lost, compete with it.

    Returns:
        The number of the epoch; 0 for the base model, when no such epoch is better.

    Raises:
        ValueError: when ``epochs`` is empty.
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
    logger.warning("every epoch loses more standard accuracy than the budget; keeping the one that loses least")
    return min(after, key=lambda r: (drop[r["epoch"]].value, r["epoch"]))["epoch"]


def state_at_end(record: Mapping[str, Any], unfinished: str | None) -> str:
    """Return the state of a finished run, given its record on test."""
    return "unfinished" if unfinished and record["state"] in UNFINISHED else record["state"]


def _by_shift(records: Sequence[Mapping[str, Any]], config: GapConfig) -> bool:
    return config.choose == "shifted" and all(r["shifted"] for r in records)


def figure(record: Mapping[str, Any], *, shifted: bool) -> float:
    """Return the figure that epochs are compared by; the base model, without a shift, is used
    unshifted."""
    if not shifted:
        return record["action"]["balanced"]["value"]
    return record["shifted"]["option_balanced"] if record.get("shifted") else record["action"]["option_balanced"]["value"]


def unimproved(epochs: Sequence[Mapping[str, Any]], config: GapConfig, off: Sequence[str], base: Mapping[str, Any]) -> Unimproved | None:
    """Explain why the base model is preferred to every epoch; None if one is better."""
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
