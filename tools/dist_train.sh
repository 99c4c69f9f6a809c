#!/usr/bin/env bash
# Train on several GPUs: dist_train CONFIG GPUS [flags of train]
# NNODES, NODE_RANK, MASTER_ADDR and PORT spread it over machines.
set -e

if [ $# -lt 2 ]; then
    echo 'usage: dist_train CONFIG GPUS [flags of train]' >&2
    exit 2
fi

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    --nproc_per_node="$2" -m pelk_mm train "$1" --launcher pytorch "${@:3}"
