"""Measure the gap of a base model with all controls, without training.

N GPUs of one node:
    accelerate launch --config_file launch/ddp.yaml --num_processes N recipes/measure.py --config configs/digits.yaml
On one process this is `gapclose measure`.
"""

import sys

from gapclose.pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main(["measure", *sys.argv[1:]]))
