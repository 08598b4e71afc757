"""flex_attention, read as a Call: its functions are asked for every pair of query and key.

mask_mod says what is seen. score_mod may be any function of a score and its place; it is one that
attention here knows if it is a scale, a softcap and a bias, in this order. That is tried with a few
scores: what it makes of 0 is the bias, and what it makes of others beyond that must be the same in
all places. Memory is quadratic in length where there is a score_mod, as everywhere with a bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regard.errors import ModelError
from regard.recording.call import Call

__all__ = ["FUNCTION", "read", "seen_by"]

FUNCTION = torch.ops.higher_order.flex_attention

_PROBES = (-7.0, -1.0, 0.5, 3.0)
_HUGE = 1e30
_MOST_PAIRS = 1 << 26  # of queries and keys, for which a score_mod is asked


def read(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[..., Tensor],
    block_mask: tuple[Any, ...],
    scale: float,
    kernel_options: Any = None,
    score_arrays: tuple[Any, ...] = (),
    mask_arrays: tuple[Any, ...] = (),
) -> Call:
    """The call for the arguments of the operator below PyTorch's function.

    Raises: ModelError for a score_mod that is no scale, softcap and bias, or asks for too many.
    """
    sizes = (*query.shape[:-1], key.shape[-2])
    mask_mod = block_mask[-1]
    seen = seen_by(lambda *place: mask_mod(*place, *mask_arrays), sizes, query.device)
    call = Call(query, key, terms=(seen,), scale=float(scale), value=value)
    if math.prod(sizes) > _MOST_PAIRS:
        raise ModelError(f"a score_mod for {math.prod(sizes):,} pairs of queries and keys")
    return _modified(call, lambda *given: score_mod(*given, *score_arrays), sizes)


def seen_by(mask_mod: Callable[..., Tensor], sizes: tuple[int, ...], device: Any) -> Tensor:
    """(B, H, Lq, Lk) booleans; dimensions that the function does not depend on have size 1."""
    seen: Tensor = _everywhere(mask_mod, (), sizes, device)
    for axis in (0, 1):
        if seen.shape[axis] > 1 and bool((seen == seen.narrow(axis, 0, 1)).all()):
            seen = seen.narrow(axis, 0, 1)
    return seen


def _modified(call: Call, score_mod: Callable[..., Tensor], sizes: tuple[int, ...]) -> Call:
    def made_of(score: float) -> Tensor:
        value = torch.tensor(score, device=call.query.device)
        return _everywhere(score_mod, (value,), sizes, call.query.device).double()

    bias = made_of(0.0)
    if not bias.isfinite().any():  # everything is hidden
        return call.replace(terms=(*call.terms, bias.float()))
    shown = bias.isfinite()
    base = bias.masked_fill(~shown, 0)
    beyond = {score: made_of(score) - base for score in (*_PROBES, _HUGE)}
    alike = {score: _one(values[shown]) for score, values in beyond.items()}
    cap = alike.pop(_HUGE)
    slope = alike[0.5] / 0.5 if cap > _HUGE / 1e6 else 0.0
    wanted: Callable[[float], float] = lambda score: slope * score  # noqa: E731
    if not slope:
        wanted = lambda score: cap * math.tanh(score / cap)  # noqa: E731
    if not all(math.isclose(wanted(s), f, rel_tol=1e-4, abs_tol=1e-5) for s, f in alike.items()):
        raise ModelError("a score_mod that is no scale, softcap and bias")
    terms = (*call.terms, bias.float()) if bias.any() else call.terms
    assert call.scale is not None
    if slope:
        return call.replace(terms=terms, scale=call.scale * slope)
    return call.replace(terms=terms, softcap=cap)


def _one(values: Tensor) -> float:
    """The value that is the same everywhere. Raises ModelError."""
    first = values.flatten()[0]
    if not torch.allclose(values, first, rtol=1e-4, atol=1e-5):
        raise ModelError("a score_mod that changes scores differently from place to place")
    return float(first)


def _everywhere(
    function: Callable[..., Tensor], first: tuple[Tensor, ...], sizes: tuple[int, ...], device: Any
) -> Tensor:
    """(B, H, Lq, Lk): what a function of one place makes of each."""
    plain = (None,) * len(first)
    for axis in reversed(range(4)):
        places = tuple(0 if axis == n else None for n in range(4))
        function = torch.vmap(function, in_dims=(*plain, *places))
    found = function(*first, *(torch.arange(size, device=device) for size in sizes))
    return found.expand(sizes) if isinstance(found, Tensor) else found
