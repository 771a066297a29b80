"""The benchmark through its real command; times are left to a quiet machine, memory does not depend on one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
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


def test_operations_are_counted_as_by_hand(monkeypatch):
    """Attention: two products forward, five backward; the heads of keys and values may be fewer."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from synthetic import operations

    query = torch.randn(1, 8, 16, 4, requires_grad=True)
    for heads in (8, 2):
        key, value = (torch.randn(1, heads, 16, 4, requires_grad=True) for _ in range(2))

        def attend(key=key, value=value, heads=heads) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=heads < 8)

        product = 2 * 8 * 16 * 16 * 4
        with torch.no_grad():
            assert operations(attend) == 2 * product
        assert operations(lambda attend=attend: attend().sum().backward()) == 7 * product
    linear = nn.Linear(4, 8, bias=False)
    assert operations(lambda: linear(torch.randn(3, 4)).sum().backward()) == 2 * (2 * 3 * 4 * 8)  # the input wants no gradient
