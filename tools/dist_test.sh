#!/usr/bin/env bash
# Usage: dist_test.sh CONFIG CHECKPOINT GPUS [flags of test.py]
set -e

torch_run=(python -m torch.distributed.run
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}"
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}")

"${torch_run[@]}" --nproc_per_node="$3" \
    "$(dirname "$0")/test.py" "$1" "$2" --launcher pytorch "${@:4}"
