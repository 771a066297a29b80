"""The benchmark through its real command, tiny; memory at such sizes is that of libraries, so only what does not depend on it is asked for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
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


def test_a_line_is_tried_on_what_it_has_not_seen_and_carried_over(monkeypatch, capsys):
    """Of peaks that are a line: 20 bytes an item and unit of width over a constant."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from scale import carried_over

    rows = [{"items": n, "width": 1000, "layers": 2, "processes": 1, "peak_mb": 20 * n * 1000 / 1e6 + 50} for n in (1000, 2000, 4000)]
    found = carried_over([*rows, rows[0] | {"layers": 8, "peak_mb": 1e6}], 1000, 2)
    assert found["predicted_mb"] == found["measured_mb"] == 130
    assert found["bytes_an_item_and_width"] == 20 and found["constant_mb"] == 50
    assert found["target_gb"] == pytest.approx(20 * 100_000 * 3584 / 1e9 + 0.05 * 3.584**2, abs=0.01)
    assert "on disk x 2 bytes = 20.1 GB" in capsys.readouterr().out
