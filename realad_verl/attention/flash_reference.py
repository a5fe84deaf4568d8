"""flash-attn's two functions in plain PyTorch, for tests of the flash paths on machines without a GPU.

The signatures are those of flash-attn 2, any dtype and device are taken, and the maths is done in fp32. They are slow
and make the whole score matrix: nothing but tests should call them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import modeling_flash_attention_utils as flash_utils


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
):
    """Attention of q [B, N, H, D] to k, v [B, N, G, D]; G divides H.

    Causality and window are aligned at the bottom right, as in flash-attn >= 2.1. With ``return_attn_probs``, returns
    (output, log-sum-exp [B, H, N], None) as flash-attn does without dropout.
    """
    if dropout_p or alibi_slopes is not None:
        raise NotImplementedError("the reference has neither dropout nor ALiBi")
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    share = q.shape[2] // k.shape[2]
    query, key, value = (x.transpose(1, 2).float() for x in (q, k, v))
    key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    scores = query @ key.transpose(-1, -2) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    n_query, n_key = scores.shape[-2:]
    ahead = torch.arange(n_key, device=q.device) - (torch.arange(n_query, device=q.device)[:, None] + n_key - n_query)
    left, right = window_size
    right = 0 if causal else right
    hidden = torch.zeros_like(ahead, dtype=torch.bool)
    if left >= 0:
        hidden |= ahead < -left
    if right >= 0:
        hidden |= ahead > right
    scores = scores.masked_fill(hidden, float("-inf"))
    output = (scores.softmax(-1) @ value).transpose(1, 2).to(q.dtype)
    return (output, scores.logsumexp(-1), None) if return_attn_probs else output


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
):
    """Attention inside each of S packed sequences: q [N, H, D], k, v [N, G, D], ``cu_seqlens_*`` [S + 1] boundaries.

    With ``return_attn_probs``, returns (output, log-sum-exp [H, N], None).
    """
    if block_table is not None:
        raise NotImplementedError("the reference has no paged keys")
    outputs, lse = [], []
    bounds_q, bounds_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for i in range(len(bounds_q) - 1):
        one_q = q[None, bounds_q[i] : bounds_q[i + 1]]
        one_k, one_v = (x[None, bounds_k[i] : bounds_k[i + 1]] for x in (k, v))
        output, one_lse, _ = flash_attn_func(
            one_q,
            one_k,
            one_v,
            dropout_p,
            softmax_scale,
            causal,
            window_size,
            softcap,
            alibi_slopes,
            deterministic,
            return_attn_probs=True,
        )
        outputs.append(output[0])
        lse.append(one_lse[0])
    output = torch.cat(outputs)
    return (output, torch.cat(lse, -1), None) if return_attn_probs else output


@contextmanager
def as_flash_attention_2(
    function: Callable[..., Any] = flash_attn_func, varlen_function: Callable[..., Any] = flash_attn_varlen_func
) -> Iterator[None]:
    """Makes the reference, or other functions like flash-attn's, transformers' flash_attention_2 for a while.

    A model is switched by ``model.config._attn_implementation = "flash_attention_2"`` (and on its sub-configs):
    ``set_attn_implementation`` would ask for the flash-attn package.
    """
    names = ("_flash_fn", "_flash_varlen_fn", "_flash_with_kvcache_fn", "_pad_fn", "_unpad_fn")
    names += ("_process_flash_kwargs_fn", "_loaded_implementation")
    before = {name: getattr(flash_utils, name) for name in names}
    reference = (
        function,
        varlen_function,
        None,
        flash_utils._pad_input,
        flash_utils._unpad_input,
        flash_utils._lazy_define_process_function(varlen_function),
        "flash_attention_2",
    )
    try:
        for name, value in zip(names, reference, strict=True):
            setattr(flash_utils, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(flash_utils, name, value)
