#!/usr/bin/env bash
# The two locks, from pyproject.toml: `lock.sh` writes them, `lock.sh --check` says whether they are what it resolves to.
# Python 3.11 decides: what installs there installs on 3.12. Needs uv, and a package index; without one --check is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
UV=${UV:-.venv/bin/uv} mode=${1:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

resolve() { # lock, extras...: into $work, starting from the lock as it is
  local lock=$1
  shift
  [ ! -f "requirements/$lock" ] || cp "requirements/$lock" "$work/$lock"
  "$UV" pip compile pyproject.toml "${@/#/--extra=}" --override requirements/overrides.txt \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
    --no-emit-index-url --no-annotate --no-header --generate-hashes --quiet -o "$work/$lock"
}

for lock in "cpu.lock cpu eval dev docs" "gpu.lock gpu eval"; do
  name=${lock%% *}
  # shellcheck disable=SC2086
  if ! resolve ${lock} 2>"$work/errors"; then
    if [ "$mode" = --check ] && grep -qiE 'error sending request|failed to (fetch|connect)|dns|network|timed out' "$work/errors"; then
      echo "skipped: $name was not compared, no package index was reached: $(head -n 1 "$work/errors")"
      continue
    fi
    cat "$work/errors" >&2
    exit 1
  fi
  if [ "$mode" != --check ]; then
    cp "$work/$name" "requirements/$name"
  elif ! diff -u "requirements/$name" "$work/$name"; then
    echo "error: requirements/$name is not what pyproject.toml resolves to. Fix: make lock" >&2
    exit 1
  else
    echo "requirements/$name is what pyproject.toml resolves to"
  fi
done
