"""Runs the kernels' cases in a process of their own, since Triton's interpreter is chosen when Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
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
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_kernels_compile_for_a_gpu_that_is_not_there(dtype):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from realad_verl.attention import triton_kernel

    numbers = dict.fromkeys(("n_rows", "n_columns", "left", "right"), "i32")
    positions = ("rows", "columns", "batches", "starts", "stops", "counts", "row_counts", "column_counts")
    types = {"query": f"*{dtype}", "key": f"*{dtype}", "mask": "*fp32", "lse": "*fp32", "sink": "*fp32"}
    types |= {"result": "*fp32", "scale": "fp32", "softcap": "fp32", "weight": "fp32", **numbers}
    types |= dict.fromkeys(positions, "*i64")
    constants = {"HEADS": 14, "SHARE": 7, "WIDTH": 80, "BLOCK_R": 32, "BLOCK_C": 64, "BLOCK_D": 128}
    for kernel in (triton_kernel._lse_kernel, triton_kernel._columns_kernel):
        signature, fixed = {}, {}
        for name in kernel.arg_names:
            if name in types or name.startswith("stride"):
                signature[name] = types.get(name, "i32")
            else:
                signature[name], fixed[name] = "constexpr", constants.get(name, True)
        source = ASTSource(kernel, signature, constexprs=fixed)
        assert "cubin" in triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm
