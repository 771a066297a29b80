"""The benchmark through its real command, tiny; memory at such sizes is that of libraries, so only what does not depend on it is asked for."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_two_processes_choose_what_one_chooses_and_read_half_of_the_layers(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "scale.py"),
        "--items",
        "256",
        "--layers",
        "4",
        "--widths",
        "16",
        "--processes",
        "2",
    ]
    result = subprocess.run([*command, "--directory", str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    one, two = json.loads(result.stdout.splitlines()[-1])["sizes"]
    assert (one["processes"], one["layers_read"]) == (1, 5)  # all, and the chosen one again
    assert (two["processes"], two["layers_read"]) == (2, 3)
    assert one["chosen"] == two["chosen"] and one["disk_mb"] >= 256 * 4 * 16 * 2 / 1e6
    assert not list(tmp_path.iterdir())


def test_it_carries_memory_over_to_another_size(tmp_path):
    sizes = ["--items", "256", "512", "--layers", "1", "2", "--widths", "16", "32", "--families", "mean_difference"]
    command = [sys.executable, str(ROOT / "benchmarks" / "scale.py"), *sizes, "--directory", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert [(r["items"], r["layers"], r["width"]) for r in found["sizes"]] == [(256, 1, 16), (512, 1, 16), (256, 2, 16), (512, 1, 32)]
    assert all(r["peak_mb"] > 0 for r in found["sizes"])
    assert "disk 100,000 x 28 x 3,584 x 2 bytes = 20.1 GB" in result.stdout and found["target_memory_gb"] >= 0
