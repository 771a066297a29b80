"""launch/slurm.sh with two nodes, which are two launchers on this machine: a stand-in for `srun` starts its words once per node."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
SRUN = """#!/usr/bin/env bash
# srun [options] bash -c SCRIPT bash WORDS: one task per node; one that fails ends the others, as --kill-on-bad-exit asks for
printf '%s\\n' "$*" > "$FAKE/srun.txt"
while [ "$1" != bash ]; do shift; done
ended=0 tasks=()
for node in $(seq 0 $((SLURM_NNODES - 1))); do
  SLURM_NODEID=$node setsid "$@" &
  tasks+=($!)
  echo $! > "$FAKE/node-$node"
done
for node in "${tasks[@]}"; do
  wait -n || { ended=$?; for other in "${tasks[@]}"; do kill -9 -- -"$other" 2>/dev/null; done; }
done
exit $ended
"""


@pytest.fixture
def submit(tmp_path, monkeypatch):
    """``(restart, *words, **environment)`` -> a job of two nodes with one process each, started."""
    # `accelerate` imports timm where that is installed, which imports a torchvision that a CPU build of torch breaks; its launcher alone does not
    accelerate = f'#!/usr/bin/env bash\nshift\nexec {sys.executable} -m accelerate.commands.launch "$@"\n'
    commands = {"srun": SRUN, "scontrol": "#!/usr/bin/env bash\nprintf '127.0.0.1\\n127.0.0.1\\n'\n", "accelerate": accelerate}
    (tmp_path / "bin").mkdir()
    for name, text in commands.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    for place in ("launch", "recipes"):
        (tmp_path / place).symlink_to(ROOT / place)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        job = s.getsockname()[1] % 12000  # the script's port is 20000 and this: seldom taken

    def start(restart: int, *words: str, **environment: str) -> subprocess.Popen[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
        slurm = {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1", "SLURM_JOB_ID": str(job), "SLURM_JOB_NODELIST": "two",
                 "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_RESTART_COUNT": str(restart)}  # fmt: skip
        path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
        python = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
        more = {"PATH": path, "PYTHONPATH": python, "FAKE": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
        command = ["bash", str(ROOT / "launch" / "slurm.sh"), *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=kept | slurm | more | environment, text=True, **pipes)

    return start


def test_without_gpus_it_says_what_to_give(submit):
    job = submit(0, "ddp", "configs/digits.yaml", SLURM_GPUS_ON_NODE="")
    assert "give --gpus-per-node" in job.communicate()[1] and job.returncode != 0


def test_a_node_is_lost_and_the_job_that_is_requeued_ends_as_one_process(submit, close_command, closed_run, tmp_path):
    words = close_command(tmp_path / "run")
    words = ["ddp", *words[words.index("--config") + 1 :], "--train.save_steps", "2"]
    job, checkpoint = submit(0, *words), tmp_path / "run" / "checkpoints" / "checkpoint-2" / "complete.json"
    until = time.monotonic() + 240
    while not checkpoint.exists():
        assert job.poll() is None and time.monotonic() < until, job.communicate()[1][-3000:]
        time.sleep(0.02)
    os.killpg(int((tmp_path / "node-1").read_text()), signal.SIGKILL)
    job.communicate(timeout=60)
    assert job.returncode != 0
    job = submit(1, *words)
    printed, errors = job.communicate(timeout=500)
    assert job.returncode == 0, errors[-3000:]
    assert "running on 2 processes (ddp, cpu)" in printed and "going on from checkpoint-" in printed
    assert {str(p.relative_to(tmp_path / "logs")).partition("/")[2] for p in (tmp_path / "logs").glob("*/restart-*/*")} == {
        f"restart-{restart}/node-{node}" for restart in (0, 1) for node in (0, 1)
    }
    assert "--kill-on-bad-exit=1" in (tmp_path / "srun.txt").read_text()
    ours, theirs = (load_file(d / "adapter" / "adapter_model.safetensors") for d in (tmp_path / "run", closed_run))
    assert max(float((ours[k] - theirs[k]).abs().max()) for k in theirs) < 1e-4
