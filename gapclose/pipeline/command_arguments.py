"""Arguments of the commands that take no configuration: report, monitor, serve, ask and wandb-report.

They are read before anything heavy is imported, so that ``--help`` and a mistyped option are quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

KEY = "GAPCLOSE_API_KEY"
"""environment variable with the bearer key of ``gapclose serve``"""


class _Parser(argparse.ArgumentParser):
    """A parser whose faults are errors like those of the configuration."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}\n{self.format_usage().rstrip()}")


def report_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Arguments of ``gapclose report``.

    Raises:
        ValueError: with the usage, when no run is named or an option is unknown; so for every command.
    """
    parser = _parser("report", "Show what a run measured and write its page, RUN/report.html; of several runs, compare them.")
    parser.add_argument("runs", type=_path, nargs="+", metavar="RUN", help="run directory; beside a run also a directory of `gapclose ask`")
    parser.add_argument("--json", action="store_true", help="print one JSON object, or a list for several runs, and write no page")
    parser.add_argument("--html", type=_path, metavar="FILE", help="write the page to FILE; of a comparison it is written only then")
    parser.add_argument("--all", action="store_true", help="print every inference-time method at every budget, not its best setting")
    return parser.parse_intermixed_args(arguments)


def monitor_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Arguments of ``gapclose monitor``.

    Raises:
        ValueError: for a run, a number or an output file that cannot be used.
    """
    parser = _parser("monitor", "Flag questions whose premise seems to be false, by the probe of a run.")
    _add_run(parser)
    parser.add_argument("--items", type=_path, required=True, help="item set (a directory), or a file with one question per line (JSON)")
    parser.add_argument("--split", help="only this split")
    parser.add_argument("--limit", type=int, help="only so many questions, the first ones (of --split), e.g. to see how long they take")
    parser.add_argument("--answers", action="store_true", help="also answer, and count where answer and reading disagree")
    parser.add_argument("--base", action="store_true", help="run the base model, not the adapted one")
    parser.add_argument(
        "--out", type=_path, help="file for the flags, .csv or .json (default: RUN/flags.csv, and with --limit N RUN/flags-first-N.csv)"
    )
    args = parser.parse_args(arguments)
    if args.out and args.out.suffix not in (".csv", ".json"):
        raise ValueError(f"--out {args.out}: write to a .csv or a .json file")
    _refuse_not_positive(args, "limit")
    _refuse_no_run(args.run)
    return args


def serve_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Arguments of ``gapclose serve``.

    Raises:
        ValueError: for a run or a limit that cannot be used.
    """
    parser = _parser(
        "serve",
        "An OpenAI-compatible endpoint for the model of a run, with the monitor's reading beside every answer.",
        epilog=f"Requests must show the bearer key in the environment variable {KEY}, where it is set.",
    )
    _add_run(parser)
    parser.add_argument("--base", action="store_true", help="serve the base model, not the adapted one")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; another than this machine's own needs a key (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8000, help="0: a free one (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=120, help="time for a request and its answer, which then ends (default: %(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=1024, help="longest answer, and the default (default: %(default)s)")
    parser.add_argument("--megabytes", type=float, default=20, help="largest request (default: %(default)s)")
    args = parser.parse_args(arguments)
    _refuse_not_positive(args, "seconds", "tokens", "megabytes")
    _refuse_no_run(args.run)
    return args


def ask_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Arguments of ``gapclose ask``.

    Raises:
        ValueError: for a number that cannot be used.
    """
    parser = _parser(
        "ask",
        "Ask a model behind an API the questions of an item set, through inspect_ai, and judge its answers.",
        epilog="Keys are read from the environment, as inspect_ai documents them for each provider.",
    )
    parser.add_argument("--model", required=True, help="PROVIDER/MODEL as inspect_ai names it, e.g. openai/gpt-4o")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--items", type=_path, metavar="DIR", help="item set, whose questions are asked as they stand there")
    asked.add_argument("--run", type=_path, metavar="RUN", help="run, whose questions are asked in its words, splits and order of options")
    parser.add_argument("--out", type=_path, required=True, metavar="DIR", help="directory for asked.json and inspect's log")
    parser.add_argument("--split", default="test", help="default: %(default)s")
    parser.add_argument("--limit", type=int, help="only so many items, the first ones, e.g. to see what they cost")
    parser.add_argument("--tokens", type=int, default=32, help="longest answer (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=4, help="requests at once (default: %(default)s)")
    parser.add_argument("--without_logprobs", action="store_true", help="for providers that refuse to give log-probabilities")
    parser.add_argument("--cache", action="store_true", help="take answers to the same requests from inspect_ai's cache")
    parser.add_argument("--price", type=float, nargs=2, metavar=("IN", "OUT"), help="dollars for a million tokens, for costs")
    args = parser.parse_args(arguments)
    _refuse_not_positive(args, "limit", "tokens", "connections")
    if args.price is not None and min(args.price) < 0:
        raise ValueError(f"--price is {args.price}; prices are at least 0")
    if args.run is not None:
        _refuse_no_run(args.run)
    return args


def wandb_report_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Arguments of ``gapclose wandb-report``.

    Raises:
        ValueError: for a name that Weights & Biases does not take.
    """
    parser = _parser(
        "wandb-report", "Save a report of Weights & Biases: headline figures per epoch over a project's runs, and their evidence."
    )
    parser.add_argument("--project", required=True, help="project, as the key wandb.project names it")
    parser.add_argument("--entity", help="owner of the project (default: WANDB_ENTITY, or the account's own)")
    parser.add_argument("--runs", nargs="+", default=[], metavar="NAME", help="names of runs (default: all of the project)")
    parser.add_argument("--by_group", action="store_true", help="draw the mean of each group, such as the seeds of a data set and model")
    parser.add_argument("--title", help="default: gapclose: PROJECT")
    parser.add_argument("--out", type=_path, metavar="FILE", help="write the report's specification as JSON, and save nothing")
    args = parser.parse_args(arguments)
    for name, most in (("project", 128), ("title", 128)):
        if (given := getattr(args, name)) is not None and not 0 < len(given) <= most:
            raise ValueError(f"--{name} has {len(given)} characters; Weights & Biases takes 1 to {most}")
    return args


def _parser(command: str, description: str, **settings: Any) -> argparse.ArgumentParser:
    return _Parser(prog=f"gapclose {command}", description=description, allow_abbrev=False, **settings)


def _path(word: str) -> Path:
    """A named file or directory; ``--html=`` would be the working directory, and ``--html=--json`` a slip."""
    if not word or word.startswith("-"):
        raise argparse.ArgumentTypeError(f"{word!r} names no file or directory")
    return Path(word)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=_path, metavar="RUN", help="run directory")


def _refuse_not_positive(args: argparse.Namespace, *names: str) -> None:
    """Refuse numbers that are not above 0. Raises: ValueError."""
    for name in names:
        if (value := getattr(args, name)) is not None and not value > 0:
            raise ValueError(f"--{name} is {value}; it must be above 0")


def _refuse_no_run(run: Path) -> None:
    """Refuse a directory that holds no run of gapclose. Raises: ValueError."""
    if (run / "config.yaml").is_file():
        return
    from gapclose.core.files import near_sibling
    from gapclose.evaluation.run_records import CALLBACK_FOLDER, CALLBACK_MARK

    if any((place / CALLBACK_MARK).is_file() for place in (run, run / CALLBACK_FOLDER)):
        raise ValueError(
            f"{run}: GapCallback measured a training there, and keeps no model; GapCallback.monitor() makes its monitor after the training, and "
            "a run of `gapclose close` or `measure` can be named here"
        )
    raise ValueError(f"{run}: no run there (no config.yaml){'' if run.is_dir() else near_sibling(run)}")
