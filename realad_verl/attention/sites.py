"""The places where attention kernels are called, and how they are wrapped while a reading runs.

Each place is a `Site`: an attribute of a module or class that is replaced during a reading and put back after it. The
wrappers change nothing of what a kernel computes: they pass the call on, then describe it to the reading. Where sites
are nested, the inner one reports first and the reading ignores what follows for that layer.

Transformers needs three sites. `AttentionInterface.get_interface` hands out the sdpa and eager functions (the
registered name stays, since the mask is chosen by it). flash-attn is met at the kernel itself: what
`lazy_import_flash_attention` returns, after unpadding, packing and any exchange of heads between ranks, so that
causality, window and sequence
boundaries are those the kernel is given. Code that holds flash-attn functions of its own adds a site:

    Site(their_module, "flash_attn_varlen_func", read_flash)
"""

import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import modeling_flash_attention_utils
from transformers.modeling_utils import AttentionInterface

from realad_verl.attention.calls import KernelCall, active_observer, listening_observer
from realad_verl.errors import UserError

Adapter = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Site:
    """An attribute ``name`` of ``owner`` that ``adapter`` wraps during a reading.

    ``parameters`` are the parameter names that the adapter relies on; they are checked when the site is wrapped.
    """

    owner: Any
    name: str
    adapter: Adapter
    parameters: tuple[str, ...] = ()


def read_sdpa(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a function of the signature of transformers' ``sdpa_attention_forward``.

    That function uses neither ``softcap`` nor sinks, so neither is in the probabilities.
    """

    @functools.wraps(original)
    def wrapped(module, query, key, value, attention_mask, *args, **kwargs):
        observer = listening_observer(module)
        if observer is None:
            return original(module, query, key, value, attention_mask, *args, **kwargs)
        output = original(module, query, key, value, attention_mask, *args, **kwargs)
        options = dict(zip(("dropout", "scaling", "is_causal"), args, strict=False)) | kwargs if args else kwargs
        causal = options.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        observer.saw(
            KernelCall(
                query,
                key,
                scale=_scale(options.get("scaling"), query),
                mask=attention_mask,
                causal=bool(causal) and attention_mask is None and query.shape[2] > 1,
            )
        )
        return output

    return wrapped


def read_eager(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a model's eager attention function, whose own probabilities are then used as they are."""

    @functools.wraps(original)
    def wrapped(module, query, key, value, attention_mask, *args, **kwargs):
        observer = listening_observer(module)
        output = original(module, query, key, value, attention_mask, *args, **kwargs)
        if observer is not None:
            if kwargs.get("dropout"):
                raise UserError("eager attention with dropout > 0 cannot be read: call model.eval(), or use sdpa")
            observer.saw(KernelCall(query, key, scale=_scale(kwargs.get("scaling"), query), weights_BHNN=output[1]))
        return output

    return wrapped


def read_flash(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps ``flash_attn_func`` or ``flash_attn_varlen_func``, or anything of their signature.

    Paged keys and ALiBi are refused.
    """
    signature = inspect.signature(original)

    @functools.wraps(original)
    def wrapped(*args, **kwargs):
        observer = listening_observer()
        if observer is None:
            return original(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        result = original(*args, **kwargs)
        bound.apply_defaults()
        padding_mask_BT, observer.padding_mask_BT = observer.padding_mask_BT, None
        observer.saw(_flash_call(bound.arguments, padding_mask_BT))
        return result

    return wrapped


def _flash_call(given: dict[str, Any], padding_mask_BT: Tensor | None) -> KernelCall:
    for refused in ("block_table", "alibi_slopes"):
        if given.get(refused) is not None:
            raise UserError(f"attention with {refused} cannot be read")
    query, key = given["q"], given["k"]
    cu_seqlens = given.get("cu_seqlens_q")
    packed = cu_seqlens is not None
    sink = given.get("s_aux") if given.get("s_aux") is not None else given.get("learnable_sink")
    window = tuple(-1 if side is None else int(side) for side in given.get("window_size") or (-1, -1))
    return KernelCall(
        query.transpose(0, 1)[None] if packed else query.transpose(1, 2),
        key.transpose(0, 1)[None] if packed else key.transpose(1, 2),
        scale=_scale(given.get("softmax_scale"), query),
        causal=bool(given.get("causal")),
        window=window,  # pyright: ignore[reportArgumentType]
        softcap=float(given.get("softcap") or 0.0),
        sink_H=sink,
        cu_seqlens=cu_seqlens,
        padding_mask_BT=padding_mask_BT if packed else None,
    )


def _scale(given: float | None, query: Tensor) -> float:
    return query.shape[-1] ** -0.5 if given is None else float(given)


# Asked for at every layer of every step of a generation.
_ADAPTERS = {
    "sdpa": functools.lru_cache(maxsize=32)(read_sdpa),
    "eager": functools.lru_cache(maxsize=32)(read_eager),
}


def _read_interface(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps ``AttentionInterface.get_interface``: what it hands out for sdpa and eager reports its calls."""

    @functools.wraps(original)
    def wrapped(self, attn_implementation, default):
        function = original(self, attn_implementation, default)
        if active_observer() is None:
            return function
        return _ADAPTERS[attn_implementation](function) if attn_implementation in _ADAPTERS else function

    return wrapped


def _read_flash_import(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps ``lazy_import_flash_attention``: its fixed-length and var-length kernels report their calls."""

    @functools.wraps(original)
    def wrapped(*args, **kwargs):
        (fixed, varlen, *others), process = original(*args, **kwargs)
        if active_observer() is not None:
            fixed, varlen = (None if kernel is None else read_flash(kernel) for kernel in (fixed, varlen))
        return (fixed, varlen, *others), process

    return wrapped


def _read_unpadding(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps transformers' ``_upad_input`` to know by which mask the kernel's pack was cut out of a padded batch."""

    @functools.wraps(original)
    def wrapped(query_layer, key_layer, value_layer, attention_mask, *args, **kwargs):
        observer = active_observer()
        if observer is not None:
            observer.padding_mask_BT = attention_mask
        return original(query_layer, key_layer, value_layer, attention_mask, *args, **kwargs)

    return wrapped


TRANSFORMERS_SITES = (
    Site(AttentionInterface, "get_interface", _read_interface, ("attn_implementation", "default")),
    Site(modeling_flash_attention_utils, "lazy_import_flash_attention", _read_flash_import),
    Site(modeling_flash_attention_utils, "_upad_input", _read_unpadding, ("attention_mask",)),
)


_lock = threading.Lock()
_wrapped: dict[tuple[int, str], tuple[int, Any]] = {}  # (id of owner, name) -> (readings that need it, the original)


@contextmanager
def wrapped_sites(sites: Iterable[Site]) -> Iterator[None]:
    """Wraps the sites for the time of a reading; readings in other threads share the wrappers.

    Raises:
        UserError: a site does not exist or lacks a parameter that its adapter relies on (another version of the
        library).
    """
    with ExitStack() as stack:
        for site in sites:
            _wrap(site)
            stack.callback(_unwrap, site)
        yield


@functools.lru_cache(maxsize=64)
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _wrap(site: Site) -> None:
    where = f"{getattr(site.owner, '__qualname__', None) or site.owner.__name__}.{site.name}"
    with _lock:
        count, original = _wrapped.get((id(site.owner), site.name), (0, None))
        if count == 0:
            original = getattr(site.owner, site.name, None)
            if original is None:
                raise UserError(f"{where} does not exist: this version of the library cannot be read")
            missing = set(site.parameters) - set(_parameters(original))
            if missing:
                raise UserError(
                    f"{where} has no parameter {sorted(missing)}: this version of the library cannot be read"
                )
            setattr(site.owner, site.name, site.adapter(original))
        _wrapped[(id(site.owner), site.name)] = (count + 1, original)


def _unwrap(site: Site) -> None:
    with _lock:
        count, original = _wrapped.pop((id(site.owner), site.name))
        if count > 1:
            _wrapped[(id(site.owner), site.name)] = (count - 1, original)
        else:
            setattr(site.owner, site.name, original)
