"""The native core as XLA calls it: buffers where they lie, results written where XLA wants them.

native/xla/attention.cpp is the other side; it says which arguments come in which order. Problems
here have one batch dimension, which is 1 where an array is shared; masks are in their normal form.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from regard.kernels import native
from regard.kernels.structs import score_code
from regard.masks import Normal
from regard.problem import Problem

__all__ = ["available", "backward", "forward"]

# Of XLA's interface, those whose structs native/xla/ffi.h was compared with.
_MINOR_VERSIONS = (3, 2, 1)

_ABSENT = np.zeros(0, np.float32)


@functools.cache
def available() -> str | None:
    """None if XLA takes our functions, else why not; registers them."""
    reason = native.available()
    if reason is not None:
        return reason
    for minor_version in _MINOR_VERSIONS:
        try:
            for name, function in native.xla_functions(minor_version).items():
                jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(function), platform="cpu")
        except Exception as error:  # of XLA, which has no class for it
            reason = f"XLA does not take our functions: {error}"
        else:
            return None
    return reason


def forward(problem: Problem) -> tuple[Any, Any]:
    """Output (B, H, Lq, E), None without values, and lse (B, H, Lq)."""
    shape = None if problem.value is None else (*problem.query.shape[:-1], problem.value_size)
    results = (
        _result(shape, problem.dtype, problem.layout),
        _result(problem.query.shape[:-1], problem.accumulation_dtype),
    )
    output, lse = _call("regard_xla_forward", problem, results, _operands(problem))
    return (None if shape is None else _turned(output, problem.layout)), lse


def backward(
    problem: Problem, kept: dict[str, Any], wanted: dict[str, tuple[int, ...]]
) -> dict[str, Any]:
    """The gradients that `wanted` names with their shapes: query, key, value, bias, vector.

    kept: output, lse, d_output and d_lse; None for an output or d_lse that is absent.
    """
    layout = problem.layout
    dtypes = dict.fromkeys(("query", "key", "value"), problem.dtype)
    results = (
        *(_result(wanted.get(name), dtype, layout) for name, dtype in dtypes.items()),
        *(_result(wanted.get(name), problem.accumulation_dtype) for name in ("bias", "vector")),
    )
    more = (kept[name] for name in ("output", "lse", "d_output", "d_lse"))
    operands = (*_operands(problem), *(_turned(_or_absent(array), layout) for array in more))
    *arrays, bias, vector = _call("regard_xla_backward", problem, results, operands)
    found = {name: _turned(array, layout) for name, array in zip(dtypes, arrays, strict=True)}
    found |= {"bias": bias, "vector": vector}
    return {name: array for name, array in found.items() if name in wanted}


def _call(name: str, problem: Problem, results: Any, operands: tuple[Any, ...]) -> Any:
    return jax.ffi.ffi_call(name, results)(
        *operands,
        blhd=np.int64(problem.layout == "BLHD"),
        by_distance=np.int64(problem.by_distance),
        dropout=np.float64(problem.dropout_p),
        negative_slope=np.float64(problem.negative_slope),
        scale=np.float64(problem.scale),
        score=np.int64(score_code(problem)),
        softcap=np.float64(problem.softcap),
    )


def _operands(problem: Problem) -> tuple[Any, ...]:
    mask = problem.mask
    assert mask is None or isinstance(mask, Normal)
    arrays = (problem.query, problem.key, problem.value)
    given = (
        *(None if array is None else _turned(array, problem.layout) for array in arrays),
        None if mask is None else mask.intervals,
        None if mask is None else mask.dense,
        problem.bias,
        None if problem.sinks is None else problem.sinks.astype(problem.accumulation_dtype),
        problem.dropout_seed,
        None if problem.vector is None else problem.vector.astype(problem.accumulation_dtype),
    )
    return tuple(_or_absent(array) for array in given)


def _or_absent(array: Any) -> Any:
    return _ABSENT if array is None else array


def _turned(array: Any, layout: str) -> Any:
    """Between (B, heads, L, size) and the caller's layout; XLA lets two such turns cancel."""
    return array.swapaxes(1, 2) if layout == "BLHD" and array.ndim == 4 else array


def _result(shape: tuple[int, ...] | None, dtype: str, layout: str = "BHLD") -> Any:
    if shape is None:
        return jax.ShapeDtypeStruct(_ABSENT.shape, _ABSENT.dtype)
    if layout == "BLHD":
        shape = (shape[0], shape[2], shape[1], shape[3])
    return jax.ShapeDtypeStruct(shape, dtype)
