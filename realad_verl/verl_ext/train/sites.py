"""verl's own places where flash-attn kernels are called, beside transformers' (see realad_verl.attention.sites).

With ``use_remove_padding`` verl replaces the attention of Qwen2-VL and Qwen2.5-VL by a function that holds
``flash_attn_varlen_func`` itself, for packs of several sequences. A read-out that sat at transformers' sites only would
see nothing there, and say so. Packs of one sequence, and all other families, end in transformers' sites, after Ulysses'
all-to-all: heads are then spread over ranks, which ``reading(..., head_group=...)`` undoes.
"""

from realad_verl.attention.sites import Site, read_flash


def verl_sites() -> tuple[Site, ...]:
    """The sites of the installed verl; empty where flash-attn is not installed (nothing can call it then)."""
    from verl.models.transformers import glm4v, qwen2_vl

    parameters = ("q", "k", "cu_seqlens_q", "causal")
    return tuple(
        Site(module, "flash_attn_varlen_func", read_flash, parameters)
        for module in (qwen2_vl, glm4v)
        if hasattr(module, "flash_attn_varlen_func")
    )
