"""recipes/close.py, in which the loss of one process is not a number after so many calls. For tests alone.

python tests/recipes/nan_loss.py RANK CALLS --config FILE ...
"""

import os
import sys

from gapclose import trainer
from gapclose.cli import main

if __name__ == "__main__":
    true, calls, rank, limit = trainer.term_sums, list[None](), sys.argv[1], int(sys.argv[2])

    def spoilt(model, part):
        calls.append(None)
        bad = os.environ.get("RANK", "0") == rank and len(calls) > limit
        return true(model, part) * (float("nan") if bad else 1.0)

    trainer.term_sums = spoilt
    sys.exit(main(["close", *sys.argv[3:]]))
