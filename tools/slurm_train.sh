#!/usr/bin/env bash
# Usage: [GPUS=8] slurm_train.sh PARTITION JOB_NAME CONFIG [flags of train.py]
set -e

# shellcheck disable=SC2086  # SRUN_ARGS holds several arguments
srun -p "$1" --job-name="$2" \
    --gres=gpu:"${GPUS_PER_NODE:-8}" --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    python -u "$(dirname "$0")/train.py" "$3" --launcher slurm "${@:4}"
