"""Mutated files are read or refused, and nothing else; and the fuzzer notices where that is not so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="the fuzzer reads /proc")]
pytest.importorskip("av", reason="films need PyAV")

# Inputs that end in every way that the fuzzer has to notice, among others that do not.
FAULTY = """
import os, signal, sys
from tests.fuzz.inputs import Inputs
from tests.fuzz.supervise import run_inputs
from tests.fuzz.worker import Limits

class Numbered(Inputs):
    def __call__(self, seed, number):
        self.number = number
        return super().__call__(seed, number)

def check(given, directory):
    number = inputs.number
    if number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 4:
        raise KeyError("x")
    while number == 5:
        pass
    if number == 6:
        print(len(bytearray(400 << 20)))
    if number == 7:
        sys.exit(3)
    if number == 8:
        os._exit(4)
    if number == 9:
        print("Traceback (most recent call last):", file=sys.stderr, flush=True)
    return number % 2 == 0

inputs, outcomes = Numbered(), []
run_inputs(0, range(12), check, outcomes.append, inputs=inputs, workers=2, limits=Limits(memory=200 << 20, processor=0.5))
for o in sorted(outcomes, key=lambda o: o.number):
    print(o.number, o.finding.what if o.finding else "read" if o.read else "refused")
"""


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def run(*arguments, timeout: float):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout)


def fuzz(tmp_path, media: int, texts: int, *more: str, timeout: float) -> dict:
    counts = Path(os.environ.get("GAPCLOSE_FUZZ_JSON") or tmp_path / "fuzz.json")
    done = run("-m", "tests.fuzz.run", "--media", str(media), "--texts", str(texts), "--json", str(counts), *more, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(counts.read_text())


def test_a_slice_is_read_or_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("GAPCLOSE_FUZZ_JSON", raising=False)
    found = fuzz(tmp_path, 500, 60, timeout=300)
    assert found["inputs"] == 560 and not found["causes"]
    assert {"wav", "mp3", "png", "avif", "mp4", "items.jsonl", "configuration", "parquet"} <= set(found["kinds"])
    assert sum(k["read"] for k in found["kinds"].values()) > 100 < sum(k["refused"] for k in found["kinds"].values())


@pytest.mark.slow
def test_all_are_read_or_refused(tmp_path):
    found = fuzz(tmp_path, 100_000, 20_000, timeout=3_500)
    assert found["inputs"] == 120_000 and not found["causes"]
    assert all(k["read"] and k["refused"] for k in found["kinds"].values())


def test_whatever_ends_a_worker_is_noticed_and_the_others_go_on():
    done = run("-c", FAULTY, timeout=120)
    assert done.returncode == 0, done.stderr
    endings = {3: "SIGSEGV", 4: "KeyError", 5: "time", 6: "memory", 7: "SystemExit", 8: "exit status 4", 9: "printed"}
    lines = [f"{n} {endings.get(n, 'refused' if n % 2 else 'read')}" for n in range(12)]
    assert [line for line in done.stdout.splitlines() if line[:1].isdigit()] == lines


def test_the_same_numbers_are_the_same_files():
    code = "import hashlib; from tests.fuzz.inputs import Inputs; i = Inputs(); f = lambda n: sorted(i(7, n).files.items())"
    code += "; print(hashlib.sha256(repr([f(n) for n in range(60)]).encode()).hexdigest())"
    digests = {run("-c", code, timeout=120).stdout.splitlines()[-1] for _ in range(2)}
    assert len(digests) == 1 and len(digests.pop()) == 64


def test_seeds_are_whole():
    """Every seed is read before it is damaged, but for those that are there to be refused."""
    code = """
from tempfile import TemporaryDirectory
from tests.fuzz import inputs, seed_media, seed_texts
from tests.fuzz.check import check
from pathlib import Path
media = [inputs.Input(kind=s.kind, role=s.role, name="in" + s.suffix, files={"in" + s.suffix: s.content}) for s in seed_media.all_media()]
texts = [inputs.Input(kind=t.kind, role=t.role, name=t.target, files=t.files) for t in seed_texts.all_texts()]
for given in (*media, *texts):
    with TemporaryDirectory() as directory:
        inputs.write_input(given, Path(directory))
        print(given.name, "read" if check(given, Path(directory)) else "refused")
"""
    done = run("-c", code, timeout=120)
    assert done.returncode == 0, done.stderr
    refused = {line.split()[0] for line in done.stdout.splitlines() if line.endswith(" refused")}
    several, deep = {"in.gif", "in.webp", "in.tif", "in.avif"}, {"in.png", "in.spi", "in.pfm"}
    assert refused <= several | deep | {"in.eps"}  # that needs Ghostscript
    assert refused >= {"in.gif", "in.webp", "in.tif", "in.spi"}
