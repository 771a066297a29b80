"""The recipe through its real command."""

import json
import subprocess
import sys

import pytest


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_ends_with_the_report(closed_run):
    printed = (closed_run / "stdout").read_text()
    assert "epoch-2/val: action" in printed and "adapted/test: action" in printed
    state, page = printed.splitlines()[-2:]
    assert state.startswith("state: ") and page == f"page: {closed_run / 'report.html'}"
    stages = [json.loads(line)["stage"] for line in (closed_run / "gap.jsonl").read_text().splitlines()]
    assert stages == ["base/val", "base/test", "epoch-1/val", "epoch-2/val", "adapted/test"]
    for path in (
        "config.yaml",
        "environment.json",
        "targets.safetensors",
        "adapter/adapter_model.safetensors",
        "adapter/evidence.json",
        "report.html",
    ):
        assert (closed_run / path).is_file(), path


def test_the_report_command_gives_what_the_run_exported(closed_run):
    result = run([sys.executable, "-m", "gapclose.pipeline.cli", "report", str(closed_run), "--json"])
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == json.loads((closed_run / "adapter" / "evidence.json").read_text())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--train.learning_rat", "1"], "did you mean 'train.learning_rate'?"),
        (["--train.micro_batch_size", "7"], "train.micro_batch_size may be [1, 2, 3, 4, 6, 8, 12, 24]"),
    ],
)
def test_an_error_of_the_user_ends_it_with_status_2_and_no_traceback(close_command, tmp_path, wrong, says):
    result = run([*close_command(tmp_path / "run"), *wrong])
    assert result.returncode == 2
    assert says in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
