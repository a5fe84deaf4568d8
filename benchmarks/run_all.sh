#!/usr/bin/env bash
# Every benchmark that runs on this machine, one JSON file each: benchmarks/run_all.sh RESULTS_FOLDER
# Not here: evaluation_memory.py against anomalib (needs anomalib's own environment), trl_peer.py (TRL's), learning.py (hours).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: benchmarks/run_all.sh RESULTS_FOLDER}
mkdir -p "$out"
export OMP_NUM_THREADS=1
images=$(mktemp -d)
trap 'rm -rf "$images"' EXIT
for name in reduction evidence_overhead prepare growth scaling_model localize; do
  echo "== $name" >&2
  python "$here/$name.py" --json >"$out/$name.json"
done
echo "== step_overhead" >&2
realad tiny images --out "$images/folder" --count 200 >&2
realad prepare folder --root "$images/folder" --out "$images/data" --size 168 >&2
python "$here/step_overhead.py" --train "$images/data/train.parquet" --json >"$out/step_overhead.json"
echo "== startup" >&2
python "$here/startup.py" --train "$images/data/train.parquet" --json >"$out/startup.json"
