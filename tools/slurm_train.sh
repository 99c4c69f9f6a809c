#!/usr/bin/env bash
# Train as a Slurm job: slurm_train PARTITION JOB_NAME CONFIG [flags of train]
# GPUS, GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS set its resources.
set -e

if [ $# -lt 3 ]; then
    echo 'usage: slurm_train PARTITION JOB_NAME CONFIG [flags of train]' >&2
    exit 2
fi

# shellcheck disable=SC2086  # SRUN_ARGS holds several arguments
exec srun -p "$1" --job-name="$2" \
    --gres=gpu:"${GPUS_PER_NODE:-8}" --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u -m pelk_mm train "$3" --launcher slurm "${@:4}"
