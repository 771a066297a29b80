"""The benchmark through its real command, tiny; times are left to a quiet machine, agreement does not depend on one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3])
def test_both_sides_choose_the_same_probe_and_the_solver_is_within_a_thousandth(classes):
    command = [sys.executable, str(ROOT / "benchmarks" / "probes.py"), "--layers", "3", "--n", "120", "--width", "80"]
    result = subprocess.run([*command, "--classes", str(classes)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["same_choice"] and found["within_1e-3"], found
    assert found["ratio"]["median"] > 0
    assert all(side["peak_mb"] >= side["idle_mb"] > 0 for side in found["sides"].values())
