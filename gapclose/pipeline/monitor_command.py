"""The command ``gapclose monitor``: flag the questions of a file, and judge the flags where labels are there."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gapclose.core.errors import ErrorCollector, ItemError, shown
from gapclose.core.files import near_sibling, read_json, write_text
from gapclose.core.parsing import parse_json, read_text
from gapclose.core.results import Result
from gapclose.data.item_rows import check_messages, read_options
from gapclose.data.items import Item
from gapclose.evaluation.monitor_file import MonitorFile
from gapclose.evaluation.summary_text import show
from gapclose.metrics.alarms import AlarmRates, alarm_rates
from gapclose.pipeline.config import Config
from gapclose.pipeline.items import run_items
from gapclose.pipeline.monitor import Monitor
from gapclose.pipeline.monitor_results import MonitoredAnswer, Reading
from gapclose.pipeline.run_model import load_run_model, run_config
from gapclose.report.console import print_sentence, wide_console
from gapclose.report.tables import print_table

LISTED = 20
"""questions on the console, the highest readings first"""
DEFAULTS = {"split": "test", "modality": "-", "purpose": "gap"}
KEYS = {*DEFAULTS, "id", "clip", "messages", "options", "gold", "tags", "stem"}


@dataclass(frozen=True, kw_only=True)
class Flags(Result):
    """The readings of a file of questions."""

    threshold: float
    false_alarm_rate: float
    rates: Mapping[str, AlarmRates]
    """split -> of its labelled questions"""
    questions: list[dict[str, Any]]
    """one per question: id, clip, reading, flag, concept where it is labelled, and the answer"""


def monitor_questions(args: argparse.Namespace) -> None:
    """Flag questions, print a table, and write every flag to a file.

    Args:
        args: of :func:`gapclose.pipeline.command_arguments.monitor_arguments`.

    Raises:
        ValueError: for a run or file that cannot be used.
    """
    monitor, config = Monitor.from_pretrained(args.run), run_config(args.run)
    root, items, fingerprint = read_questions(args.items, args.split, monitor.file, config)
    in_file = len(items)
    items = items[: args.limit]
    loaded = load_run_model(config, args.run, base=args.base)
    given: dict[str, Any] = {"batch_size": config.observe.batch_size, "root": root}
    messages = [i.messages for i in items]
    found: Sequence[Reading]
    if args.answers:
        length, choices = config.observe.max_new_tokens, [i.options for i in items]
        given |= {"max_new_tokens": length, "options": choices}
        found = monitor.generate(loaded.model, loaded.processor, messages, **given)
    else:
        found = monitor.check(loaded.model, loaded.processor, messages, **given)
    flags = flags_of(monitor.file, items, found, replicates=config.gap.replicates, seed=config.seed)
    print_flags(flags, items)
    chosen = monitor.file
    console, clips = wide_console(), f"{chosen.rates.items} items, {chosen.rates.clips} clips"
    print_sentence(console, f"The threshold was chosen on {chosen.split} ({clips}). {chosen.promise()}")
    if fingerprint is not None and flags.rates:
        print_sentence(console, _whose(fingerprint == _bound(args.run), chosen.split))
    if len(items) < in_file:
        print_sentence(console, f"These are the first {len(items)} of {in_file} questions (--limit).")
    write_flags(flags, args.out or args.run / ("flags.csv" if len(items) == in_file else f"flags-first-{len(items)}.csv"))


def _bound(run: Path) -> str | None:
    """The fingerprint of the run's own items."""
    path = run / "items.json"
    return read_json(path, "fingerprint")["fingerprint"] if path.is_file() else None


def _whose(own: bool, chosen_on: str) -> str:
    """Say which rates are those of new clips; ``own``: whether the questions are the run's own items."""
    if own:
        return f"These are the run's own items: fit made the probe and {chosen_on} its threshold, so only the rates of test are those of new clips."
    return (
        "These are not the run's own items, or they have other labels. Whether the run has seen their clips is not known: if it has, "
        "their rates are too good."
    )


def read_questions(path: Path, split: str | None, file: MonitorFile, config: Config) -> tuple[Path, list[Item], str | None]:
    """Read questions, from an item set or from a file with one JSON object per line.

    A line needs ``messages`` alone; ``options`` and ``gold`` are as in items.jsonl. Questions with
    another purpose than ``gap``, the default, are left out. An item set is read as the run reads its
    own (splits, order of options, prompt); the questions of a file are asked as they are written.

    Args:
        config: of the run.

    Returns:
        The directory that media lie in, the questions, and the fingerprint of an item set.

    Raises:
        ValueError: naming every fault, or when there are none.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or directory{near_sibling(path)}")
    root, items, fingerprint = path if path.is_dir() else path.parent, list[Item](), None
    if path.is_dir():
        found = run_items(config, path)
        fingerprint = found.fingerprint(labels=True)
        if strange := sorted(set(found.concepts) - set(file.probe.concepts)):
            raise ValueError(f"{path}: the monitor does not know the concepts {strange}; it knows {list(file.probe.concepts)}")
        items = list(found)
    elif config.prompts.asked != "own":
        raise ValueError(
            f"{path}: this run asks in the prompt {config.prompts.asked!r} (prompts.asked), which only questions of an item set can get"
        )
    else:
        problems = ErrorCollector(f"the questions {path}")
        for number, line in enumerate(read_text(path).split("\n"), 1):
            if line.strip() and (item := _question(line, f"{path}:{number}", number, file.probe.concepts, problems)):
                items.append(item)
        problems.raise_if_any()
    items = [i for i in items if split in (None, i.split) and i.purpose == "gap"]
    if not items:
        raise ValueError(f"{path}: there is no question{'' if split is None else f' of split {split!r}'}")
    counted = Counter(i.id for i in items)
    if twice := [ident for ident, n in counted.items() if n > 1]:
        raise ValueError(f"{path}: the ids {twice[:3]} are used more than once; give every question its own id")
    return root, items, fingerprint


def _question(line: str, where: str, number: int, concepts: tuple[str, ...], problems: ErrorCollector) -> Item | None:
    """The question on a line; None if ``problems`` received a fault."""
    try:
        row = parse_json(line, "write one JSON object per line")
    except ItemError as fault:
        problems.add(f"{where}: {fault}")
        return None
    if not isinstance(row, dict) or (unknown := sorted(set(row) - KEYS)):
        problems.add(
            f"{where}: {f'unknown keys {unknown}' if isinstance(row, dict) else shown(row)}; write an object with some of {sorted(KEYS)}"
        )
        return None
    before = len(problems)
    check_messages(row.get("messages"), where, problems)
    options, gold = read_options(row, where, concepts, problems) if row.get("options") else ([], None)
    ident = str(row.get("id", f"line {number}"))
    split, modality, purpose = (str(row.get(key, value)) for key, value in DEFAULTS.items())
    if len(problems) > before:
        return None
    return Item(
        id=ident,
        clip=str(row.get("clip", ident)),
        split=split,
        modality=modality,
        purpose=purpose,
        messages=row["messages"],
        options=options,
        gold=gold,
    )


def flags_of(file: MonitorFile, items: Sequence[Item], found: Sequence[Reading], *, replicates: int, seed: int) -> Flags:
    """Put readings and labels together."""
    judged = np.array([i.gold is not None for i in items])
    flag, clip = np.array([r.flag for r in found]), np.array([i.clip for i in items])
    alarm = np.array([i.concept in file.alarm for i in items])
    splits = np.array([i.split for i in items])
    rates = {
        split: alarm_rates(flag[of], alarm[of], clip[of], replicates=replicates, seed=seed)
        for split in dict.fromkeys(splits.tolist())
        if (of := judged & (splits == split)).any()
    }
    return Flags(
        threshold=file.threshold,
        false_alarm_rate=file.false_alarm_rate,
        rates=rates,
        questions=[_row(i, r) for i, r in zip(items, found, strict=True)],
    )


def _row(item: Item, reading: Reading) -> dict[str, Any]:
    row = {
        "id": item.id,
        "clip": item.clip,
        "reading": reading.reading,
        "flag": reading.flag,
        "concept": item.concept,
    }
    if isinstance(reading, MonitoredAnswer):
        row |= {"text": reading.text, "option": reading.option, "disagrees": reading.disagrees}
    return row


def print_flags(flags: Flags, items: Sequence[Item]) -> None:
    """Print hits and false alarms, and the questions with the highest readings, in 80 columns."""
    console, flagged = wide_console(), sum(q["flag"] for q in flags.questions)
    print_sentence(
        console,
        f"{flagged} of {len(flags.questions)} questions flagged: reading above {flags.threshold:.3g}, "
        f"chosen for at most {100 * flags.false_alarm_rate:g} % false alarms",
    )
    for split, rates in flags.rates.items():
        title = f"{split}: {rates.items} labelled questions, {rates.clips} clips, 95 % clip-bootstrap intervals"
        rows = [
            ("hits", show(rates.hits.to_dict()), f"{rates.alarm_items} with a false premise"),
            ("false alarms", show(rates.false_alarms.to_dict()), f"{rates.items - rates.alarm_items} with a true premise"),
            ("precision", show(rates.precision.to_dict()), f"{rates.flagged} flagged"),
        ]
        print_table(console, title, ["figure", "value", "of"], rows, words=["figure", "of"])
    answered = "text" in flags.questions[0]
    if answered:
        named = [q["disagrees"] for q in flags.questions if q["disagrees"] is not None]
        counted = f"{sum(named)} of {len(named)} answers that name an option disagree with their reading"
        print_sentence(console, counted if named else "no answer names an option, so none can be compared with its reading")
    rows = list[list[str]]()
    for row, item in sorted(zip(flags.questions, items, strict=True), key=lambda of: -of[0]["reading"])[:LISTED]:
        question = " ".join(item.text.split())
        cut = question if len(question) <= 40 else f"{question[:37]}..."
        answer = [" ".join(row["text"].split())[:16]] if answered else []
        rows.append([f"{row['reading']:.3f}", "yes" if row["flag"] else "", row["id"], cut, *answer])
    headings = ["reading", "flag", "id", "question", *(["answer"] if answered else [])]
    print_table(console, f"the {len(rows)} highest readings", headings, rows, words=["flag", "id", "question", "answer"])


def write_flags(flags: Flags, path: Path) -> None:
    """Write every question with its reading as CSV, or everything as JSON, and print the path."""
    if path.suffix == ".json":
        write_text(path, json.dumps(flags.to_dict(), indent=1, ensure_ascii=False) + "\n")
    else:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(flags.questions[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flags.questions)
        write_text(path, text.getvalue())
    print(f"flags: {path}")
