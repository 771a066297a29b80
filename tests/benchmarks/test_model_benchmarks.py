"""The benchmarks of whole models through their real commands, tiny; times are left to a quiet machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
SHORT = ["--device", "cpu", "--repeats", "1", "--layers", "4"]


def result(name: str, *options: str) -> dict:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *SHORT, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_observing_is_set_against_a_bare_forward():
    ways = result("observe", "--items", "8", "--batch", "4")["ways"]
    assert {"bare forward, last logits", "observe, one layer", "observe, all layers"} < ways.keys()
    assert all(way["items_per_second"] > 0 and 0 < way["share_of_matrix_rate"] < 1 for way in ways.values())


def test_shared_and_whole_prompts_have_the_same_scores():
    found = result("shared_prefix", "--batch", "8", "--generate", "--profile")
    asked = found["questions"]
    assert asked.keys() == {"1", "2", "4", "8"} and 0 < found["profile"]["mm"]["shared"] < found["profile"]["all"]["shared"]
    assert max(found["largest_difference"] for found in asked.values()) < 1e-4


def test_the_monitor_changes_no_answer():
    found = result("monitor_overhead", "--batch", "4", "--new_tokens", "3")
    assert found["same_answers"] and found["ratio"] > 0


def test_re_measuring_is_a_share_of_an_epoch():
    found = result("epoch", "--batch", "4", "--micro_batch", "3", "--probe_layer", "2")
    assert len(found["milliseconds_an_item"]) == 5 and len(found["shares"]) == 6
    twice = result("epoch", "--batch", "4", "--micro_batch", "3", "--probe_layer", "2", "--measured", "1")
    name = "re-measuring, whole prompts / training, media read"
    assert twice["shares"][name]["median"] < found["shares"][name]["median"] / 50


def test_one_process_is_set_against_two():
    works = result("processes", "--items", "8", "--batch", "4", "--global_batch", "6", "--probe_layer", "2")["works"]
    assert works.keys() == {"observe", "train"}
    assert all(work["milliseconds"].keys() == {"1", "2"} for work in works.values())


def test_long_answers_and_passages_are_set_against_short_ones():
    found = result("long_answers", "--batch", "4", "--probe_layer", "2")
    assert found["largest_difference"] < 1e-4 and found["ways"]["train, one row"]["to"] == "train, one token"
    ratio = {name: way["ratio"]["median"] for name, way in found["ways"].items()}
    assert ratio["train, one row"] < ratio["train, rows of their own"] / 2 and ratio["passage, shared"] < 0.8


def test_whole_commands_are_set_against_each_other(tmp_path):
    """`close` with and without what is saved by default, and `measure`, on few clips."""
    few = [
        "--data.clips",
        "[12, 12, 10, 12]",
        "--train.epochs",
        "1",
        "--controls.random_weights",
        "false",
        "--force",
        "true",
        "--export.verify",
        "false",
    ]
    command = [sys.executable, str(ROOT / "benchmarks" / "whole_run.py"), "--repeats", "1", "--", *few]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["cpu_seconds"].keys() == {"close", "close, savings off", "measure"} and found["ratio"]["median"] > 0
