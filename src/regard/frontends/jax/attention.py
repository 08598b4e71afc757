"""Which way a call on JAX arrays takes: our kernels, or on other devices the plain expression.

A problem crosses jit's border as a text and a flat tuple of arrays (`Problem.flatten`). Masks are
brought into their normal form before, where their arrays may still be known.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from regard import dispatch
from regard.errors import BackendError, OptionError
from regard.frontends.jax import derivatives, ffi, kernel, masks, own
from regard.masks import edge_count, flatten
from regard.problem import Problem

__all__ = [
    "attend",
    "attention",
    "attention_lse",
    "broadcast",
    "cast",
    "check",
    "copy",
    "from_numpy",
    "host",
    "lse",
    "plan",
    "take",
    "transposed",
    "untraced",
    "version",
]


def attention(problem: Problem, backend: str | None) -> Any:
    """Output (B, H, Lq, E), or (B, Lq, H, E) in the layout BLHD."""
    return attention_lse(problem, backend)[0]


def attention_lse(problem: Problem, backend: str | None) -> tuple[Any, Any]:
    """The output as `attention` gives it, and the log-sum-exp (B, H, Lq)."""
    specification, arrays = _prepared(problem).flatten()
    found: tuple[Any, Any] = _attention(specification, _way(problem, backend), arrays)
    return found


def attend(
    problem: Problem, backend: str | None, fields: dict[str, Any]
) -> tuple[Any, npt.NDArray[Any]]:
    """The output as `attention` gives it, and lse (B, H, Lq), with the read-outs' fields filled.

    Outside of transformations only: the fields are NumPy's arrays.
    """
    output, found = attention_lse(problem, backend)
    total = np.array(found)  # a copy, since kernels write where they are told
    if fields:
        moved, reader = host(problem, backend)
        dispatch.read_out(moved, None, total, fields, reader)
    return output, total


def lse(problem: Problem, backend: str | None) -> Any:
    """(B, H, Lq) log-sum-exp in the accumulation type."""
    problem = problem.replace(value=None)
    if isinstance(problem.query, np.ndarray):  # what `host` has moved to main memory
        total = np.empty(problem.query.shape[:-1], problem.accumulation_dtype)
        dispatch.forward(problem, None, total, backend)
        return total
    return attention_lse(problem, backend)[1]


def transposed(problem: Problem, y: Any, backend: str | None) -> Any:
    """weightsᵀ y: (B, H, Lk, C) for y (B, H, Lq, C)."""
    specification, arrays = _prepared(problem.replace(value=None)).flatten()
    return _transposed(specification, _way(problem, backend), arrays, y)


def from_numpy(array: npt.NDArray[Any], like: Any) -> Any:
    """A JAX array; 64-bit types become 32-bit ones unless jax_enable_x64 is set."""
    return jnp.asarray(array)


def cast(array: Any, dtype: str) -> Any:
    """The array in that type."""
    return array.astype(dtype)


def take(table: Any, index: Any) -> Any:
    """table[…, index] for an index (n,); (…, H, n) of a table (H, m) for an index (…, n)."""
    return jnp.moveaxis(table[..., index], -index.ndim - 1, -2)


def broadcast(array: Any, shape: tuple[int, ...]) -> Any:
    """The array repeated."""
    return jnp.broadcast_to(array, shape)


def check(**arrays: Any) -> None:
    """JAX itself says where arrays of several devices are used together."""


def version(array: Any) -> None:
    """JAX's arrays do not change."""


def copy(array: Any) -> Any:
    """An independent copy, which outlives a donated original."""
    return array.copy()


def host(problem: Problem, backend: str | None) -> tuple[Problem, str | None]:
    """The problem with its arrays as NumPy's, and the backend that reads it out.

    Raises: BackendError inside a transformation, where arrays have no values yet.
    """
    if any(isinstance(array, jax.core.Tracer) for array in problem.weight_arrays):
        raise BackendError(
            "a read-out inside jit, grad, vmap or scan, where arrays have no values yet",
            "attention, w @ v, w.mT @ y or w.lse(), which JAX can trace",
            "return the queries and keys from the function, and read out outside of it",
        )
    names = ("query", "key", "bias", "sinks", "vector")
    arrays = {name: getattr(problem, name) for name in names}
    moved = {name: None if a is None else np.asarray(a) for name, a in arrays.items()}
    return problem.replace(**moved, value=None), None if backend == "jax" else backend


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself: `host` refuses what is traced."""
    return function


def plan(problem: Problem, backend: str | None) -> dispatch.Plan:
    """What would compute the problem."""
    platform = _platform(problem)
    if _way(problem, backend) == "jax":
        why = "asked for by name" if backend else f"no kernels of ours for {platform}"
        details = {"runs on": platform, "memory": "quadratic in length"}
        return dispatch.Plan("jax", f"a plain expression of JAX's: {why}", details)
    arrays = () if problem.mask is None else flatten(problem.mask)[1]
    traced = any(isinstance(array, jax.core.Tracer) for array in arrays)
    made = dispatch.plan(problem.replace(mask=None) if traced else problem, backend)
    details = dict(made.details)
    if traced:
        details["mask"] = f"{problem.mask!r}: worked out when the function runs"
    if kernel.through_xla(made.backend):
        details["called by"] = "XLA's foreign-function interface, buffers where they lie"
    else:
        reason = "" if made.backend == "reference" else f" ({ffi.available()})"
        details["called by"] = f"jax.pure_callback, results copied{reason}"
    return dispatch.Plan(made.backend, made.reason, details)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _attention(specification: str, way: str, arrays: tuple[Any, ...]) -> tuple[Any, Any]:
    problem = _full_bias(Problem.rebuild(specification, arrays))
    if way == "jax":
        output, total = own.attention(problem)
    else:
        output, total = derivatives.attention(*_split(problem, way))
    if output is not None and problem.layout == "BLHD":
        output = output.swapaxes(-3, -2)
    return output, total


@functools.partial(jax.jit, static_argnums=(0, 1))
def _transposed(specification: str, way: str, arrays: tuple[Any, ...], y: Any) -> Any:
    problem = _full_bias(Problem.rebuild(specification, arrays))
    if way == "jax":
        return own.transposed(problem, y)
    return derivatives.transposed(*_split(problem, way), y)


def _split(problem: Problem, way: str) -> tuple[str, str, tuple[Any, ...]]:
    specification, arrays = problem.flatten()
    return specification, way, arrays


def _prepared(problem: Problem) -> Problem:
    """With the mask in its normal form and the seed as two words."""
    if edge_count(problem.mask) is not None and problem.bias is not None:
        raise BackendError(
            "a bias for the edges of a graph, on JAX arrays",
            "no bias, or one (B, H, Lq, Lk) with a boolean array as the mask",
        )
    return problem.replace(
        mask=masks.normal(problem.mask, problem.extent), dropout_seed=_seed(problem)
    )


def _full_bias(problem: Problem) -> Problem:
    """With a bias of full rank."""
    bias, rank = problem.bias, len(problem.extent.shape)
    if bias is None or bias.ndim == rank:
        return problem
    return problem.replace(bias=bias.reshape((1,) * (rank - bias.ndim) + bias.shape))


def _seed(problem: Problem) -> Any:
    """(2,) uint32 from a key of jax.random or an integer, low word first; None without dropout."""
    seed = problem.dropout_seed
    if not problem.dropout_p:
        return None
    if seed is None:
        raise OptionError(
            f"dropout_p={problem.dropout_p} without dropout_seed",
            "a seed, since JAX has no generator that everybody shares",
            "pass dropout_seed=<a key of jax.random, or an integer>",
        )
    if isinstance(seed, (int, np.integer)):
        low, high = int(seed) % 2**32, int(seed) // 2**32 % 2**32
        return np.array([low, high], np.uint32)
    if seed.ndim or jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        return jax.random.bits(seed, (2,), np.uint32)
    # Shifts of signed integers repeat the sign, so that −1 is 2⁶⁴ − 1 as it is for an int.
    half = seed.dtype.itemsize * 4
    high = seed >> 32 if seed.dtype.itemsize == 8 else (seed >> half) >> half
    return jnp.stack([seed.astype(np.uint32), high.astype(np.uint32)])


def _way(problem: Problem, backend: str | None) -> str:
    """ "jax" for the plain expression, else the kernel's name.

    Raises: BackendError where the one asked for by name cannot compute this.
    """
    if backend == "jax":
        return "jax"
    platform = _platform(problem)
    if platform == "cpu":
        return dispatch.choose(backend)[0]
    if backend is not None:
        raise BackendError(
            f"backend={backend!r} for arrays on {platform}", 'arrays on the CPU, or backend="jax"'
        )
    return "jax"


def _platform(problem: Problem) -> str:
    """Where the queries lie; of traced ones, where JAX computes by default."""
    query = problem.query
    if isinstance(query, jax.core.Tracer) or not hasattr(query, "devices"):
        return str(jax.default_backend())
    return str(next(iter(query.devices())).platform)
