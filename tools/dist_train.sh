#!/usr/bin/env bash
# Usage: dist_train.sh CONFIG GPUS [flags of train.py]
set -e

torch_run=(python -m torch.distributed.run
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}"
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}")

"${torch_run[@]}" --nproc_per_node="$2" \
    "$(dirname "$0")/train.py" "$1" --launcher pytorch "${@:3}"
