#!/usr/bin/env bash
# A Ray cluster on plain machines, then one recipe on it. Never run here; docs/cluster.md explains each step.
#
#   on the first machine:    HEAD=10.0.0.1 NODES=4 ./ray_bare_nodes.sh head cluster/4x8
#   on every other machine:  HEAD=10.0.0.1 ./ray_bare_nodes.sh worker
#
# Same Python environment on all machines (pip install 'realad-verl[gpu]'), logged in where needed (wandb login,
# hf auth login), and one folder that all of them see.
set -euo pipefail

: "${HEAD:?address of the first machine}"
PORT=${PORT:-6379}
SHARED=${SHARED:-/shared/realad}
# The network that NCCL and Gloo use between the machines; `ip -br address` lists them.
export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-eth0} GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-eth0}

case "${1:-}" in
  worker)
    ray start --address "$HEAD:$PORT" --block
    ;;
  head)
    recipe=${2:?a recipe, e.g. cluster/4x8}
    ray start --head --node-ip-address "$HEAD" --port "$PORT"
    trap 'ray stop' EXIT
    # trainer.nnodes machines must be there: verl fails at once where GPUs are missing.
    until [ "$(ray list nodes --filter state=ALIVE --format json | grep -c '"node_id"')" -ge "${NODES:-1}" ]; do
      echo "waiting for ${NODES:-1} nodes"
      sleep 5
    done
    export RAY_ADDRESS="$HEAD:$PORT" REALAD_OUTPUTS="$SHARED/outputs"
    realad train "$recipe" data.train_files="$SHARED/data/train.parquet" data.val_files="$SHARED/data/val.parquet" "${@:3}"
    ;;
  *)
    echo "usage: HEAD=ADDRESS [NODES=N] $0 head RECIPE [OVERRIDES] | HEAD=ADDRESS $0 worker" >&2
    exit 2
    ;;
esac
