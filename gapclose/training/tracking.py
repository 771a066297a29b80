"""Trackers mirror the records of ``gap.jsonl``; the file remains authoritative."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import transformers

from gapclose.core.files import read_json, write_json
from gapclose.core.logging import get_logger, is_main
from gapclose.evaluation.run_records import read_records
from gapclose.training.context import TrainingSettings
from gapclose.training.wandb_service import (
    FINISH_SECONDS,
    START_SECONDS,
    artifact_name,
    in_one_line,
    mode,
    rows_written,
    run_name,
    service,
    why_unreached,
)

logger = get_logger(__name__)

RECORD = "gap/record"
"""log key of a row's record: its stage and a hash of its content"""


def scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a record under slash-separated names; an interval's ends are /lower
    and /upper."""
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            if set(value) == {"value", "lower", "upper"}:
                yield from (
                    (n, v)
                    for n, v in ((name, value["value"]), (f"{name}/lower", value["lower"]), (f"{name}/upper", value["upper"]))
                    if v is not None
                )
            else:
                yield from scalars(value, f"{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


class NoTracker:
    """A tracker that does nothing, so that callers need not check whether tracking is on."""

    def record(self, record: Mapping[str, Any]) -> None: ...

    def losses(self, step: int, values: Mapping[str, float]) -> None: ...

    def finish(self, summary: Mapping[str, Any], adapter: Path | None) -> None: ...


class WandbTracker(NoTracker):
    """Mirrors a run to Weights & Biases.

    It sends the configuration, ``gap/*`` per measurement, losses (and rewards, KL) per step, the
    final table, and the adapter as an artifact. Errors here never end a run; each different error
    gives one warning. ``wandb.json`` in the run directory stores the run's id and what was sent:
    records by stage with a hash of their content, the last step of the losses, and hashes of the
    final table and the adapter. Unsent records of ``gap.jsonl`` are sent at the next record or the
    next start. Unsent losses wait in memory. The client writes with a delay, so after an unclean
    end (``open`` in ``wandb.json``) the run's own files determine what was sent.
    """

    def __init__(self, config: TrainingSettings, settings: dict[str, Any]) -> None:
        self.config, self.settings, self.directory = config, settings, Path(config.run_dir)
        self.path, self.run, self.known = self.directory / "wandb.json", None, dict[str, Any]()
        self.waiting, self.warned = list[dict[str, float]](), set[str]()
        self._safely(self._begin)

    def record(self, record: Mapping[str, Any]) -> None:
        """Log the numbers of one measurement as ``gap/SPLIT/...``, after any unsent records."""
        self._safely(lambda: self._catch_up(record))

    def losses(self, step: int, values: Mapping[str, float]) -> None:
        """Log training figures of one optimiser step, unless an earlier start did."""
        if step > self.known.get("step", 0):
            self.waiting.append({**values, "step": step})
        if self.run is not None:
            self._safely(self._send_losses)

    def finish(self, summary: Mapping[str, Any], adapter: Path | None) -> None:
        """Log the final table and the adapter, and close the run."""
        self._safely(lambda: self._finish(summary, adapter))
        if self.run is not None:
            self._safely(self._close)
        if self.waiting:
            logger.warning(
                f"  tracking: the losses of {len(self.waiting)} steps were not sent; they are in the checkpoints' trainer_state.json"
            )

    def _safely(self, job: Callable[[], None]) -> None:
        """Run ``job`` and turn any error (service, client, disk, network) into a warning;
        tracking must not end a run."""
        try:
            job()
        except Exception as error:
            reason = in_one_line(error)
            if reason not in self.warned:
                self.warned.add(reason)
                logger.warning(
                    f"  tracking: {reason}; the run goes on. gap.jsonl keeps every record, and those that are missing there are sent at "
                    "the next record or the next start"
                )

    def _begin(self) -> None:
        """Read what was sent and open the run; a completely sent run is opened only if there are
        new records."""
        known = read_json(self.path) if self.path.is_file() else {}
        self.known = known if known.get("project") == self.config.wandb.project else {}
        if self.known.get("open"):
            self._recover()
        if "final" not in self.known:
            self._catch_up()

    def _recover(self) -> None:
        """Count as sent what reached the files of a killed run."""
        rows = rows_written(self.directory, self.known["id"])
        self.known["records"] = dict(row[RECORD].rsplit("#", 1) for row in rows if RECORD in row)
        self.known["step"] = max((row["step"] for row in rows if "step" in row), default=0)
        self.known.pop("final", None)
        if mode() == "online":
            logger.info(
                f"tracking: the last start of this run was cut off. `wandb sync {self.directory / 'wandb'}/*-{self.known['id']}` uploads what it had "
                "written and not sent"
            )

    def _opened(self) -> Any:
        """Return the run, and open it first if necessary.

        Raises:
            ConnectionError: when the service cannot be reached.
        """
        if self.run is not None:
            return self.run
        if reason := why_unreached():
            raise ConnectionError(reason)
        wandb, known = service(), self.known.get("id")
        self.run = wandb.init(
            project=self.config.wandb.project, name=self.config.wandb.name or run_name(self.directory), dir=str(self.directory),
            config=self.settings, id=known, resume="allow" if known else None,
            settings=wandb.Settings(init_timeout=START_SECONDS, finish_timeout=FINISH_SECONDS, finish_timeout_raises=True),
        )  # fmt: skip
        self._keep(id=self.run.id, project=self.config.wandb.project, open=True)
        self.run.define_metric("epoch")
        self.run.define_metric("gap/*", step_metric="epoch")
        self.run.define_metric("step")
        for name in MIRRORED:
            self.run.define_metric(f"{name}*", step_metric="step")
        return self.run

    def _keep(self, **news: Any) -> None:
        """Store what was sent, for later processes."""
        self.known |= news
        write_json(self.path, self.known)

    def _catch_up(self, record: Mapping[str, Any] | None = None) -> None:
        """Send new and changed records of ``gap.jsonl`` and ``record``; a fresh run is opened
        even without any."""
        records = {r["stage"]: r for r in [*read_records(self.directory), *([record] if record else [])]}
        digests = {stage: _digest(r) for stage, r in records.items()}
        missing = [stage for stage, digest in digests.items() if self.known.get("records", {}).get(stage) != digest]
        if not missing and self.known.get("final"):
            return
        run = self._opened()
        for stage in missing:
            split, body = stage.split("/")[-1], {k: v for k, v in records[stage].items() if k not in ("stage", "epoch", "seed")}
            figures = {f"gap/{split}/{n}": v for n, v in scalars(body)}
            of_record = {
                f"gap/{split}/state": records[stage]["state"],
                "epoch": records[stage]["epoch"],
                RECORD: f"{stage}#{digests[stage]}",
            }
            run.log(figures | of_record)
            self._keep(records=self.known.get("records", {}) | {stage: digests[stage]})
        self._send_losses()

    def _send_losses(self) -> None:
        while self.waiting:
            self._opened().log(self.waiting[0])
            self._keep(step=int(self.waiting.pop(0)["step"]))

    def _finish(self, summary: Mapping[str, Any], adapter: Path | None) -> None:
        wandb = service()
        self._catch_up()
        rows: Any = [[name, value] for name, value in scalars(summary)]
        if (final := _digest([rows, summary["state"]])) != self.known.get("final"):
            self._opened().log({"final": wandb.Table(columns=["figure", "value"], data=rows)})
            self._opened().summary.update({f"final/{name}": value for name, value in rows} | {"final/state": summary["state"]})
            self._keep(final=final)
        if adapter is not None:
            artifact = wandb.Artifact(artifact_name(self.directory), type="model", metadata={"state": summary["state"]})
            artifact.add_dir(str(adapter))
            if artifact.digest != self.known.get("adapter"):
                self._opened().log_artifact(artifact)
                self._keep(adapter=artifact.digest)

    def _close(self) -> None:
        assert self.run is not None
        try:
            self.run.finish()
            self._keep(open=False)
        except TimeoutError as error:
            place = Path(self.run.dir).parent
            raise TimeoutError(f"not all was uploaded within {FINISH_SECONDS:g} s; `wandb sync {place}` sends the rest") from error


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def make_tracker(config: TrainingSettings, settings: dict[str, Any]) -> NoTracker:
    """Return the tracker that ``config.tracking`` names, on the main process; elsewhere, or if
    WANDB_MODE disables it, one that does nothing."""
    if config.tracking != "wandb" or not is_main():
        return NoTracker()
    try:
        if mode() == "disabled":
            logger.info("tracking is wandb, and WANDB_MODE is disabled: nothing is sent")
            return NoTracker()
    except Exception as error:  # an error of wandb's settings, already reported by tracking_doubts
        logger.warning(f"  tracking: {in_one_line(error)}; nothing is sent")
        return NoTracker()
    return WandbTracker(config, settings)


def refuse_missing_tracker(config: TrainingSettings) -> None:
    """Look whether the client of the configured tracker is installed; unlike a service that cannot be reached, that never mends itself.

    Raises:
        MissingPackage: when it is not.
    """
    if config.tracking == "wandb":
        service()


def tracking_doubts(config: TrainingSettings) -> list[str]:
    """Return warnings for a tracker that cannot send, before anything loads; runs continue
    without it."""
    reason = why_unreached() if config.tracking == "wandb" else None
    return [f"tracking: {reason}. A run goes on without it, and sends what is missing once it can"] if reason else []


MIRRORED = (
    "loss",
    "reward",
    "kl",
    "entropy",
    "logps/",
    "completions/",
    "frac_reward_zero_std",
    "clip_ratio/",
    "learning_rate",
    "grad_norm",
)
"""prefixes of the trainer's log names that are mirrored"""
PRINTED = ("loss", "kl", "rewards/accuracies", "rewards/margins")
"""prefixes of those that are also printed, next to the mean reward"""


class LossLines(transformers.TrainerCallback):
    """Prints and mirrors the trainer's losses, rewards and KL."""

    def __init__(self, tracker: NoTracker, number: int = 1) -> None:
        """``number``: the round of targets; its steps continue those of earlier rounds."""
        self.tracker, self.number = tracker, number

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        values = {k: float(v) for k, v in (logs or {}).items() if k.startswith(MIRRORED) and v is not None}
        if "loss" in values:
            shown = {k: v for k, v in values.items() if k.startswith(PRINTED) or k == "reward"}
            of_round = f"round {self.number}, " if self.number > 1 else ""
            logger.info(
                f"{of_round}step {state.global_step}/{state.max_steps}: "
                + ", ".join(f"{k.removeprefix('loss/')} {v:.4f}" for k, v in shown.items())
            )
            self.tracker.losses((self.number - 1) * state.max_steps + state.global_step, values)
