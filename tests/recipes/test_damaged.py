"""Files of a run that were damaged after they were written: each is named with its remedy, in a line, or made again; nothing is a traceback.

All cases start from one finished run, by the command that made it.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from gapclose.core.tensor_files import Damaged, damage, read_tensors
from gapclose.evaluation.run_records import read_records
from gapclose.pipeline.cli import main
from gapclose.probes.linear import FrozenProbe
from gapclose.training.resume import last_complete_checkpoint
from gapclose.training.targets import Targets
from gapclose.training.trainer import GapTrainer


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def nothing(content: bytes) -> bytes:
    return b""


def noise(content: bytes) -> bytes:
    """Other bytes in the middle, as many as there were."""
    middle = len(content) // 2
    return content[:middle] + bytes(b ^ 0xA5 for b in content[middle : middle + 64]) + content[middle + 64 :]


def no_json(content: bytes) -> bytes:
    return b"{not json}\n"


def other_type(content: bytes) -> bytes:
    return b"3\n"


def other_keys(content: bytes) -> bytes:
    return b'{"a": 1}\n'


BYTES, JSON = [half, nothing, noise], [half, nothing, noise, no_json, other_type]
Damage = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def whole(tiny_run, tmp_path_factory) -> Path:
    """A finished run with the files that only some runs have; cases copy it by links, so that they must replace what they change."""
    run = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(tiny_run, run)
    (run / "rounds.json").write_text("[]\n")
    (run / "stopped.json").write_text('{"round": 9, "loss": "nan"}\n')
    (run / "wandb.json").write_text('{"id": "abc", "project": "p"}\n')
    return run


@pytest.fixture
def run(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "run", copy_function=os.link, ignore=shutil.ignore_patterns(".lock", ".holder"))
    return tmp_path / "run"


def spoil(path: Path, damage: Damage) -> None:
    content = damage(path.read_bytes())
    path.unlink()  # it is a link
    path.write_bytes(content)


def start(config: Path, run: Path, capsys, *more: str) -> tuple[int, str, str]:
    """The status of the same command, and what it says."""
    capsys.readouterr()
    status = main(["close", "--config", str(config), "--run_dir", str(run), "--export.verify", "false", *more])
    told = capsys.readouterr()
    return status, told.out, told.err


STATE = [
    "gap.jsonl", "items.json", "environment.json", "measurement.json", "change.json", "stopped.json", "wandb.json", "rounds.json",
    "observations/base-fit/request.json", "observations/base-test/manifest.json",
]  # fmt: skip


@pytest.mark.parametrize("damage", [*JSON, other_keys], ids=lambda d: d.__name__)
def test_all_files_of_a_runs_state_are_named_before_a_model_loads(tiny_config, run, monkeypatch, capsys, damage):
    """At once, a line each, with what to do; they stay as they are."""
    monkeypatch.setattr("gapclose.pipeline.context.prepare_plain", lambda *_, **__: pytest.fail("went on"))
    for name in STATE:
        spoil(run / name, damage)
    before = [(run / name).read_bytes() for name in STATE]
    status, _, told = start(tiny_config, run, capsys)
    first, *lines = told.splitlines()
    assert status == 2 and first == f"error: {run}:"
    some = [name for name in STATE if damage is not other_keys or name not in ("environment.json", "stopped.json")]  # which need none
    assert {line.partition(": ")[0] for line in lines} == {f"  - {run / name}" for name in some} and len(lines) == len(some), told
    assert all("delete" in line and "run the same command again" in line for line in lines), told
    assert [(run / name).read_bytes() for name in STATE] == before


@pytest.mark.parametrize("damage", [half, nothing, other_type], ids=lambda d: d.__name__)
def test_a_damaged_configuration_is_named(tiny_config, run, capsys, damage):
    """Half of it is a mapping, too, with the default in place of whatever is lost."""
    spoil(run / "config.yaml", damage)
    status, _, told = start(tiny_config, run, capsys)
    assert (
        status == 2 and told.count("\n") == 1 and told.startswith(f"error: {run / 'config.yaml'}: ") and "; delete it and run the" in told
    )
    spoil(run / "config.yaml", lambda _: b"\xff\xfe: {")
    assert start(tiny_config, run, capsys)[2].startswith(f"error: {run / 'config.yaml'}: not YAML (")


def test_half_a_line_of_the_records_is_named_by_its_number(tiny_config, run, capsys):
    """In a line; and a shard that is cut off, before the model loads, beside it."""
    lines = (run / "gap.jsonl").read_bytes().splitlines(keepends=True)
    spoil(run / "gap.jsonl", lambda _: b"".join(lines[:-1]) + half(lines[-1]))
    status, _, told = start(tiny_config, run, capsys)
    assert status == 2 and told.startswith(f"error: {run / 'gap.jsonl'}: line {len(lines)} is not JSON (") and told.count("\n") == 1
    assert "or delete that line and run the same command again: what is gone is measured again" in told
    shard = run / "observations" / "base-val" / "shard-00000.safetensors"
    spoil(shard, half)
    told = start(tiny_config, run, capsys)[2]
    assert told.count("\n  - ") == 2 and f"  - {shard} is damaged (" in told


@pytest.mark.parametrize("damage", BYTES, ids=lambda d: d.__name__)
def test_a_damaged_shard_is_named_and_observed_again_when_it_is_deleted(tiny_config, run, monkeypatch, capsys, damage):
    """Alone of its observation; safetensors itself reads changed numbers as if nothing were."""
    shard = run / "observations" / "base-fit" / "shard-00000.safetensors"
    before = read_tensors(shard)[0]
    spoil(shard, damage)
    if damage is noise:
        with safe_open(shard, framework="pt") as file:
            assert not all(torch.equal(file.get_tensor(name), before[name]) for name in before)
    status, _, told = start(tiny_config, run, capsys)
    assert status == 2 and told == f"error: {told.removeprefix('error: ')}" and told.count("\n") == 1
    assert f"{shard} is damaged (" in told and told.endswith("; delete it and run the same command again\n")
    shard.unlink()
    others = {p: p.stat().st_mtime_ns for p in shard.parent.glob("shard-*")}
    monkeypatch.setattr("gapclose.pipeline.measure_context.choose_probe", lambda *_, **__: (_ for _ in ()).throw(ValueError("far enough")))
    assert start(tiny_config, run, capsys)[2] == "error: far enough\n"
    again = read_tensors(shard)[0]
    assert again.keys() == before.keys() and all(torch.equal(again[name], before[name]) for name in before)
    assert {p: p.stat().st_mtime_ns for p in others} == others and others


def checkpoints(run: Path) -> list[Path]:
    """Those that are whole, oldest first."""
    return sorted(run.glob("checkpoints/checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))


@pytest.mark.parametrize("damage", [*BYTES, None], ids=lambda d: d.__name__ if d else "gone")
def test_a_damaged_checkpoint_is_passed_over(run, capsys, damage):
    """Whatever file of it: the one before is taken, and where all are damaged, that is told."""
    older, newest = checkpoints(run)
    kinds = {p.name for p in newest.iterdir()}
    assert {"optimizer.pt", "scheduler.pt", "trainer_state.json", "adapter_model.safetensors", "adapter_config.json"} <= kinds
    assert last_complete_checkpoint(older.parent) == newest
    for name in sorted(kinds - {"complete.json"}):
        path = newest / name
        content = path.read_bytes()
        if damage:
            spoil(path, damage)
        else:
            path.unlink()
        capsys.readouterr()
        assert last_complete_checkpoint(older.parent) == older, name
        told = capsys.readouterr().out
        assert (
            f"warning: {path} is {'damaged' if damage else 'not there'}" in told
            and f"going on from the checkpoint before it, {older.name}" in told
        )
        path.write_bytes(content)
    assert last_complete_checkpoint(older.parent) == newest
    spoil(newest / "complete.json", damage or other_type)
    assert last_complete_checkpoint(older.parent) == older
    spoil(older / "optimizer.pt", damage or half)
    with pytest.raises(Damaged, match=rf"{older / 'optimizer.pt'} is damaged .*; delete {newest}, {older} and run the same command again"):
        last_complete_checkpoint(older.parent)


def test_a_run_goes_on_from_the_older_checkpoint_to_the_same_end(tiny_config, whole, run, capsys):
    """Over a damaged newest one, and a record that was deleted."""
    older, newest = checkpoints(run)
    spoil(newest / "optimizer.pt", noise)
    lines = (run / "gap.jsonl").read_bytes().splitlines(keepends=True)
    spoil(run / "gap.jsonl", lambda _: b"".join(line for line in lines if b'"epoch-2/val"' not in line))
    (run / "stopped.json").unlink()
    for name in ("probes/frozen.json", "probes/frozen.safetensors", "probes/sentinel.json", "targets.safetensors"):  # all made anew
        spoil(run / name, half)
    status, said, told = start(tiny_config, run, capsys)
    assert status == 0, told
    assert "optimizer.pt is damaged" in said and f"going on from {older.name}" in said
    stages = [{r["stage"]: r for r in read_records(of)} for of in (run, whole)]
    assert stages[0] == stages[1]
    ours, theirs = (read_tensors(of / "adapter" / "adapter_model.safetensors")[0] for of in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert FrozenProbe.load(run / "probes" / "frozen").layers == FrozenProbe.load(whole / "probes" / "frozen").layers


OFF = ("--guards.off", "[over-rejection, retention]")
"""guards that would end this training after its second epoch"""


class Reached(Exception):
    """Training would begin now."""


@pytest.mark.slow
def test_an_epoch_whose_record_or_adapter_is_gone_is_trained_again(tiny_config, run, monkeypatch, capsys):
    """From the checkpoint before it, or from the beginning."""
    older, newest = checkpoints(run)
    (run / "stopped.json").unlink()
    begun = []
    monkeypatch.setattr(GapTrainer, "train", lambda self, resume_from_checkpoint: (_ for _ in ()).throw(Reached(resume_from_checkpoint)))
    for name, place in (("epoch-2", str(older)), ("epoch-1", "None")):
        shutil.rmtree(run / "checkpoints" / name)
        with pytest.raises(Reached) as met:
            start(tiny_config, run, capsys, *OFF)
        begun.append(str(met.value) == place)
    assert begun == [True, True] and newest.is_dir()


@pytest.mark.parametrize("damage", BYTES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_damaged_adapter_of_an_epoch_is_named(tiny_config, run, monkeypatch, capsys, name, damage):
    """Of the epoch that is exported again; the export loads no base model for it."""
    epoch = next(r for r in read_records(run) if r["stage"] == "adapted/test")["epoch"]
    folder = run / "checkpoints" / f"epoch-{epoch}"
    spoil(folder / name, damage)
    monkeypatch.setattr("gapclose.training.lora.load_model", lambda *_: pytest.fail("loaded"))
    assert main(["export", "--config", str(tiny_config), "--run_dir", str(run)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"error: {folder / name} is damaged" in told and f"delete {folder} and run" in told


@pytest.mark.parametrize("damage", BYTES, ids=lambda d: d.__name__)
def test_probes_and_targets_that_are_loaded_are_named(run, damage):
    for name, load in (
        ("probes/frozen.safetensors", lambda: FrozenProbe.load(run / "probes" / "frozen")),
        ("probes/frozen.json", lambda: FrozenProbe.load(run / "probes" / "frozen")),
        ("targets.safetensors", lambda: Targets.load(run / "targets.safetensors", [])),
    ):
        before = (run / name).read_bytes()
        spoil(run / name, damage)
        with pytest.raises(ValueError, match=rf"^{run / name}.*; delete it and run the same command again$"):
            load()
        (run / name).write_bytes(before)


def test_a_report_names_them_too(run, capsys):
    spoil(run / "probes" / "frozen.json", half)
    assert main(["report", str(run)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {run / 'probes' / 'frozen.json'}: not JSON (")
    (run / "probes" / "frozen.json").unlink()
    assert main(["report", str(run)]) == 2
    assert f"error: {run / 'probes' / 'frozen.json'} is not there; run the command again" in capsys.readouterr().err


def test_a_folder_is_whole_or_says_what_is_not(tmp_path):
    assert damage(tmp_path) is None  # nothing is known of it
    (tmp_path / "complete.json").write_text(json.dumps({"files": {"a": [3, 1]}}))
    assert damage(tmp_path) == f"{tmp_path / 'a'} is not there"
    (tmp_path / "complete.json").write_text(json.dumps({"files": 3}))
    assert damage(tmp_path) == f"{tmp_path / 'complete.json'} is damaged (files is 3)"


def test_a_number_that_is_not_finite_is_the_loss_guards_only_where_it_is_a_loss(tiny_config, run, monkeypatch, capsys):
    """After an epoch was measured: what comes of the observation of the next is told, and not kept as a stopped training."""
    older, newest = checkpoints(run)
    shutil.rmtree(newest)
    (run / "stopped.json").unlink()

    def fail(self, resume_from_checkpoint):
        raise FloatingPointError("item 'x': scores is not finite")

    monkeypatch.setattr(GapTrainer, "train", fail)
    status, said, told = start(tiny_config, run, capsys, *OFF)
    assert status == 2 and told == "error: item 'x': scores is not finite\n" and f"going on from {older.name}" in said
    assert not (run / "stopped.json").exists()


def test_what_was_observed_under_other_versions_is_refused_before_a_model_loads(tiny_config, run, monkeypatch, capsys):
    """All stages of the base model at once; those of adapters are made again, and any version goes where that is asked for."""
    monkeypatch.setattr("gapclose.pipeline.context.prepare_plain", lambda *_, **__: (_ for _ in ()).throw(ValueError("went on")))
    requests = sorted(run.glob("observations/*/request.json"))
    for path in requests:
        asked = json.loads(path.read_text())
        changed = json.dumps(asked | {"versions": asked["versions"] | {"torch": "1.0.0"}})
        spoil(path, lambda _, changed=changed: changed.encode())
    status, _, told = start(tiny_config, run, capsys)
    stages = {p.parent.name for p in requests}
    assert {"base-fit", "base-val", "base-test", "base-train", "epoch-1-val", "adapted-test"} <= stages
    named = ", ".join(sorted(s for s in stages if s.startswith("base-")))
    assert status == 2 and f"observed under other versions: {named} (torch 1.0.0 there, {torch.__version__} now). Install those" in told
    assert told.count("\n") == 1 and "--observe.versions any" in told and "--run_dir" in told
    status, said, told = start(tiny_config, run, capsys, "--observe.versions", "any")
    assert (status, told) == (
        2,
        "error: went on\n",
    ) and f"warning: goes on with what was observed under other versions: {named} (torch" in said
