#!/usr/bin/env bash
# Run one sciflow command on a Ray cluster that lives as long as this Slurm job. Submit it from the project's root,
# on a filesystem that every node sees; a job that was stopped goes on when it is submitted again.
#
#   sbatch --nodes 4 cluster/slurm.sh \
#     sciflow train workflows/era5_daily_cycle.yaml --address auto cluster.num_workers=4 cluster.use_gpu=true
#   sbatch --nodes 4 cluster/slurm.sh \
#     sciflow score runs/era5-daily-cycle STORE --out SCORES --address auto --gpu
#
# Options of sbatch go before the script's name and win over the lines below. Without GPUs: --gpus-per-node 0, and
# neither cluster.use_gpu=true nor --gpu.
#SBATCH --job-name=sciflow
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=sciflow-%j.log

set -euo pipefail

if (($# == 0)); then
  echo "error: no command; for example: sbatch cluster/slurm.sh sciflow train workflows/era5_daily_cycle.yaml --address auto" >&2
  exit 2
fi

# The environment that holds sciflow and Ray, where it is not active already.
if [[ -n ${SCIFLOW_VENV:-} ]]; then
  # shellcheck disable=SC1091
  source "$SCIFLOW_VENV/bin/activate"
fi

# This script runs on the first node, which becomes the head. RAY_HEAD_IP chooses another of its network interfaces.
head_ip=${RAY_HEAD_IP:-$(hostname -I | awk '{ print $1 }')}
port=$((20000 + SLURM_JOB_ID % 10000))

# Only processes that hold this token can talk to the cluster. srun hands it on with the environment.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-300}

# ray symmetric-run ends with 0 where Ray's head never came up: the command leaves a mark that it was started.
started=$(mktemp)
trap 'rm -f "$started"' EXIT

# shellcheck disable=SC2016
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
  ray symmetric-run --address "$head_ip:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_PER_TASK" --disable-usage-stats \
  -- bash -c 'echo yes > "$0"; exec "$@"' "$started" "$@"

if [[ ! -s $started ]]; then
  echo "error: Ray's head did not start on $head_ip:$port, so the command did not run; see the log above" >&2
  exit 1
fi
