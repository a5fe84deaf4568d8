#!/usr/bin/env bash
# A Ray cluster on plain machines, then one recipe on it. docs/cluster.md explains each step; tests/e2e/test_launch.py
# runs this file on two hosts.
#
#   on the first machine:    HEAD=10.0.0.1 NODES=4 recipes/launch/ray_bare_nodes.sh head cluster/4x8
#   on every other machine:  HEAD=10.0.0.1 recipes/launch/ray_bare_nodes.sh worker
#
# The same Python environment on all machines, its bin/ first on PATH (docs/cluster.md), logged in where needed (wandb
# login, hf auth login), and one folder that all of them see.
#
#   HEAD    the first machine's address on the network between them      PORT    6379
#   NODES   how many machines take part (the head's side)                WAIT_S  600: the limit of every wait, in seconds
#   SHARED  /shared/realad: data/, outputs/ and the cluster's token      RAY_ARGS  more arguments of `ray start`
set -euo pipefail

: "${HEAD:?address of the first machine}"
PORT=${PORT:-6379} SHARED=${SHARED:-/shared/realad} WAIT_S=${WAIT_S:-600}
# One secret for the cluster, in a file that only this user reads: without it anyone on the network can run code here.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$SHARED/ray_auth_token}
nodes() { python -m realad_verl.verl_ext.job.nodes "$@"; }
die() { echo "error: $*" >&2; exit 1; }

address=$(nodes address "$HEAD")
# Gloo would look up the host's name, which is often 127.0.1.1. The interface that reaches HEAD, on this machine.
interface=${GLOO_SOCKET_IFNAME:-$(nodes interface "$address")}
start=(env -u RAY_ADDRESS GLOO_SOCKET_IFNAME="$interface" ray start --node-ip-address "$address" --disable-usage-stats --block)
# shellcheck disable=SC2206
start+=(${RAY_ARGS:-})

case "${1:-}" in
  worker)
    nodes port "$HEAD:$PORT" --limit "$WAIT_S"
    [ -s "$RAY_AUTH_TOKEN_PATH" ] || die "no token in $RAY_AUTH_TOKEN_PATH: is SHARED=$SHARED the head's folder?"
    # Ends when the head does: the GPUs are free again.
    exec "${start[@]}" --address "$HEAD:$PORT"
    ;;
  head)
    recipe=${2:?a recipe, e.g. cluster/4x8}
    [ "$address" = "$HEAD" ] || die "HEAD=$HEAD is no address of this machine (towards it: $address)"
    [ -s "$RAY_AUTH_TOKEN_PATH" ] || (
      umask 077
      python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH"
    )
    "${start[@]}" --head --port "$PORT" &
    ray=$! job=
    # Only what was started here: others may have a Ray of their own on this machine.
    trap 'kill -TERM $ray 2>/dev/null || true; wait $ray 2>/dev/null || true' EXIT
    trap '[ -z "$job" ] || kill -TERM "$job"' TERM INT
    # trainer.nnodes machines must be there: verl fails at once where GPUs are missing.
    nodes joined "$HEAD:$PORT" "${NODES:-1}" --limit "$WAIT_S" &
    waiter=$!
    wait -n -p ended "$ray" "$waiter" || code=$?
    [ "$ended" = "$waiter" ] || { kill "$waiter" || true; die "ray start ended with exit code ${code:-0}, see above"; }
    [ "${code:-0}" = 0 ] || exit "$code"
    # Every node keeps its own interface: what the launcher has set would be passed on to all.
    env -u GLOO_SOCKET_IFNAME RAY_ADDRESS="$HEAD:$PORT" REALAD_OUTPUTS="$SHARED/outputs" \
      realad train "$recipe" data.train_files="$SHARED/data/train.parquet" data.val_files="$SHARED/data/val.parquet" "${@:3}" &
    job=$!
    # `wait` returns early when the trap runs: wait again for the step and its checkpoint.
    code=0
    wait "$job" || code=$?
    while kill -0 "$job" 2>/dev/null; do
      code=0
      wait "$job" || code=$?
    done
    exit "$code"
    ;;
  *)
    echo "usage: HEAD=ADDRESS [NODES=N] $0 head RECIPE [OVERRIDES] | HEAD=ADDRESS $0 worker" >&2
    exit 2
    ;;
esac
