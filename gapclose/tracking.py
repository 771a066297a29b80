"""Trackers mirror what is written to ``gap.jsonl``; the file stays the record of truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import transformers

from gapclose.config import Config
from gapclose.files import read_json, write_json, writing
from gapclose.progress import is_main, say


def scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a record under slash-separated names; an interval gives its value, and its ends as /lower and /upper."""
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
    """Takes everything and keeps nothing, so that no caller has to ask whether tracking is on."""

    def record(self, record: Mapping[str, Any]) -> None: ...

    def losses(self, step: int, values: Mapping[str, float]) -> None: ...

    def finish(self, summary: Mapping[str, Any], adapter: Path | None) -> None: ...


class WandbTracker(NoTracker):
    """Weights & Biases: the configuration, ``gap/*`` per measurement, losses (and rewards, KL) per step, the final table, the adapter as an artifact.

    The run id is kept in the run directory, so that a resumed run goes on in the same place.
    """

    def __init__(self, config: Config, settings: dict[str, Any]) -> None:
        import wandb

        directory = Path(config.run_dir)
        path = directory / "wandb.json"
        known = read_json(path)["id"] if path.is_file() else None
        with writing(directory / "wandb"):
            self.run = wandb.init(
                project=config.wandb.project, name=config.wandb.name or directory.name, dir=str(directory), config=settings,
                id=known, resume="allow" if known else None,
            )  # fmt: skip
        write_json(path, {"id": self.run.id, "project": config.wandb.project})
        self.run.define_metric("epoch")
        self.run.define_metric("gap/*", step_metric="epoch")
        self.run.define_metric("step")
        for name in MIRRORED:
            self.run.define_metric(f"{name}*", step_metric="step")

    def record(self, record: Mapping[str, Any]) -> None:
        """Log the numbers of one measurement as ``gap/SPLIT/...``."""
        split = record["stage"].split("/")[-1]
        body = {k: v for k, v in record.items() if k not in ("stage", "epoch", "seed")}
        self.run.log({**{f"gap/{split}/{n}": v for n, v in scalars(body)}, f"gap/{split}/state": record["state"], "epoch": record["epoch"]})

    def losses(self, step: int, values: Mapping[str, float]) -> None:
        """Log training figures of one optimiser step."""
        self.run.log({**values, "step": step})

    def finish(self, summary: Mapping[str, Any], adapter: Path | None) -> None:
        """Log the final table and the adapter, and close the run."""
        import wandb

        rows: Any = [[name, value] for name, value in scalars(summary)]
        self.run.log({"final": wandb.Table(columns=["figure", "value"], data=rows)})
        self.run.summary.update({f"final/{name}": value for name, value in rows} | {"final/state": summary["state"]})
        if adapter is not None:
            artifact = wandb.Artifact(f"{Path(adapter).parent.name}-adapter", type="model", metadata={"state": summary["state"]})
            artifact.add_dir(str(adapter))
            self.run.log_artifact(artifact)
        self.run.finish()


def make_tracker(config: Config, settings: dict[str, Any]) -> NoTracker:
    """The tracker that ``config.tracking`` names, on the main process; nothing elsewhere."""
    return WandbTracker(config, settings) if config.tracking == "wandb" and is_main() else NoTracker()


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
"""beginnings of the names that are mirrored of what a trainer logs"""
PRINTED = ("loss", "kl", "rewards/accuracies", "rewards/margins")
"""... and printed, with the mean reward"""


class LossLines(transformers.TrainerCallback):
    """Prints and mirrors the losses that the trainer logs, and the rewards and the KL where it has them."""

    def __init__(self, tracker: NoTracker, number: int = 1) -> None:
        """``number``: of the round of targets, whose steps follow those of the rounds before it."""
        self.tracker, self.number = tracker, number

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        values = {k: float(v) for k, v in (logs or {}).items() if k.startswith(MIRRORED) and v is not None}
        if "loss" in values:
            shown = {k: v for k, v in values.items() if k.startswith(PRINTED) or k == "reward"}
            of_round = f"round {self.number}, " if self.number > 1 else ""
            say(
                f"{of_round}step {state.global_step}/{state.max_steps}: "
                + ", ".join(f"{k.removeprefix('loss/')} {v:.4f}" for k, v in shown.items())
            )
            self.tracker.losses((self.number - 1) * state.max_steps + state.global_step, values)
