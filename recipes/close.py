"""Measure a gap, close it, measure again after every epoch, export.

One process:
    python recipes/close.py --config configs/digits.yaml
N GPUs of one node:
    accelerate launch --config_file launch/ddp.yaml --num_processes N recipes/close.py --config configs/digits.yaml
N CPU processes (to try the distributed path):
    ACCELERATE_USE_CPU=true accelerate-launch --config_file launch/ddp.yaml --num_processes 2 recipes/close.py --config configs/digits.yaml

Any key of the configuration can be overridden: --seed 1 --targets.control shuffled --run_dir runs/shuffled
"""

import sys

from gapclose.pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main(["close", *sys.argv[1:]]))
