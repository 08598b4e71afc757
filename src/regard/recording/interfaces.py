"""The attention functions that transformers' models look up, wrapped while somebody watches.

A model asks `AttentionInterface.get_interface(name, eager)` for the function to call. While a watch
runs, that lookup returns a function that calls the one found, with what it was given, and then
shows the call to the session of its thread. The function's own result is returned.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regard.errors import ModelError
from regard.masks import causal
from regard.recording import flex
from regard.recording.call import Call, parts
from regard.recording.patch import Observer, Patch
from regard.recording.terms import Terms

__all__ = ["patch"]

# How far the model's own weights may lie from the operator's: its rounding, in the worst case.
_ROUNDING = {torch.float16: 5e-3, torch.bfloat16: 3e-2}


def patch(observer: Callable[[], Observer | None]) -> Patch:
    """The lookup, whose functions show their calls to the `observer()` of the calling thread.

    transformers need not be installed: a model of theirs has imported it already.
    """

    def wrap(original: Any) -> Any:
        @functools.wraps(original)
        def get_interface(self: Any, name: str, default: Any) -> Any:
            found = original(self, name, default)
            watching = observer()
            if watching is None:
                return found
            reader = _reader(name, found, default)
            return _watched(found, reader, watching) if reader else _opaque(found, name, watching)

        return get_interface

    return Patch(_interface, "get_interface", wrap)


def _interface() -> Any:
    return getattr(sys.modules.get("transformers.modeling_utils"), "AttentionInterface", None)


def _reader(name: str, found: Any, default: Any) -> Any:
    """What reads the calls of this function; None: only what it calls in turn may be seen.

    Our own implementation is one of those: own.py sees what it calls.
    """
    if found is default:
        return _read_eager
    if found is _stock("sdpa_attention", "sdpa_attention_forward"):
        return _read_sdpa
    if found is _stock("flex_attention", "flex_attention_forward"):
        return _read_flex
    return None


def _stock(module: str, name: str) -> Any:
    return getattr(sys.modules.get(f"transformers.integrations.{module}"), name, None)


def _watched(function: Any, reader: Any, observer: Observer) -> Any:
    @functools.wraps(function)
    def attend(module: Any, query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        return observer.run(
            lambda result: _with_flow(
                reader(module, query, key, args, kwargs, result), args, kwargs, result
            ),
            module,
            lambda: function(module, query, key, *args, **kwargs),
        )

    return attend


def _with_flow(call: Call, args: Any, kwargs: dict[str, Any], result: Any) -> Call:
    """The call with its values, and its output, which models get as (B, Lq, H, E)."""
    value = args[0] if args else kwargs.get("value")
    output = result[0] if isinstance(result, tuple) else result
    return call.replace(value=value, output=output, swapped=True)


def _opaque(function: Any, name: str, observer: Observer) -> Any:
    """A function that nothing is known of: a call is missed unless it calls one that is known."""

    def missed(result: Any) -> Call:
        raise ModelError(
            f"the attention implementation {name!r}, whose weights cannot be known",
            remedy='load the model with attn_implementation="sdpa" or "eager"',
        )

    @functools.wraps(function)
    def attend(module: Any, *args: Any, **kwargs: Any) -> Any:
        return observer.run(missed, module, lambda: function(module, *args, **kwargs), opaque=True)

    return attend


def _read_eager(
    module: Any, query: Tensor, key: Tensor, args: Any, kwargs: dict[str, Any], result: Any
) -> Call:
    """The model's own function: is_causal means nothing to it, everything is in its mask."""
    call = Call(
        query,
        key,
        terms=_terms(args, kwargs),
        scale=_number(kwargs.get("scaling")),
        softcap=_number(kwargs.get("softcap")),
        sinks=kwargs.get("s_aux"),
    )
    drops = module.training and kwargs.get("dropout", 0.0) > 0
    shown = result[1] if isinstance(result, tuple) and len(result) > 1 else None
    if isinstance(shown, Tensor) and not drops and _eager_differs(call, shown):
        raise ModelError(
            "its weights are not the softmax of scaled dot products, bias and mask that its "
            "arguments tell of"
        )
    return call


def _read_sdpa(
    module: Any, query: Tensor, key: Tensor, args: Any, kwargs: dict[str, Any], result: Any
) -> Call:
    """sdpa_attention_forward: without a mask, causal from the upper left if there is a choice."""
    if kwargs.get("cache") is not None:
        raise ModelError("a paged cache")
    mask = _mask(args, kwargs)
    is_causal = kwargs.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    limited = is_causal and mask is None and query.shape[2] > 1
    return Call(
        query,
        key,
        terms=_terms(args, kwargs),
        mask=causal("upper_left") if limited else None,
        scale=_number(kwargs.get("scaling")),
    )


def _read_flex(
    module: Any, query: Tensor, key: Tensor, args: Any, kwargs: dict[str, Any], result: Any
) -> Call:
    """flex_attention_forward: a block mask, or numbers that are added."""
    mask, terms = _mask(args, kwargs), []
    if isinstance(mask, Tensor):
        terms.append(mask[..., : key.shape[-2]])
    elif mask is not None:
        sizes = (*query.shape[:-1], key.shape[-2])
        terms.append(flex.seen_by(mask.mask_mod, sizes, query.device))
    if kwargs.get("position_bias") is not None:
        terms.append(kwargs["position_bias"])
    return Call(
        query,
        key,
        terms=tuple(terms),
        scale=_number(kwargs.get("scaling")),
        softcap=_number(kwargs.get("softcap")),
        sinks=kwargs.get("s_aux"),
    )


def _mask(args: Any, kwargs: dict[str, Any]) -> Any:
    """The fifth argument, attention_mask; `args` begin at the fourth, the values."""
    return args[1] if len(args) > 1 else kwargs.get("attention_mask")


def _terms(args: Any, kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    return tuple(t for t in (_mask(args, kwargs), kwargs.get("position_bias")) if t is not None)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _eager_differs(call: Call, shown: Tensor) -> bool:
    """Whether the weights that a model shows are not the operator's: three rows are compared.

    Not every model's function does what its arguments say. Where there is a sink, the weights may
    be shown without it (the model then scales its output): then rows are compared as parts of their
    sum.
    """
    count = call.query.shape[-2]
    if tuple(shown.shape[-2:]) != (count, call.key.shape[-2]):
        return True
    rows = sorted({0, count // 2, count - 1})
    found = parts(call.rows(rows), Terms()).operator().dense()
    wanted = shown.detach()[..., rows, :].to(found.dtype)
    total, sees = found.sum(dim=-1, keepdim=True), found.sum(dim=-1) > 0
    near = _ROUNDING.get(shown.dtype, 1e-4)
    alike = torch.allclose(found[sees], wanted[sees], rtol=0, atol=near)
    if not alike and call.sinks is not None:
        alike = torch.allclose((found / total)[sees], wanted[sees], rtol=0, atol=near)
    return not alike
