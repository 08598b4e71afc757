"""Attention on NumPy arrays."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from regard import dispatch
from regard._arrays import as_it_is as enter
from regard._arrays import as_it_is as leave
from regard.errors import DtypeError, OptionError
from regard.frontends.repeated import FRONT_ENDS
from regard.masks import Mask
from regard.problem import Problem, make

__all__ = [
    "attend",
    "attention",
    "attention_lse",
    "broadcast",
    "cast",
    "check",
    "copy",
    "enter",
    "from_numpy",
    "host",
    "leave",
    "lse",
    "make",
    "plan",
    "repeated",
    "signature",
    "take",
    "transposed",
    "untraced",
    "version",
    "wants_gradients",
]

Array = npt.NDArray[Any]
FRONT_ENDS.append((np.ndarray, sys.modules[__name__]))


def attention(problem: Problem, backend: str | None) -> Array:
    """Output (B, H, Lq, E), or (B, Lq, H, E) in the layout BLHD."""
    view = empty_output(problem)
    dispatch.forward(_seeded(problem), view, None, backend)
    return _in_layout(view, problem)


def attention_lse(problem: Problem, backend: str | None) -> tuple[Array, Array]:
    """The output as `attention` gives it, and the log-sum-exp (B, H, Lq)."""
    view, total = empty_output(problem), _empty_lse(problem)
    dispatch.forward(_seeded(problem), view, total, backend)
    return _in_layout(view, problem), total


def attend(
    problem: Problem, backend: str | None, fields: dict[str, Any]
) -> tuple[Array, Array | None]:
    """The output as `attention` gives it, and lse (B, H, Lq), with the read-outs' fields filled."""
    view, total = empty_output(problem), _empty_lse(problem)
    if fields:
        dispatch.read_out(problem, view, total, fields, backend)
    else:
        dispatch.forward(problem, view, total, backend)
    return _in_layout(view, problem), total


def lse(problem: Problem, backend: str | None) -> Array:
    """(B, H, Lq) log-sum-exp in the accumulation type."""
    total = _empty_lse(problem)
    dispatch.forward(problem.replace(value=None), None, total, backend)
    return total


def transposed(problem: Problem, y: Array, backend: str | None) -> Array:
    """weightsᵀ y: (B, H, Lk, C) for y (B, H, Lq, C). It is the gradient of the values at dy = y."""
    *lead, _, size = y.shape
    result = np.zeros((*lead, problem.extent.keys, size), y.dtype)
    total = lse(problem, backend)
    dispatch.backward(problem.replace(value=result), None, total, y, None, backend, d_value=result)
    return result


def from_numpy(array: Array, like: Array) -> Array:
    """The array itself."""
    return array


def cast(array: Array, dtype: str) -> Array:
    """The array in that type."""
    return array.astype(dtype)


def take(table: Array, index: Array) -> Array:
    """table[…, index] for an index (n,); (…, H, n) of a table (H, m) for an index (…, n)."""
    return np.moveaxis(table[..., index], -index.ndim - 1, -2)


def wants_gradients(*arrays: Any) -> bool:
    """NumPy has none."""
    return False


def broadcast(array: Array, shape: tuple[int, ...]) -> Array:
    """A view of that shape."""
    return np.broadcast_to(array, shape)


def check(**arrays: Array | None) -> None:
    """All lie in one memory; a kernel reads numbers in this machine's order of bytes."""
    for name, array in arrays.items():
        if array is not None and not array.dtype.isnative:
            raise DtypeError(
                f"{name} of type {array.dtype}, whose bytes lie in the other order",
                "this machine's order of bytes",
                'convert it: array.astype(array.dtype.newbyteorder("="))',
            )


def version(array: Any) -> None:
    """NumPy does not count changes."""


def copy(array: Array) -> Array:
    """An independent copy."""
    return array.copy()


def host(problem: Problem, backend: str | None) -> tuple[Problem, str | None]:
    """The problem with its arrays in main memory, and what reads it out: as they are."""
    return problem, backend


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself."""
    return function


def plan(problem: Problem, backend: str | None) -> dispatch.Plan:
    """What would compute the problem."""
    return dispatch.plan(problem, backend)


def signature(query: Any, key: Any, value: Any, bias: Any = None) -> tuple[Any, ...] | None:
    """All that a call depends on but addresses and elements; None where they are not plain."""
    if not type(query) is type(key) is type(value) is np.ndarray:
        return None
    if not (query.flags.aligned and key.flags.aligned and value.flags.aligned):
        return None
    more = None
    if bias is not None:
        if type(bias) is not np.ndarray or not bias.flags.aligned:
            return None
        more = (bias.dtype, bias.shape, bias.strides)
    # fmt: off
    return (
        more,
        query.dtype, query.shape, query.strides,
        key.dtype, key.shape, key.strides,
        value.dtype, value.shape, value.strides,
    )
    # fmt: on


def repeated(problem: Problem, backend: str | None) -> Repeated | None:
    """How to repeat a call without sinks and dropout; None: it goes another way."""
    prepared = dispatch.prepare(problem, empty_output(problem), backend)
    return None if prepared is None else Repeated(problem.output_shape, prepared)


class Repeated:
    """A plain call for all arrays of its signature."""

    def __init__(self, shape: tuple[int, ...], prepared: dispatch.Prepared) -> None:
        self._prepared, self._shape = prepared, shape

    def output(
        self, query: Array, key: Array, value: Array, bias: Array | None, mask: Mask | None
    ) -> Array:
        """The output in the caller's layout."""
        output = np.empty(self._shape, query.dtype)
        seen, _alive = self._prepared.seen(mask)
        of_bias = 0 if bias is None else bias.ctypes.data
        of_query, of_key, of_value = (array.ctypes.data for array in (query, key, value))
        self._prepared.forward(of_query, of_key, of_value, of_bias, seen, output.ctypes.data)
        return output


def empty_output(problem: Problem) -> Array:
    """(B, H, Lq, E), in memory as the caller's layout has it."""
    output = np.empty(problem.output_shape, problem.query.dtype)
    return output if problem.layout == "BHLD" else output.swapaxes(-3, -2)


def _seeded(problem: Problem) -> Problem:
    if problem.dropout_p and problem.dropout_seed is None:
        raise OptionError(
            f"dropout_p={problem.dropout_p} without dropout_seed",
            "a seed, since NumPy has no generator that everybody shares",
            "pass dropout_seed=<an integer>",
        )
    return problem


def _in_layout(output: Array, problem: Problem) -> Array:
    return output if problem.layout == "BHLD" else output.swapaxes(-3, -2)


def _empty_lse(problem: Problem) -> Array:
    return np.empty(problem.extent.shape[:-1], problem.accumulation_dtype)
