"""The process that verifies a run's exports: ``python -m gapclose.export RUN``."""

import json
import sys
from pathlib import Path

from gapclose.export.verify import DIFFERS, verify

if __name__ == "__main__":
    try:
        print(json.dumps(verify(Path(sys.argv[1]))))
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(DIFFERS)
