"""Callbacks of the trainer: progress bar, order of an epoch, evaluation after every epoch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

from gapclose.core.distributed import run_on_all_ranks, run_on_main
from gapclose.core.files import flush
from gapclose.core.tensor_files import seal
from gapclose.training.sampler import MixedSampler


class ProgressCallback(transformers.ProgressCallback):
    """The trainer's progress bar without its printed losses."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None: ...


class SetSamplerEpoch(transformers.TrainerCallback):
    """Set the sampler's epoch at the start of every epoch.

    When several processes resume within an epoch, transformers 5.23 and accelerate 1.15 do not set
    it (``SkipBatchSampler`` around ``BatchSamplerShard``), so the rest of the epoch would have the
    order of the first. Remove when they do.
    """

    def __init__(self, sampler: MixedSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sampler.set_epoch(state.global_step // self.sampler.steps)


class EvaluateAfterEpoch(transformers.TrainerCallback):
    """Measure after every epoch, then save a checkpoint.

    An interrupted measurement is repeated from the checkpoint before it. Training stops when
    ``measure`` returns True.
    """

    def __init__(self, measure: Callable[[int], bool | None]) -> None:
        self.measure = measure

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Prevent a checkpoint between the last step of an epoch and its measurement, because
        resuming from it would leave the epoch unmeasured."""
        if float(state.epoch).is_integer():
            control.should_save = False
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self.measure(round(state.epoch)):
            control.should_training_stop = True
        control.should_save = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        run_on_all_ranks(lambda: flush(folder))  # by every process: each node has its own files
        run_on_main(lambda: seal(folder, epoch=state.epoch))


def running_trainer() -> transformers.Trainer | None:
    """Return the trainer that is calling: callbacks are not given it (transformers 5.23).

    It is the nearest one that is ``self`` of a function on the stack. Remove when callbacks get it.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if isinstance(owner := frame.f_locals.get("self"), transformers.Trainer):
            return owner
        frame = frame.f_back
    return None
