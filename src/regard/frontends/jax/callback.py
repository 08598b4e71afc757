"""Any kernel of ours as a function of Python's that XLA calls back: slower, and copies the results.

The same functions as in ffi.py, on the same problems.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from regard import dispatch
from regard.problem import Problem

__all__ = ["backward", "forward"]


def forward(problem: Problem, backend: str | None) -> tuple[Any, Any]:
    """Output (B, H, Lq, E), None without values, and lse (B, H, Lq)."""
    shapes = {"lse": (problem.query.shape[:-1], problem.accumulation_dtype)}
    if problem.value is not None:
        shapes["output"] = ((*problem.query.shape[:-1], problem.value_size), problem.dtype)

    def run(problem: Problem, results: dict[str, Any]) -> None:
        dispatch.forward(problem, results.get("output"), results["lse"], backend)

    found = _call(run, shapes, problem)
    return found.get("output"), found["lse"]


def backward(
    problem: Problem,
    kept: dict[str, Any],
    wanted: dict[str, tuple[int, ...]],
    backend: str | None,
) -> dict[str, Any]:
    """The gradients that `wanted` names with their shapes: query, key, value, bias, vector.

    kept: output, lse, d_output and d_lse; None for an output or d_lse that is absent.
    """
    held = dict.fromkeys(("bias", "vector"), problem.accumulation_dtype)
    shapes = {name: (shape, held.get(name, problem.dtype)) for name, shape in wanted.items()}

    def run(problem: Problem, results: dict[str, Any], kept: dict[str, Any]) -> None:
        named = {f"d_{name}": array for name, array in results.items()}
        dispatch.backward(problem, **kept, backend=backend, **named)

    return _call(run, shapes, problem, kept)


def _call(
    run: Callable[..., None],
    shapes: dict[str, tuple[tuple[int, ...], str]],
    problem: Problem,
    *arrays: Any,
) -> dict[str, Any]:
    """What `run` writes into arrays of these shapes and types."""
    specification, own = problem.flatten()
    results = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}

    def in_python(own: tuple[Any, ...], arrays: tuple[Any, ...]) -> dict[str, Any]:
        own, arrays = jax.tree.map(np.asarray, (own, arrays))
        made = {name: np.empty(result.shape, result.dtype) for name, result in results.items()}
        run(_on_host(Problem.rebuild(specification, own)), made, *arrays)
        return made

    found: dict[str, Any] = jax.pure_callback(in_python, results, own, arrays)
    return found


def _on_host(problem: Problem) -> Problem:
    """With shared arrays repeated over the batch, as views, and the seed as a number."""
    batch, seed = problem.query.shape[0], problem.dropout_seed
    repeated = {
        name: np.broadcast_to(array, (batch, *array.shape[1:]))
        for name, array in (("key", problem.key), ("value", problem.value))
        if array is not None
    }
    if seed is not None:
        seed = int(seed[0]) | int(seed[1]) << 32
    return problem.replace(**repeated, dropout_seed=seed)
