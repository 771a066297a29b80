"""Launches: what a command line asks for, and mis-launches that would otherwise be silent."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from gapclose.core.distributed import engine_faults, engine_given, kind_given, kind_of, refuse_other_engine
from gapclose.pipeline import cli, launch, run_dir
from gapclose.pipeline.config import Config
from gapclose.pipeline.launch import LaunchRequest, check_launch, find_launch_request, parse_launch_command, refuse_under_engine

ROOT = Path(__file__).parents[2]
DDP = str(ROOT / "launch" / "ddp.yaml")


@pytest.fixture(autouse=True)
def _no_default_file(monkeypatch):
    """What somebody's `accelerate config` wrote on this machine is no part of the tests."""
    monkeypatch.setattr("accelerate.commands.config.default_config_file", "/nowhere/default_config.yaml")


@pytest.fixture
def fsdp(tmp_path) -> str:
    path = tmp_path / "fsdp.yaml"
    path.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nnum_processes: 4\nfsdp_config: {fsdp_version: 2}\n")
    return str(path)


@pytest.fixture
def multi_cpu(tmp_path) -> str:
    path = tmp_path / "cpu.yaml"
    path.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n")
    return str(path)


SCRIPT = "recipes/close.py --config x.yaml --config_file y.yaml --num_processes 9 --use_fsdp --cpu"
COMMANDS = {  # after `accelerate launch` -> processes, kind
    "": (None, None),
    "--cpu --num_processes 2": (2, None),
    "--num_processes=2 --cpu": (2, None),
    "--num-processes 3": (3, None),
    "--cpu --quiet": (None, None),
    "--multi_gpu --num_processes 8": (8, "ddp"),
    "--config_file {ddp}": (2, "ddp"),
    "--config_file={ddp}": (2, "ddp"),
    "--config_file {ddp} --num_processes 8 --mixed_precision no": (8, "ddp"),
    "--config_file {multi_cpu} --cpu": (2, "ddp"),
    "--config_file {multi_cpu}": (2, "ddp"),
    "--config_file {fsdp}": (4, "fsdp"),
    "--config-file={fsdp} --num_processes=2": (2, "fsdp"),
    "--use_fsdp --num_processes 2": (2, "fsdp"),
    "--use_deepspeed --config_file {ddp}": (2, "deepspeed"),
    "--config_file /nowhere.yaml": (None, None),
}
PREFIXES = (
    "accelerate launch",
    "/venv/bin/python3 /venv/bin/accelerate launch",
    "accelerate-launch",
    "python -m accelerate.commands.launch",
    "python -m accelerate.commands.accelerate_cli launch",
    "/usr/bin/timeout 60 accelerate launch",
)


@pytest.mark.parametrize("options", COMMANDS)
def test_what_a_command_line_asks_for(options, fsdp, multi_cpu):
    """Flags without values, both spellings of options, and files; what follows the script is the script's."""
    words = options.format(ddp=DDP, fsdp=fsdp, multi_cpu=multi_cpu).split()
    asked = parse_launch_command(["accelerate", "launch", *words, *SCRIPT.split()])
    assert asked is not None and (asked.processes, asked.kind) == COMMANDS[options]
    assert asked.source.startswith("the `accelerate launch` command")
    assert ("(with /" in asked.source) == ("file" in options)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_way_to_start_the_launcher_is_known(prefix):
    """The script, its module and the older entry point, also with ``-m`` for the program itself."""
    for program in ("recipes/close.py", "-m gapclose.pipeline.cli"):
        assert parse_launch_command([*prefix.split(), "--num_processes", "2", *program.split(), "--cpu"]) == LaunchRequest(
            processes=2, source="the `accelerate launch` command"
        )


@pytest.mark.parametrize(
    "command",
    [
        "",
        "python recipes/close.py --config launch",
        "accelerate config",
        "torchrun --nproc_per_node 2 close.py",
        "bash launch accelerate",
        "python accelerate/train.py launch",
    ],
)
def test_other_commands_are_no_launch(command):
    """Words that only look alike are left alone."""
    assert parse_launch_command(command.split()) is None


def test_the_default_file_of_accelerate_counts(monkeypatch, fsdp):
    """What `accelerate config` wrote is what a launch without a file asks for, except with --cpu, as accelerate has it."""
    monkeypatch.setattr("accelerate.commands.config.default_config_file", fsdp)
    assert parse_launch_command(["accelerate", "launch", "x.py"]).kind == "fsdp"
    assert parse_launch_command(["accelerate", "launch", "--cpu", "x.py"]) == LaunchRequest(source="the `accelerate launch` command")


def test_the_nearest_launch_among_the_parents_is_read(monkeypatch):
    """Else the size that torchrun and Slurm put into the environment."""
    shell, gone = SimpleNamespace(cmdline=lambda: ["bash"]), SimpleNamespace(cmdline=lambda: (_ for _ in ()).throw(psutil.NoSuchProcess(1)))
    near, far = (SimpleNamespace(cmdline=lambda n=n: ["accelerate", "launch", "--num_processes", n, "x.py"]) for n in ("2", "3"))
    parents = [gone, shell, near, far]
    monkeypatch.setattr(launch.psutil, "Process", lambda: SimpleNamespace(parents=lambda: parents))
    assert find_launch_request().processes == 2
    parents[:] = [shell]
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert find_launch_request() == LaunchRequest(source="WORLD_SIZE")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert find_launch_request() == LaunchRequest(processes=4, source="WORLD_SIZE")


def test_kinds():
    """accelerate's many names for plain data parallelism are one kind."""
    for name in ("NO", "MULTI_CPU", "MULTI_GPU", "DistributedType.MULTI_GPU", "multi_xpu"):
        assert kind_of(name) == "ddp"
    assert kind_of("FSDP") == kind_of("DistributedType.FSDP") == "fsdp"


def test_the_kind_that_the_launcher_gave(monkeypatch):
    """accelerate tells sharding through the environment, and drops it on CPUs."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    kinds = {t: kind_given(SimpleNamespace(distributed_type=f"DistributedType.{t}")) for t in ("MULTI_GPU", "MULTI_CPU", "NO")}
    assert kinds == {"MULTI_GPU": "fsdp", "MULTI_CPU": "ddp", "NO": "ddp"}
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    assert kind_given(SimpleNamespace(distributed_type="DistributedType.MULTI_GPU")) == "ddp"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (LaunchRequest(processes=2, source="launch/ddp.yaml"), ["launch/ddp.yaml asks for 2 processes, and this one sees 1"]),
        (LaunchRequest(processes=1, kind="fsdp", source="fsdp.yaml"), ["fsdp.yaml asks for fsdp, and the launcher gave ddp"]),
    ],
)
def test_a_mis_launch_is_refused_with_the_remedy(asked, says):
    """Too few processes and another kind of distribution are errors that say how to launch."""
    with pytest.raises(ValueError) as caught:
        check_launch(asked)
    for part in (*says, "ACCELERATE_USE_CPU=true accelerate-launch --config_file launch/ddp.yaml", "torch.cuda.device_count()"):
        assert part in str(caught.value)


def test_a_launch_that_is_what_was_asked_for_passes(capsys):
    """And is printed."""
    state = check_launch(LaunchRequest(processes=1, kind="ddp", source="x"))
    assert state.num_processes == 1 and "running on 1 process (ddp, cpu)" in capsys.readouterr().out


def test_processes_wait_for_one_that_works_alone():
    """Longer than the ten minutes of NCCL, and whatever the backend: an export and its verification take as long as they take."""
    alone = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "ACCELERATE_USE_CPU": "true",
    }
    code = (
        "import torch, torch.distributed as d; from gapclose.pipeline.launch import *; check_launch(LaunchRequest()); "
        "print(d.group.WORLD._get_backend(torch.device('cpu')).options._timeout == PATIENCE)"
    )
    result = subprocess.run([sys.executable, "-c", code], env=os.environ | alone, capture_output=True, text=True, check=False)
    assert result.stdout.splitlines()[-1:] == ["True"], result.stderr


ENGINES = {
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    "zero2": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}
GPUS = SimpleNamespace(distributed_type="DistributedType.MULTI_GPU")


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_are_told_apart(monkeypatch, engine):
    """By what the launcher puts into the environment."""
    for name, value in ENGINES[engine].items():
        monkeypatch.setenv(name, value)
    assert engine_given(GPUS) == engine and engine_faults(engine) == []


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP version 1 is not supported"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, "ZeRO stage 1 is not supported"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "megatron_lm is not supported"),
    ],
)
def test_other_engines_are_refused(monkeypatch, environment, says):
    """With the files that are there."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=says):
        engine_given(GPUS)


@pytest.mark.parametrize(
    ("engine", "name", "says"),
    [
        ("fsdp2", "FSDP_CPU_RAM_EFFICIENT_LOADING", "they would observe an empty model"),
        ("fsdp2", "FSDP_ACTIVATION_CHECKPOINTING", "train.gradient_checkpointing"),
        ("fsdp2", "FSDP_OFFLOAD_PARAMS", "offloading"),
    ],
)
def test_settings_that_go_wrong_without_a_word_are_refused(monkeypatch, engine, name, says):
    """Whatever the launch file says."""
    monkeypatch.setenv(name, "true")
    (fault,) = engine_faults(engine)
    assert says in fault


def test_the_stage_and_offloading_of_a_deepspeed_file(monkeypatch, tmp_path):
    """A JSON file of DeepSpeed's own counts as the launch file's keys do."""
    path = tmp_path / "zero.json"
    path.write_text('{"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}')
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    assert engine_given(GPUS) == "zero3"
    assert "offloading" in engine_faults("zero3")[0]


def test_a_trainer_that_falls_back_is_refused(monkeypatch):
    """accelerate drops sharding where it takes the processes for CPU ones."""
    monkeypatch.setattr("gapclose.core.distributed.kind_given", lambda state: "fsdp")
    with pytest.raises(ValueError, match="gave fsdp, and the trainer would train under ddp"):
        refuse_other_engine(SimpleNamespace(distributed_type="DistributedType.MULTI_GPU"))


def test_what_only_some_engines_can_do_is_refused_together():
    """Every setting by name."""
    config = Config()
    config.model.sharded, config.targets.rounds, config.objective, config.train.cache_trunk = True, 2, "dpo", True
    with pytest.raises(ValueError) as caught:
        refuse_under_engine(config, "zero3", 2, closing=True)
    assert all(
        word in str(caught.value) for word in ("model.sharded", "targets.rounds", "objective dpo", "train.cache_trunk", "launch/ddp.yaml")
    )
    refuse_under_engine(Config(), "zero3", 2, closing=True)


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero2", "zero3"])
def test_a_stored_trunk_goes_with_every_engine_that_held_whole_models_before(engine):
    """Not with one that was observed in parts."""
    config = Config()
    config.train.cache_trunk = True
    refuse_under_engine(config, engine, 2, closing=True)
    if engine == "fsdp2":
        config.model.sharded = True
        with pytest.raises(ValueError, match="train.cache_trunk is filled by a whole model, which model.sharded is to avoid"):
            refuse_under_engine(config, engine, 2, closing=True)
        refuse_under_engine(config, engine, 2, closing=False)


def test_a_real_launch_of_one_process_where_two_were_asked_for_is_refused(tmp_path):
    """`accelerate launch --cpu --num_processes 2` starts one process without a word; ours says it."""
    (tmp_path / "job.py").write_text("import sys; from gapclose.pipeline import cli, launch; sys.exit(cli.guarded(launch.check_launch))")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", str(tmp_path / "job.py")]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode != 0
    assert "error: the `accelerate launch` command asks for 2 processes, and this one sees 1. On CPUs:" in result.stderr


def test_mixed_precision_of_the_launcher_is_refused(monkeypatch):
    """It would train in another precision than the base model was observed in."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match=r"mixed precision on \(bf16\).*--mixed_precision no"):
        check_launch(LaunchRequest())
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    check_launch(LaunchRequest())


def test_a_run_directory_is_one_process_own(tmp_path):
    """A second start is refused while the first lives, not after it was killed; the same process may come again."""
    code = "import sys, pathlib; from gapclose.pipeline.run_dir import lock_run_dir; lock = lock_run_dir(pathlib.Path(sys.argv[1]))"
    first = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print('in', flush=True); sys.stdin.read()", str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert first.stdout is not None and first.stdout.readline() == "in\n"
    with pytest.raises(ValueError, match="another process works in this run directory"):
        run_dir.lock_run_dir(tmp_path)
    first.kill()
    first.wait()
    assert run_dir.lock_run_dir(tmp_path) is run_dir.lock_run_dir(tmp_path)


@pytest.mark.parametrize("command", ["close", "measure"])
def test_a_second_start_is_refused_before_it_loads_or_writes_anything(monkeypatch, tiny_checkpoint, tmp_path, capsys, command):
    """With the embedded world, which is written into the run directory; the line names who works there."""
    code = "import sys, pathlib; from gapclose.pipeline.run_dir import lock_run_dir; lock = lock_run_dir(pathlib.Path(sys.argv[1]))"
    first = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print('in', flush=True); sys.stdin.read()", str(tmp_path / "run")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert first.stdout is not None and first.stdout.readline() == "in\n"
    monkeypatch.setattr("gapclose.pipeline.context.load_model", lambda *_: pytest.fail("a model was loaded"))
    there = sorted(p.name for p in (tmp_path / "run").iterdir())
    options = ["--model.path", str(tiny_checkpoint), "--run_dir", str(tmp_path / "run")]
    assert cli.main([command, *options]) == 2
    assert f"another process works in this run directory (process {first.pid} on {platform.node()})" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == there
    first.kill()
    first.wait()
    assert (tmp_path / "run" / ".holder").is_file()  # which keeps nobody out
    monkeypatch.setattr("gapclose.pipeline.context.prepare_plain", lambda *_, **__: (_ for _ in ()).throw(ValueError("items are read")))
    assert cli.main([command, *options]) == 2 and "items are read" in capsys.readouterr().err


@pytest.mark.parametrize("made", [True, False])
def test_a_start_that_is_refused_leaves_a_directory_as_it_was(monkeypatch, tiny_checkpoint, tmp_path, made):
    """None where there was none; and it gives back the lock."""
    monkeypatch.setattr("gapclose.pipeline.context.prepare_plain", lambda *_, **__: (_ for _ in ()).throw(ValueError("no items")))
    run = tmp_path / "run"
    if not made:
        run.mkdir()
        (run / "notes.txt").write_text("mine")
    assert cli.main(["measure", "--model.path", str(tiny_checkpoint), "--run_dir", str(run)]) == 2
    assert sorted(p.name for p in run.iterdir() if p.name != ".lock") == ["notes.txt"] if not made else not run.exists()
    code = "import sys, pathlib; from gapclose.pipeline.run_dir import lock_run_dir; lock_run_dir(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(run)], check=True)
