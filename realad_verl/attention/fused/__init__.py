"""The rows by fused Triton kernels: imported where they run only, since Triton need not be installed."""
