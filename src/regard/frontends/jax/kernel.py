"""One call of a kernel, and what vmap makes of it: the same call with one more batch dimension.

Batch dimensions are flattened for the kernel. An array that vmap does not map stays one array, read
again for every element, if nothing else than 1 stands in its batch dimensions; else it is repeated.
Problems here have masks in their normal form (masks.normal), seeds as two words, biases of full
rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from regard.frontends.jax import callback, ffi
from regard.masks import Normal
from regard.problem import Problem

__all__ = ["backward", "forward", "through_xla"]


def through_xla(backend: str | None) -> bool:
    """Whether XLA calls the native core itself, instead of through Python."""
    return backend != "reference" and ffi.available() is None


def forward(problem: Problem, backend: str | None) -> tuple[Any, Any]:
    """Output (*batch, H, Lq, E), None without values, and lse (*batch, H, Lq)."""

    def once(problem: Problem) -> tuple[Any, Any]:
        flat = _flattened(problem)
        output, lse = ffi.forward(flat) if through_xla(backend) else callback.forward(flat, backend)
        batch = problem.extent.batch
        return None if output is None else _split(output, batch), _split(lse, batch)

    found: tuple[Any, Any] = _mapped(once, problem)()
    return found


def backward(
    problem: Problem, kept: dict[str, Any], wanted: tuple[str, ...], backend: str | None
) -> dict[str, Any]:
    """The gradients that `wanted` names, of query, key, value, bias and vector, in their shapes.

    kept: output (None if the value alone wants a gradient), lse, d_output and d_lse (None: 0).
    """

    def once(problem: Problem, kept: dict[str, Any]) -> dict[str, Any]:
        flat, batch = _flattened(problem), problem.extent.batch
        shapes = {name: _full(getattr(flat, name), name, flat) for name in wanted}
        kept = {name: _flat(a, problem, 2 if "lse" in name else 3) for name, a in kept.items()}
        found = (
            ffi.backward(flat, kept, shapes)
            if through_xla(backend)
            else callback.backward(flat, kept, shapes, backend)
        )
        if "bias" in found:
            found["bias"] = _sum_to(found["bias"], problem)
        return {n: a if n == "bias" else _split(a, batch) for n, a in found.items()}

    def summed(name: str, gradient: Any) -> Any:
        if name != "vector":
            return gradient
        heads = problem.vector.shape[0] == 1
        lead = tuple(range(gradient.ndim - 2))
        return gradient.sum(axis=lead).sum(axis=0, keepdims=True) if heads else gradient.sum(lead)

    own_bias = "bias" in wanted  # a gradient of it for each element that vmap maps
    gradients: dict[str, Any] = _mapped(once, problem, own_bias)(kept)
    return {
        name: summed(name, gradient).astype(getattr(problem, name).dtype)
        for name, gradient in gradients.items()
    }


def _mapped(
    once: Callable[..., Any], problem: Problem, own_bias: bool = False
) -> Callable[..., Any]:
    """`once` for the problem, as a function of further arrays that vmap knows how to map."""
    specification, own = problem.flatten()

    @custom_vmap
    def run(own: tuple[Any, ...], *arrays: Any) -> Any:
        return once(Problem.rebuild(specification, own), *arrays)

    @run.def_vmap
    def rule(size: int, batched: Any, own: tuple[Any, ...], *arrays: Any) -> Any:
        flags, *more = batched
        if _one_after_another(Problem.rebuild(specification, tuple(flags))):
            found = _sequential(run, size, (tuple(flags), *more), (own, *arrays))
        else:
            problem, mapped = (Problem.rebuild(specification, tuple(a)) for a in (own, flags))
            grown = _grown(problem, mapped, size, own_bias)
            whole = jax.tree.map(lambda a, flag: _repeated(a, flag, size), arrays, tuple(more))
            found = run(grown, *whole)
        return found, jax.tree.map(lambda _: True, found)

    return lambda *arrays: run(own, *arrays)


def _one_after_another(batched: Problem) -> bool:
    """Whether one call cannot do: sinks or vectors of many, and dropout, which counts batches.

    batched: the problem with a boolean in the place of each array.
    """
    return batched.sinks is True or batched.vector is True or batched.dropout_p > 0


def _sequential(run: Callable[..., Any], size: int, batched: Any, arrays: Any) -> Any:
    flat, structure = jax.tree.flatten(arrays)
    flags = jax.tree.leaves(batched)
    mapped = [array for array, flag in zip(flat, flags, strict=True) if flag]

    def one(mapped: list[Any]) -> Any:
        rest = iter(mapped)
        all_arrays = [next(rest) if flag else a for a, flag in zip(flat, flags, strict=True)]
        return run(*jax.tree.unflatten(structure, all_arrays))

    return jax.lax.map(one, mapped)


def _grown(problem: Problem, batched: Problem, size: int, own_bias: bool) -> tuple[Any, ...]:
    """The problem's arrays with one more batch dimension: 1 for those that are not mapped.

    batched: the problem with a boolean in the place of each array.
    """

    def grow(array: Any, flag: Any, whole: bool = False) -> Any:
        if array is None or flag:
            return array
        return _repeated(array, False, size) if whole else array[None]

    mask = problem.mask
    if mask is not None:
        assert isinstance(mask, Normal) and isinstance(batched.mask, Normal)
        mask = Normal(
            grow(mask.intervals, batched.mask.intervals), grow(mask.dense, batched.mask.dense)
        )
    return problem.replace(
        query=grow(problem.query, batched.query, whole=True),
        key=grow(problem.key, batched.key),
        value=grow(problem.value, batched.value),
        bias=grow(problem.bias, batched.bias, whole=own_bias),
        mask=mask,
    ).flatten()[1]


def _repeated(array: Any, batched: Any, size: int) -> Any:
    return array if batched else jnp.broadcast_to(array, (size, *array.shape))


def _flattened(problem: Problem) -> Problem:
    """The same with one batch dimension, which is 1 where an array is shared."""
    mask = problem.mask
    if mask is not None:
        assert isinstance(mask, Normal)
        mask = Normal(_flat(mask.intervals, problem, 4), _flat(mask.dense, problem, 3))
    names = ("query", "key", "value", "bias")
    flat = {name: _flat(getattr(problem, name), problem, 3) for name in names}
    return problem.replace(**flat, mask=mask)


def _flat(array: Any, problem: Problem, rank: int) -> Any:
    """(*batch, …) as (B|1, …) for an array of that rank without its batch dimensions."""
    if array is None:
        return None
    border = array.ndim - rank
    batch, rest, whole = array.shape[:border], array.shape[border:], problem.extent.batch
    if math.prod(batch) != 1 and batch != whole:
        array, batch = jnp.broadcast_to(array, (*whole, *rest)), whole
    return array.reshape((math.prod(batch), *rest))


def _full(array: Any, name: str, flat: Problem) -> tuple[int, ...]:
    """The shape of an array's gradient: one for each batch element, but for a shared bias."""
    if name == "bias":
        return tuple(array.shape)
    if name == "vector":
        return (*flat.query.shape[:-2], flat.head_size)
    return (flat.query.shape[0], *array.shape[1:])


def _split(array: Any, batch: tuple[int, ...]) -> Any:
    return array.reshape((*batch, *array.shape[1:]))


def _sum_to(d_bias: Any, problem: Problem) -> Any:
    """The bias's gradient (B|1, …) summed over the batch dimensions that the bias shares."""
    shape, batch = problem.bias.shape, problem.extent.batch
    if d_bias.shape[0] == math.prod(shape[:-3]):
        return d_bias.reshape(shape)
    d_bias = _split(d_bias, batch)
    shared = tuple(n for n, size in enumerate(shape[:-3]) if size == 1)
    return d_bias.sum(axis=shared, keepdims=True)
