"""The stages of a run. Each stage continues from the results that are already in the run directory.

    items -> observe -> read -> compare -> align -> observe again -> export

Every process of a launch executes every stage. Only the main process writes files, except shards of
observations and of the hidden-state cache.
"""

from __future__ import annotations

from dataclasses import replace

from peft import PeftModel

from gapclose.core.distributed import run_on_main
from gapclose.core.settings import AUTO
from gapclose.evaluation.run_records import summarise
from gapclose.evaluation.run_result import RunResult, load_run
from gapclose.pipeline.align_stage import AlignStage
from gapclose.pipeline.auto_settings import follow_recipe
from gapclose.pipeline.config import Config
from gapclose.pipeline.context import RunContext
from gapclose.pipeline.items import Given
from gapclose.report.html import write_page


def run_measure(config: Config, given: Given | None = None) -> RunResult:
    """Measure the gap of the base model on test with all configured controls, without training."""
    run = RunContext(config, closing=False, given=given)
    run.track()
    run.fit_probes()
    run.measure_base(["test"])
    run.examine(thorough=True)
    run.weights.clear()
    summary = run_on_main(lambda: summarise(run.directory))
    run.on_main(lambda: write_page(run.directory))
    run.on_main(lambda: run.trackers.finish(summary, None))
    return run_on_main(lambda: load_run(run.directory))


def run_close(config: Config, given: Given | None = None) -> RunResult:
    """Measure, decide on val whether to train, train, measure again and export.

    Val is also measured after every epoch.
    """
    run = RunContext(config, closing=True, given=given)
    try:
        return _close(run)
    except BaseException:
        if run.in_memory and isinstance(run.loaded.model, PeftModel):
            run.loaded.model = run.loaded.model.unload()  # remove the adapters: the same call continues from the run directory
        raise


def _close(run: RunContext) -> RunResult:
    may_change = run.config.recipe == AUTO
    if not may_change:
        run.track()
    run.fit_probes()
    run.measure_base(["val"])
    run.gate()
    follow_recipe(run.config, run.directory)
    if may_change:
        run.track()  # only now: trackers show the settings, and send what was measured before
    training = AlignStage(run)
    training.refuse_unproven()
    run.measure_base(["test"])
    run.examine(thorough=False)
    run.weights.clear()  # only controls with random weights need the copy
    run.on_main(lambda: write_page(run.directory))
    training.train(run.measured["val"])
    training.finish(run.measured["test"])
    if run.in_memory:
        run.loaded.model.to("cpu")
    return replace(run_on_main(lambda: load_run(run.directory)), model=run.loaded.model)
