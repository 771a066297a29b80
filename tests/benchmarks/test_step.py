"""The benchmark through its real command; times are left to a quiet machine, memory does not depend on one."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_it_prints_ratios_and_targets_take_no_more_memory_than_plain_sft():
    command = [sys.executable, str(ROOT / "benchmarks" / "step.py"), "--device", "cpu", "--repeats", "2", "--batch", "6", "--layers", "6"]
    result = subprocess.run([*command, "--probe_layer", "3"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert set(found["variants"]) == {"sft_all", "targets_all", "sft_after", "targets_after", "targets_stored"}
    assert len(found["ratios"]) == 5
    for name, ratio in found["ratios"].items():
        assert 0 < ratio["time"]["median"] < 10, name
        most = max(1.0, ratio["at_most"])  # what is wanted below that is time
        assert ratio["peak_memory"] <= most, name
        assert ratio["step_memory"] <= most, name
