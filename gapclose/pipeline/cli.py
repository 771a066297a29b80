"""The command ``gapclose``: validate, measure, close, report, export, monitor, serve, ask, wandb-report."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gapclose.core.logging import get_logger
from gapclose.pipeline.command_arguments import (
    ask_arguments,
    monitor_arguments,
    report_arguments,
    serve_arguments,
    wandb_report_arguments,
)
from gapclose.pipeline.error_messages import guarded

if TYPE_CHECKING:
    from gapclose.pipeline.config import Config

logger = get_logger(__name__)

USAGE = """\
usage: gapclose COMMAND [--config FILE] [--any.key value ...]

  validate --config FILE    check configuration, items, media and options; print what is there and what it takes; load no weights
  measure  --config FILE    probe the base model, measure its gap on test clips, and try every control (measurement.json)
  close    --config FILE    measure, train, measure again after every epoch and at the end, export
  export   --config FILE    write and verify the exports of a finished run again, e.g. with --export.merged true or --export.push OWNER/NAME
  report   RUN [--json]     show what a run measured, as tables or as one JSON object, and write RUN/report.html
  report   RUN RUN ...      compare runs, a row each; also directories of `gapclose ask`; --json gives a list
           --html FILE      write the page (of one run, or the comparison) to FILE
           --all            print every inference-time method at every budget, not the best setting of each
  monitor  RUN --items FILE flag questions whose premise seems to be false, by the frozen probe of a run; `gapclose monitor --help`
  serve    RUN              answer chats over HTTP as OpenAI does, with the reading beside every answer; `gapclose serve --help`
  ask      --model PROVIDER/MODEL --items DIR --out DIR   the answers of a model behind an API, without a gap; `gapclose ask --help`
  wandb-report --project P  save a report of Weights & Biases over a project's runs; `gapclose wandb-report --help`

`gapclose close --help` lists every key of the configuration. On several GPUs:
  accelerate launch --config_file launch/ddp.yaml recipes/close.py --config FILE
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 2 after an error that a user can fix."""
    from gapclose.core.logging import configure_logging, spell_out

    spell_out()
    configure_logging("info")  # until the configuration names a level
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] in ("--version", "version"):
        from gapclose.core.version import __version__

        print(f"gapclose {__version__}")
        return 0
    command, rest = arguments[0], arguments[1:]
    commands = {
        "validate": validate,
        "measure": measure,
        "close": close,
        "report": report,
        "export": export,
        "monitor": monitor,
        "serve": serve,
        "ask": ask,
        "wandb-report": wandb_report,
    }
    if command not in commands:
        near = difflib.get_close_matches(command, commands, n=1)
        print(f"unknown command {command!r}{f'; did you mean {near[0]!r}?' if near else ''}\n\n{USAGE}", file=sys.stderr)
        return 2
    return guarded(lambda: commands[command](rest))


def _configured(command: str, arguments: Sequence[str]) -> Config:
    """The configuration of a command, whose ``log_level`` holds from here on.

    Raises:
        ValueError: naming everything that is wrong with it.
    """
    from gapclose.core.logging import configure_logging
    from gapclose.pipeline.config import parse_config

    config = parse_config(arguments, prog=f"gapclose {command}", starting=True)
    configure_logging(config.log_level)
    if not any(word.partition("=")[0] == "--config" for word in arguments):
        defaults = type(config)()
        demo = (config.data.path, config.model.path) == (defaults.data.path, defaults.model.path)
        what = (
            f"the digits demo that gapclose ships (its generated items and its tiny model), in {config.run_dir}; --config FILE for your own"
        )
        logger.info(
            f"no --config: {what}"
            if demo
            else f"no --config: data.path {config.data.path}, model.path {config.model.path}, in {config.run_dir}"
        )
    return config


def validate(arguments: Sequence[str]) -> None:
    """Check everything that can be checked before a model loads.

    The model is outlined even if the items have faults.

    Raises:
        ValueError: naming all faults, after everything that can be shown was printed.
    """
    config = _configured("validate", arguments)

    from gapclose.data.prompt_templates import apply_prompt
    from gapclose.evaluation.controls.text_leak import text_leak
    from gapclose.export.run import check_checkpoint
    from gapclose.models.architecture import why_absent
    from gapclose.models.config import SHIPPED
    from gapclose.pipeline.items import is_for_closing, prepare_plain
    from gapclose.pipeline.model_summary import print_outline
    from gapclose.pipeline.validate import (
        missing_on_this_machine,
        no_objection_kept,
        print_histogram,
        print_leak,
        slow_precision,
        unnamed,
        warnings_for,
    )
    from gapclose.training.tracking import refuse_missing_trackers, tracking_doubts

    closing, absent, items, plain, faults = True, why_absent(config.model), None, None, list[str]()
    shipped = [f"{key} {path}" for key, path in (("data.path", config.data.path), ("model.path", config.model.path)) if path in SHIPPED]
    if shipped:
        print(f"shipped with gapclose: {' and '.join(shipped)}")
    try:
        refuse_missing_trackers(config)
    except ValueError as error:
        faults.append(str(error))
    try:
        closing = is_for_closing(config)
        plain = prepare_plain(config, closing=closing, without_model=absent is not None)
        items = apply_prompt(plain, config.prompts.asked, config.prompts)
        print_histogram(items)
    except ValueError as error:
        faults.append(str(error))
    try:
        print_outline(config, items, absent=absent)
    except ValueError as error:
        faults += [] if any(str(error) in fault for fault in faults) else [str(error)]
    try:
        if closing and absent is None:
            check_checkpoint(config)
    except ValueError as error:
        faults.append(str(error))
    if faults:
        raise ValueError("\n".join(faults))
    assert items is not None and plain is not None
    for line in [
        *missing_on_this_machine(config),
        *slow_precision(config),
        *tracking_doubts(config),
        *warnings_for(items),
        *no_objection_kept(plain),
        *print_leak(text_leak(items, folds=config.probe.folds)),
    ]:
        print(f"warning: {line}")
    for line in unnamed(items, plain, config):
        print(line)
    unseen = f"; options and prompts are not checked without the processor of {config.model.path}" if absent else ""
    print("no problems found" + ("" if closing else "; without train items this set is for `gapclose measure` alone") + unseen)


def measure(arguments: Sequence[str]) -> None:
    """Measure the base model."""
    config = _configured("measure", arguments)

    from gapclose.pipeline.run import run_measure

    run_measure(config)
    _show(Path(config.run_dir))


def close(arguments: Sequence[str]) -> None:
    """Measure, train, measure again and export."""
    config = _configured("close", arguments)

    from gapclose.pipeline.run import run_close

    run_close(config)
    _show(Path(config.run_dir))


def _show(run_dir: Path) -> None:
    """Print the report of a finished run from the main process."""
    from gapclose.core.logging import is_main
    from gapclose.report.console import print_report

    if is_main():
        print_report(run_dir)
        print(f"page: {run_dir / 'report.html'}")


def export(arguments: Sequence[str]) -> None:
    """Write the exports of a finished run again."""
    config = _configured("export", arguments)

    from gapclose.core.files import near_sibling
    from gapclose.evaluation.run_records import summarise
    from gapclose.export.run import check_export, export_run
    from gapclose.pipeline.auto_settings import take_over
    from gapclose.pipeline.config import refuse_other_run
    from gapclose.pipeline.items import run_items
    from gapclose.pipeline.memory_estimate import refuse_small_disk_for_exports
    from gapclose.pipeline.run_dir import lock_run_dir
    from gapclose.training.lora import load_adapter

    directory = Path(config.run_dir)
    if not (directory / "config.yaml").is_file():
        near = "" if directory.is_dir() else near_sibling(directory)
        raise ValueError(f"{directory}: no run there (no config.yaml); run `gapclose close` first{near}")
    refuse_other_run(config, directory / "config.yaml")
    take_over(config)
    check_export(config)
    summary = summarise(directory)
    if summary["adapted"] is None:
        raise ValueError(
            f"{directory}: the run is not finished (no adapted/test in gap.jsonl); run `gapclose close` with its configuration first"
        )
    if summary["unimproved"] and not config.export.unimproved:
        raise ValueError(f"{directory}: {summary['unimproved']['why']}; --export.unimproved true exports it all the same")
    lock = lock_run_dir(directory)
    loaded = load_adapter(config.model, directory / "checkpoints" / f"epoch-{summary['epoch']}")
    refuse_small_disk_for_exports(loaded, config)
    export_run(directory, config, loaded, summary, run_items(config))
    if lock is not None:
        lock.release()


def monitor(arguments: Sequence[str]) -> None:
    """Flag questions by the monitor of a run."""
    args = monitor_arguments(arguments)  # before imports that take seconds

    from gapclose.pipeline.monitor_command import monitor_questions

    monitor_questions(args)


def serve(arguments: Sequence[str]) -> None:
    """Serve the model of a run over HTTP."""
    args = serve_arguments(arguments)  # before imports that take seconds

    from gapclose.pipeline.serve import serve as serve_run

    serve_run(args)


def ask(arguments: Sequence[str]) -> None:
    """Judge the answers of a model behind an API."""
    args = ask_arguments(arguments)  # before imports that take seconds

    from gapclose.pipeline.ask import ask as ask_model

    ask_model(args)


def wandb_report(arguments: Sequence[str]) -> None:
    """Save a report of Weights & Biases, or write its specification."""
    args = wandb_report_arguments(arguments)

    from gapclose.training.trackers.wandb_report import build, save_report, write_report

    if args.out is None:
        print(f"report: {save_report(args.project, args.entity, args.runs, by_group=args.by_group, title=args.title)}")
        return
    found = build(args.project, "", args.runs, by_group=args.by_group, title=args.title)
    try:
        write_report(found, args.out)
    except OSError as error:
        raise ValueError(f"--out {args.out} cannot be written ({error.strerror}); name another place") from error
    print(f"specification: {args.out}; nothing was sent")


def report(arguments: Sequence[str]) -> None:
    """Show one run, or compare several. Raises: ValueError for directories that do not exist."""
    args = report_arguments(arguments)
    runs, as_json, html = args.runs, args.json, args.html
    if absent := [run for run in runs if not run.is_dir()]:
        from gapclose.core.files import near_sibling

        near = "".join(dict.fromkeys(near_sibling(run) for run in absent))
        raise ValueError(f"no such run directory: {', '.join(map(str, absent))}; name what `run_dir` was{near}")
    if len(runs) > 1:
        from gapclose.report.compare_runs import compare, print_comparison, write_comparison

        found = compare(runs)
        if as_json:
            print(json.dumps(found, indent=1))
        else:
            print_comparison(found)
        _write(html, lambda path: write_comparison(found, path), quiet=as_json)
        return
    from gapclose.evaluation.run_records import summarise
    from gapclose.report.asked_models import is_asked
    from gapclose.report.console import print_report

    if is_asked(runs[0]):
        raise ValueError(f"{runs[0]}: answers of `gapclose ask`, and no run; name a run beside it: `gapclose report RUN {runs[0]}`")
    if as_json:
        print(json.dumps(summarise(runs[0]), indent=1))
    else:
        print_report(runs[0], everything=args.all)
        html = html or runs[0] / "report.html"

    def write(path: Path) -> None:
        from gapclose.report.html import write_page  # figures take a second to import

        write_page(runs[0], path)

    _write(html, write, quiet=as_json)


def _write(page: Path | None, write: Callable[[Path], object], *, quiet: bool) -> None:
    """Write ``page`` unless it is None, and print its path unless ``quiet``.

    Raises:
        ValueError: when the file cannot be written.
    """
    if page is None:
        return
    try:
        write(page)
    except OSError as error:
        raise ValueError(f"{page}: the page cannot be written ({error.strerror}); name another place with --html FILE") from error
    if not quiet:
        print(f"page: {page}")


if __name__ == "__main__":
    sys.exit(main())
