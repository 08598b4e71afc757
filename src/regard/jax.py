"""For JAX programs: `jax.nn.dot_product_attention` on Regard's kernels."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from regard._arrays import is_array
from regard.errors import ArrayTypeError, OptionError
from regard.frontends.jax import attention_lse
from regard.masks import Mask, as_mask, causal, lengths, window
from regard.problem import make

__all__ = ["dot_product_attention"]


def dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: Any = None,
    key_value_seq_lengths: Any = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | None = None,
    return_residual: bool = False,
) -> Any:
    """`jax.nn.dot_product_attention` with its own signature and conventions, in linear memory.

    B batch, T queries, S keys, N query heads, K key heads (N divisible by K), H head size.

    Args:
        query: (B, T, N, H) or (T, N, H).
        key: (B, S, K, H) or (S, K, H).
        value: as key; its last size may be another.
        bias: added to the scores; broadcasts to (B, N, T, S).
        mask: boolean, True = may attend; broadcasts to (B, N, T, S).
        scale: a number; default 1/√H.
        is_causal: query i sees key j when j <= i (upper left).
        query_seq_lengths: (B,) integers; outputs beyond are 0.
        key_value_seq_lengths: (B,) integers; keys beyond are hidden.
        local_window_size: (left, right), or one number for both: −left <= j − i <= right.
        implementation: None for Regard's kernels; "xla" and "cudnn" are jax.nn's own.
        return_residual: also return the log-sum-exp (B, T, N), in the keys' type and detached.

    Returns:
        The output, shaped as query (with value's last size); or (output, log-sum-exp). As in
        jax.nn, a query that sees nothing gets the mean of all values.

    Raises: regard.errors.ShapeError, DtypeError, MaskError, OptionError, ArrayTypeError (all
        ValueErrors or TypeErrors).
    """
    options = {
        "scale": scale,
        "is_causal": is_causal,
        "local_window_size": local_window_size,
        "return_residual": return_residual,
    }
    arrays = {
        "query_seq_lengths": query_seq_lengths,
        "key_value_seq_lengths": key_value_seq_lengths,
    }
    if implementation is not None:
        own: Any = jax.nn.dot_product_attention
        return own(
            query, key, value, bias, mask, implementation=implementation, **options, **arrays
        )
    if is_array(scale):
        raise OptionError("scale as an array", "a plain number", "multiply the queries by it")
    for name, array in {"query": query, "key": key, "value": value}.items():
        if not is_array(array):
            raise ArrayTypeError(f"{name} of type {type(array).__name__}", "an array")
    return _attention(
        *(query, key, value, _array("bias", bias), _array("mask", mask)),
        scale=scale,
        is_causal=bool(is_causal),
        local_window_size=_window(local_window_size),
        return_residual=bool(return_residual),
        **{name: _array(name, array) for name, array in arrays.items()},
    )


def _array(name: str, given: Any) -> Any:
    if given is None:
        return None
    try:
        return jnp.asarray(given)
    except (TypeError, ValueError) as error:
        raise ArrayTypeError(f"{name} of type {type(given).__name__}", "an array") from error


def _window(given: Any) -> tuple[Any, Any] | None:
    """(left, right)"""
    if given is None:
        return None
    if isinstance(given, int):
        return given, given
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise OptionError(f"local_window_size={given!r}", "(left, right), or one number for both")
    left, right = given
    return left, right


@functools.partial(
    jax.jit, static_argnames=("scale", "is_causal", "local_window_size", "return_residual")
)
def _attention(
    query: Any,
    key: Any,
    value: Any,
    bias: Any,
    mask: Any,
    *,
    scale: float | None,
    is_causal: bool,
    query_seq_lengths: Any,
    key_value_seq_lengths: Any,
    local_window_size: tuple[Any, Any] | None,
    return_residual: bool,
) -> Any:
    seen, may_hide_all = _mask(
        mask, is_causal, query_seq_lengths, key_value_seq_lengths, local_window_size
    )
    problem = make(
        *(_with_batch(array) for array in (query, key, value)),
        mask=seen,
        bias=None if bias is None else _added(bias, query.dtype),
        scale=scale,
        layout="BLHD",
    )
    output, lse = attention_lse(problem, None)
    lse = lse.swapaxes(-2, -1)
    if may_hide_all:
        output = _mean_where_blind(output, lse, _with_batch(value), query_seq_lengths)
    output = output.reshape(*query.shape[:-1], output.shape[-1])
    if not return_residual:
        return output
    # What jax.nn's finite stand-in for −∞ leaves of a row that sees nothing.
    hidden = -0.7 * float(jnp.finfo(jnp.float32).max)
    residual = jnp.maximum(lse, hidden).astype(key.dtype).reshape(query.shape[:-1])
    return output, jax.lax.stop_gradient(residual)


def _mask(
    mask: Any,
    is_causal: bool,
    query_lengths: Any,
    key_lengths: Any,
    window_size: tuple[Any, Any] | None,
) -> tuple[Mask | None, bool]:
    """The mask, and whether it may hide every key from a query."""
    parts: list[Mask] = []
    if mask is not None:
        parts.append(as_mask(mask))
    if window_size is not None:
        parts.append(window(*window_size, align="upper_left"))
    if query_lengths is not None or key_lengths is not None:
        parts.append(lengths(keys=key_lengths, queries=query_lengths))
    may_hide_all = bool(parts)
    if is_causal:
        parts.append(causal(align="upper_left"))
    return functools.reduce(Mask.__and__, parts) if parts else None, may_hide_all


def _mean_where_blind(output: Any, lse: Any, value: Any, query_lengths: Any) -> Any:
    """jax.nn hides a score by a large negative number, so that rows of these are uniform."""
    blind = lse == -jnp.inf
    if query_lengths is not None:
        blind &= jnp.arange(lse.shape[1])[:, None] < query_lengths[:, None, None]
    mean = value.mean(axis=1, keepdims=True)
    mean = jnp.repeat(mean, output.shape[2] // mean.shape[2], axis=2)
    return jnp.where(blind[..., None], mean, output)


def _with_batch(array: Any) -> Any:
    return array[None] if array.ndim == 3 else array


def _added(bias: Any, dtype: Any) -> Any:
    """The bias in a type that the kernels add."""
    return (
        bias
        if bias.dtype in (dtype, jnp.float32)
        else bias.astype(jnp.promote_types(dtype, jnp.float32))
    )
