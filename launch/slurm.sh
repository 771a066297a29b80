#!/usr/bin/env bash
# One node or many under Slurm: one launcher per node, which starts a process per GPU.
#   sbatch --nodes 1 --gpus-per-node 8 launch/slurm.sh fsdp2 configs/qwen2_5_omni_7b.yaml
#   sbatch --nodes 4 --gpus-per-node 8 launch/slurm.sh fsdp2 configs/qwen3_omni_30b_a3b.yaml --model.sharded true --train.global_batch_size 64
# ENGINE (ddp, fsdp2, zero2, zero3) and a configuration, then any key of it. The run directory must lie on storage that all nodes share.
# A requeued or resubmitted job with the same words goes on where it stopped. Logs: logs/JOB/, a directory per restart, a file per rank.
#SBATCH --job-name=gapclose
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=8
#SBATCH --mem=0
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: sbatch [options] launch/slurm.sh ENGINE CONFIG [--key value ...]" >&2
  exit 2
fi
cd "${SLURM_SUBMIT_DIR:-.}"
engine=$1 config=$2
shift 2
file=launch/$engine.yaml
[ -f "$file" ] || { echo "no $file; run this from the project's directory, with ENGINE ddp, fsdp2, zero2 or zero3" >&2; exit 2; }

# Rendezvous: the first node of the job, on a port that is the job's own.
nodes=${SLURM_NNODES:-1}
gpus=${SLURM_GPUS_ON_NODE:?no GPUs on this node: give --gpus-per-node}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")   # no pipe to `head`: it would end scontrol, and pipefail this script
address=${hosts%%$'\n'*}
port=$((20000 + SLURM_JOB_ID % 12000))
logs=logs/$SLURM_JOB_ID/restart-${SLURM_RESTART_COUNT:-0}
mkdir -p "$logs"

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}          # many nodes must not ask the hub at once
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1            # a rank that dies ends the others instead of leaving them waiting
export file config nodes gpus address port logs

# srun takes over no --cpus-per-task of the job by itself (Slurm 22.05 on). SLURM_NODEID is known on each node alone, so this part is expanded there. A rank that fails ends its node, and --kill-on-bad-exit the job.
srun --export=ALL --nodes "$nodes" --ntasks "$nodes" --ntasks-per-node 1 --cpus-per-task "${SLURM_CPUS_PER_TASK:-32}" --kill-on-bad-exit=1 bash -c '
  exec accelerate launch --config_file "$file" \
    --num_machines "$nodes" --num_processes $((nodes * gpus)) --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$address" --main_process_port "$port" --log_dir "$logs/node-$SLURM_NODEID" --tee 3 \
    recipes/close.py --config "$config" "$@"
' bash "$@"
