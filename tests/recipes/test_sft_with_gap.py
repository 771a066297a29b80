"""The recipe by its command, at toy size: TRL trains the shipped model, and every measurement is printed and kept."""

import os
import subprocess
import sys
from pathlib import Path

from run_schemas import misfits

from gapclose import load_run

RECIPE = Path(__file__).parents[2] / "recipes" / "sft_with_gap.py"


def test_it_prints_every_measurement_and_is_short(tmp_path):
    command = [sys.executable, str(RECIPE), str(tmp_path / "run"), "--clips", "12", "4", "12", "12", "--epochs", "1"]
    on_cpu = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(RECIPE.parents[1])}
    result = subprocess.run(command, env=on_cpu, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    stages = ["base/val", "base/test", "epoch-1/val", "adapted/test"]
    assert [line.split()[0] for line in result.stdout.splitlines()[-4:]] == stages
    assert "'eval_action/balanced'" in result.stdout and "'test_closure'" in result.stdout
    found = load_run(tmp_path / "run" / "gapclose")
    assert [r.stage for r in found.records] == stages and found.adapted.record["frozen_probe_shift"] == 0
    assert misfits(tmp_path / "run" / "gapclose") == {} and len(RECIPE.read_text().splitlines()) < 60
