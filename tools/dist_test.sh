#!/usr/bin/env bash
# Test on several GPUs: dist_test CONFIG CHECKPOINT GPUS [flags of test]
# NNODES, NODE_RANK, MASTER_ADDR and PORT spread it over machines.
set -e

if [ $# -lt 3 ]; then
    echo 'usage: dist_test CONFIG CHECKPOINT GPUS [flags of test]' >&2
    exit 2
fi

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    --nproc_per_node="$3" -m pelk_mm test "$1" "$2" --launcher pytorch "${@:4}"
