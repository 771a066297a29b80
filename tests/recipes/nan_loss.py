"""recipes/close.py, in which the loss of one process is not a number after so many calls. For tests alone.

python tests/recipes/nan_loss.py RANK CALLS --config FILE ...
"""

import os
import sys

from gapclose.pipeline.cli import main
from gapclose.training import trainer


def spoil(rank: str, limit: int) -> None:
    """Make it so in this program."""
    true, calls = trainer.term_sums, list[None]()

    def spoilt(model, part):
        calls.append(None)
        bad = os.environ.get("RANK", "0") == rank and len(calls) > limit
        return true(model, part) * (float("nan") if bad else 1.0)

    trainer.term_sums = spoilt


if __name__ == "__main__":
    spoil(sys.argv[1], int(sys.argv[2]))
    sys.exit(main(["close", *sys.argv[3:]]))
