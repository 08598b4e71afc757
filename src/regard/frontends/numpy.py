"""Attention on NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from regard import dispatch
from regard.errors import OptionError
from regard.problem import Problem

__all__ = [
    "attend",
    "attention",
    "attention_lse",
    "broadcast",
    "check",
    "copy",
    "from_numpy",
    "host",
    "lse",
    "plan",
    "transposed",
    "untraced",
    "version",
]

Array = npt.NDArray[Any]


def attention(problem: Problem, backend: str | None) -> Array:
    """Output (B, H, Lq, E), or (B, Lq, H, E) in the layout BLHD."""
    output, view = _empty_output(problem)
    dispatch.forward(_seeded(problem), view, None, backend)
    return output


def attention_lse(problem: Problem, backend: str | None) -> tuple[Array, Array]:
    """The output as `attention` gives it, and the log-sum-exp (B, H, Lq)."""
    output, view = _empty_output(problem)
    total = _empty_lse(problem)
    dispatch.forward(_seeded(problem), view, total, backend)
    return output, total


def attend(
    problem: Problem, backend: str | None, fields: dict[str, Any]
) -> tuple[Array, Array | None]:
    """The output as `attention` gives it, and lse (B, H, Lq), with the read-outs' fields filled."""
    output, view = _empty_output(problem)
    total = _empty_lse(problem)
    if fields:
        dispatch.read_out(problem, view, total, fields, backend)
    else:
        dispatch.forward(problem, view, total, backend)
    return output, total


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


def broadcast(array: Array, shape: tuple[int, ...]) -> Array:
    """A view of that shape."""
    return np.broadcast_to(array, shape)


def check(**arrays: Array | None) -> None:
    """NumPy's arrays all lie in one memory: nothing to check."""


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


def _seeded(problem: Problem) -> Problem:
    if problem.dropout_p and problem.dropout_seed is None:
        raise OptionError(
            f"dropout_p={problem.dropout_p} without dropout_seed",
            "a seed, since NumPy has no generator that everybody shares",
            "pass dropout_seed=<an integer>",
        )
    return problem


def _empty_output(problem: Problem) -> tuple[Array, Array]:
    """An output in the caller's layout, and the same memory as (B, H, Lq, E)."""
    extent = problem.extent
    if problem.layout == "BHLD":
        output = np.empty((*extent.shape[:-1], problem.value_size), problem.query.dtype)
        return output, output
    shape = (*extent.batch, extent.queries, extent.heads, problem.value_size)
    output = np.empty(shape, problem.query.dtype)
    return output, output.swapaxes(-3, -2)


def _empty_lse(problem: Problem) -> Array:
    return np.empty(problem.extent.shape[:-1], problem.accumulation_dtype)
