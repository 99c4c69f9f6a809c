#!/usr/bin/env bash
# Test as a Slurm job: slurm_test PARTITION JOB_NAME CONFIG CHECKPOINT [flags of test]
# GPUS, GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS set its resources.
set -e

if [ $# -lt 4 ]; then
    echo 'usage: slurm_test PARTITION JOB_NAME CONFIG CHECKPOINT [flags of test]' >&2
    exit 2
fi

# shellcheck disable=SC2086  # SRUN_ARGS holds several arguments
exec srun -p "$1" --job-name="$2" \
    --gres=gpu:"${GPUS_PER_NODE:-8}" --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u -m pelk_mm test "$3" "$4" --launcher slurm "${@:5}"
