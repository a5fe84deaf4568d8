"""Runs the kernels' cases in a process of their own, since Triton's interpreter is chosen when Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
NAMES = {"bf16": "bfloat16", "fp32": "float32"}
CASES = Path(__file__).with_name("triton_cases.py")


def run_cases(**environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="the cases run on the GPU instead")
def test_the_kernels_in_the_interpreter():
    run_cases(TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_kernels_on_a_gpu():
    run_cases()


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 86, 90])
@pytest.mark.parametrize("width", [80, 128, 256])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_kernels_compile_for_a_gpu_that_is_not_there(dtype, width, capability):
    """And fit in the shared memory of its multiprocessors."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from realad_verl.attention.fused import kernels
    from realad_verl.attention.fused.launch import block_sizes

    numbers = dict.fromkeys(("n_layers", "n_requests", "n_rows", "n_columns", "n_keys", "each", "left", "right"), "i32")
    floats = dict.fromkeys(("scale", "softcap", "weight"), "fp32")
    types = {"query": f"*{dtype}", "key": f"*{dtype}", "relative": f"*{dtype}", "mask": "*fp32"}
    types |= {"sink": "*fp32", "result": "*fp32", **numbers, **floats}
    types |= dict.fromkeys(("rows", "columns", "numbers", "offsets"), "*i64")
    block_d = triton.next_power_of_2(width)
    block_m, block_c, launch = block_sizes(getattr(torch, NAMES[dtype]), block_d, 8)
    constants = {"SHARE": 7, "PADDED_SHARE": 8, "GROUPS": 2, "WIDTH": width}
    constants |= {"TERMS": 2 if dtype == "bf16" else 1, "HAS_SOFTCAP": dtype == "fp32", "LSE_ONLY": False, "ALIGN": 8}
    constants |= {"BLOCK_M": block_m, "BLOCK_C": block_c, "BLOCK_D": block_d}
    constants |= {"stride_qd": 1, "stride_kd": 1}
    for kernel in (kernels.keys_kernel, kernels.rows_kernel):
        signature, fixed, aligned = {}, {}, {}
        for i, name in enumerate(kernel.arg_names):
            if name in constants or name.isupper():
                signature[name], fixed[name] = "constexpr", constants.get(name, True)
                continue
            signature[name] = types.get(name, "i32")  # strides
            if name not in {**numbers, **floats}:
                aligned[(i,)] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, signature, constexprs=fixed, attrs=aligned)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)
        assert "cubin" in compiled.asm
        assert compiled.metadata.shared <= {80: 163, 86: 99, 90: 227}[capability] * 1024
