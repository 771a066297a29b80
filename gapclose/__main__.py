"""``python -m gapclose``: the command ``gapclose``."""

import sys

from gapclose.pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main())
