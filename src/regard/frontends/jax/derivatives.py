"""Gradients: attention and its log-sum-exp, and the transposed product.

With ds_ij = p_ij (dP_ij − δ_i), all gradients of the weights have this one form:

    y = P v     given dy:  dP_ij = dy_i · v_j,  δ_i = dy_i · y_i − dlse_i,  dv = Pᵀ dy
    x = Pᵀ y    given dx:  dP_ij = y_i · dx_j,  δ_i = y_i · (P dx)_i,      dy = P dx

so the transposed product's backward is attention's, with values dx and output gradient y.

Gradients are differentiated again as the plain expression of own.py, in memory quadratic in length.
Arrays are in the order of `Problem.flatten`; those of masks and the seed have no gradient.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from regard.frontends.jax import kernel, own
from regard.problem import Problem

__all__ = ["attention", "transposed"]

_NAMES = ("query", "key", "value", "bias", "sinks", "vector")

Arrays = tuple[Any, ...]


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Wanted:
    """The names of the arrays that want a gradient."""

    names: tuple[str, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attention(specification: str, backend: str | None, arrays: Arrays) -> tuple[Any, Any]:
    """Output (*batch, H, Lq, E), None without values, and lse (*batch, H, Lq)."""
    return kernel.forward(Problem.rebuild(specification, arrays), backend)


def _attention_forward(specification: str, backend: str | None, given: Arrays) -> Any:
    arrays, wanted = _taken(specification, given)
    output, lse = attention(specification, backend, arrays)
    return (output, lse), (arrays, output, lse, wanted)


def _attention_backward(
    specification: str, backend: str | None, kept: Any, given: tuple[Any, Any]
) -> tuple[Arrays]:
    arrays, output, lse, wanted = kept
    d_output, d_lse = (None if isinstance(d, SymbolicZero) else d for d in given)
    problem = Problem.rebuild(specification, arrays)
    if output is None:  # the log-sum-exp alone: as if values of size 0 had been there
        problem = problem.replace(value=problem.key[..., :0])
        output = problem.query[..., :0]
    if d_output is None:
        d_output = jnp.zeros_like(output)
    found = _gradients(problem, backend, wanted, output, lse, d_output, d_lse)
    return (_in_order(found, specification, len(arrays)),)


attention.defvjp(_attention_forward, _attention_backward, symbolic_zeros=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def transposed(specification: str, backend: str | None, arrays: Arrays, y: Any) -> Any:
    """weightsᵀ y: (*batch, H, Lk, C) for y (*batch, H, Lq, C)."""
    return _transposed(specification, backend, arrays, y)[0]


def _transposed(specification: str, backend: str | None, arrays: Arrays, y: Any) -> tuple[Any, Any]:
    """(weightsᵀ y, lse): the values' gradient where the output's gradient is y."""
    problem = Problem.rebuild(specification, arrays)
    lse = attention(specification, backend, arrays)[1]
    *lead, _, size = y.shape
    problem = problem.replace(value=jnp.zeros((*lead, problem.extent.keys, size), y.dtype))
    found = _gradients(problem, backend, _Wanted(("value",)), None, lse, y)
    return found["value"], lse


def _transposed_forward(specification: str, backend: str | None, given: Arrays, y: Any) -> Any:
    arrays, wanted = _taken(specification, given)
    result, lse = _transposed(specification, backend, arrays, y.value)
    return result, (arrays, y.value, lse, wanted)


def _transposed_backward(
    specification: str, backend: str | None, kept: Any, d_result: Any
) -> tuple[Arrays, Any]:
    arrays, y, lse, wanted = kept
    if isinstance(d_result, SymbolicZero):
        return (None,) * len(arrays), None
    # The values may come from a layout of their own: these are not the caller's.
    problem = Problem.rebuild(specification, arrays).replace(value=d_result, layout="BHLD")
    with_values, all_arrays = problem.flatten()
    d_y = attention(with_values, backend, all_arrays)[0]
    found = _gradients(problem, backend, wanted, d_y, lse, y)
    return _in_order(found, specification, len(arrays)), d_y


transposed.defvjp(_transposed_forward, _transposed_backward, symbolic_zeros=True)


def _gradients(
    problem: Problem,
    backend: str | None,
    wanted: _Wanted,
    output: Any,
    lse: Any,
    d_output: Any,
    d_lse: Any = None,
) -> dict[str, Any]:
    """The gradients wanted, by name; output None if the values alone want one, d_lse None is 0."""
    kept = {"output": output, "lse": lse, "d_output": d_output, "d_lse": d_lse}
    specification, arrays = problem.flatten()
    return _differentiable_gradients(specification, backend, wanted, arrays, kept)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _differentiable_gradients(
    specification: str,
    backend: str | None,
    wanted: _Wanted,
    arrays: Arrays,
    kept: dict[str, Any],
) -> dict[str, Any]:
    problem = Problem.rebuild(specification, arrays)
    names = tuple(name for name in wanted.names if name != "sinks")
    found = kernel.backward(problem, kept, names, backend) if names else {}
    if "sinks" in wanted.names:
        found["sinks"] = _of_sinks(problem.sinks, **kept)
    return found


def _again_forward(
    specification: str, backend: str | None, wanted: _Wanted, arrays: Arrays, kept: dict[str, Any]
) -> Any:
    found = _differentiable_gradients(specification, backend, wanted, arrays, kept)
    return found, (arrays, kept)


def _again_backward(
    specification: str, backend: str | None, wanted: _Wanted, saved: Any, given: dict[str, Any]
) -> tuple[Arrays, dict[str, Any]]:
    """Output and lse depend on the arrays, through which their share arrives."""
    arrays, kept = saved
    problem = Problem.rebuild(specification, arrays)
    inputs = {name: a for name in _NAMES if (a := getattr(problem, name)) is not None}
    upstream = {name: kept[name] for name in ("d_output", "d_lse")}

    def plain(inputs: dict[str, Any], upstream: dict[str, Any]) -> dict[str, Any]:
        (output, lse), pull = jax.vjp(lambda a: own.attention(problem.replace(**a)), inputs)
        d_lse = upstream["d_lse"]
        d_lse = jnp.zeros_like(lse) if d_lse is None else d_lse
        found = pull((upstream["d_output"].astype(output.dtype), d_lse))[0]
        return {name: found[name] for name in wanted.names}

    d_inputs, d_upstream = jax.vjp(plain, inputs, upstream)[1](given)
    d_kept = {name: d_upstream.get(name) for name in kept}
    return _in_order(d_inputs, specification, len(arrays)), d_kept


_differentiable_gradients.defvjp(_again_forward, _again_backward)


def _taken(specification: str, given: Arrays) -> tuple[Arrays, _Wanted]:
    """The arrays themselves, and those of them that a gradient is wanted of."""
    problem = Problem.rebuild(specification, given)
    named = ((name, getattr(problem, name)) for name in _NAMES)
    wanted = tuple(name for name, array in named if array is not None and array.perturbed)
    return tuple(array.value for array in given), _Wanted(wanted)


def _in_order(found: dict[str, Any], specification: str, count: int) -> Arrays:
    """Gradients in the order of the arrays, None for those that have none."""
    places = Problem.rebuild(specification, tuple(range(count)))
    ordered: list[Any] = [None] * count
    for name, gradient in found.items():
        if getattr(places, name) is not None:
            ordered[getattr(places, name)] = gradient
    return tuple(ordered)


def _of_sinks(sinks: Any, output: Any, lse: Any, d_output: Any, d_lse: Any) -> Any:
    """−Σ p_sink · δ, (H,); not by the kernel, which knows no sums for each element of vmap.

    Where the output is 0 its gradient does not count: a query that sees nothing may well be
    padding, with a gradient that was never written.
    """
    product = output.astype(lse.dtype) * d_output.astype(lse.dtype)
    delta = jnp.where(output == 0, 0, product).sum(axis=-1)
    delta = delta if d_lse is None else delta - d_lse
    sink = sinks.astype(lse.dtype)[:, None]
    weight = jnp.where(sink == -jnp.inf, 0, jnp.exp(sink - lse))
    summed = (weight * delta).sum(axis=(*range(delta.ndim - 2), -1))
    return -summed.astype(sinks.dtype)
