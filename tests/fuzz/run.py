"""Mutate media, sets, tables and configurations, and run them through the project's own loaders.

    python -m tests.fuzz.run --media 100000 --texts 20000 --json fuzz.json     # from the root of the repository; Linux, on two cores some ten minutes
    python -m tests.fuzz.replay SEED NUMBER                                     # one input again

Each input must be read, or refused by a ``ValueError`` that names the file. Everything else is a finding: another exception, a message that cannot be
printed, a process that dies, more than 10 s of processor time, more than 2 GiB of memory. Exit status 1 where there is one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.check import check
from tests.fuzz.inputs import TEXTS_EVERY, Inputs
from tests.fuzz.report import Report
from tests.fuzz.supervise import run_inputs
from tests.fuzz.worker import Outcome


def numbers(media: int, texts: int, start: int) -> Iterator[int]:
    """The first ``media`` numbers of media and ``texts`` of texts from ``start`` on, in the order of the numbers."""
    for number in itertools.count(start):
        if not media and not texts:
            return
        if number % TEXTS_EVERY == TEXTS_EVERY - 1:
            if texts:
                texts -= 1
                yield number
        elif media:
            media -= 1
            yield number


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--media", type=int, default=100_000, help="inputs that are media files")
    parser.add_argument("--texts", type=int, default=20_000, help="inputs that are sets of items, tables or configurations")
    parser.add_argument("--start", type=int, default=0, help="number of the first input")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no further inputs begin")
    parser.add_argument("--json", type=Path, help="file for the counts")
    given = parser.parse_args()
    begun, report, causes = time.monotonic(), Report(seed=given.seed), set[tuple[str, str, str]]()

    def add(outcome: Outcome) -> None:
        report.add(outcome)
        if outcome.finding and outcome.finding.group not in causes:
            causes.add(outcome.finding.group)
            print(outcome.finding, file=sys.stderr, flush=True)
        if report.inputs % 5_000 == 0:
            print(f"{report.inputs} inputs, {len(report.findings)} findings, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)

    wanted = itertools.takewhile(lambda _: time.monotonic() - begun < given.seconds, numbers(given.media, given.texts, given.start))
    run_inputs(given.seed, wanted, check, add, inputs=Inputs(), workers=given.workers)
    seconds = round(time.monotonic() - begun, 1)
    print(report.table())
    print(f"\nseed {given.seed}, {report.inputs:,} inputs in {seconds} s by {given.workers} processes, {len(report.findings)} findings")
    print(report.extremes(), *report.causes(), sep="\n")
    if given.json:
        given.json.write_text(json.dumps(report.as_json(seconds=seconds, workers=given.workers), indent=1) + "\n")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
