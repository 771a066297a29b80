"""Repeat one input of the fuzzer: ``python -m tests.fuzz.replay SEED NUMBER [--keep DIRECTORY] [--here]``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.check import check
from tests.fuzz.inputs import Inputs, write_input
from tests.fuzz.supervise import run_inputs
from tests.fuzz.worker import Outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("number", type=int)
    parser.add_argument("--keep", type=Path, help="write the input's files there")
    parser.add_argument("--here", action="store_true", help="in this process, without limits, with a traceback")
    given = parser.parse_args()
    inputs = Inputs()
    made = inputs(given.seed, given.number)
    print(f"{made.kind} as {made.role}, {made.name}: {len(made.files[made.name])} bytes")
    if given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
        write_input(made, given.keep)
    if given.here:
        with tempfile.TemporaryDirectory() as directory:
            write_input(made, Path(directory))
            print("read" if check(made, Path(directory)) else "refused")
        return 0
    found: list[Outcome] = []
    run_inputs(given.seed, [given.number], check, found.append, inputs=inputs)
    finding = found[0].finding
    print(finding or ("read" if found[0].read else "refused"))
    return 1 if finding else 0


if __name__ == "__main__":
    sys.exit(main())
