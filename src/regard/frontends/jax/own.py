"""Attention as a plain expression of JAX's: for devices without a kernel of ours, for forward mode
and for second derivatives. Memory is quadratic in length.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regard.bias import LEAST_SCORE
from regard.errors import BackendError
from regard.frontends.jax.masks import as_dense
from regard.masks import Normal
from regard.problem import Problem

__all__ = ["attention", "transposed"]


def attention(problem: Problem) -> tuple[Any, Any]:
    """Output (*batch, H, Lq, E), None without values, and lse (*batch, H, Lq)."""
    if problem.dropout_p:
        raise BackendError(
            f"dropout_p={problem.dropout_p} in the plain expression of JAX's",
            "our kernels, which draw dropout's numbers, and first derivatives in reverse",
            "compute on the CPU, or apply dropout elsewhere",
        )
    weights, total = _weights(problem)
    if problem.value is None:
        return None, total
    value = _repeat(problem.value, problem.extent.heads)
    return (weights @ value.astype(weights.dtype)).astype(problem.query.dtype), total


def transposed(problem: Problem, y: Any) -> Any:
    """weightsᵀ y, (*batch, H, Lk, C)."""
    weights, _ = _weights(problem)
    return (weights.mT @ y.astype(weights.dtype)).astype(y.dtype)


def _weights(problem: Problem) -> tuple[Any, Any]:
    dtype = problem.accumulation_dtype
    scores = problem.scale * _products(problem, dtype)
    if problem.softcap:
        scores = problem.softcap * jnp.tanh(scores / problem.softcap)
    if problem.bias is not None:
        scores = scores + _dense_bias(problem).astype(dtype)
        low = (scores < LEAST_SCORE) & (scores > -jnp.inf)
        # Gradients go through as if nothing were raised.
        raised = scores - jax.lax.stop_gradient(scores) + LEAST_SCORE
        scores = jnp.where(low, raised, scores)
        # What a bias hides is hidden from gradients too, or a row of −∞ makes them NaN.
        scores = jnp.where(scores == -jnp.inf, -jnp.inf, scores)
    if problem.mask is not None:
        assert isinstance(problem.mask, Normal)
        scores = jnp.where(as_dense(problem.mask, problem.extent.keys), scores, -jnp.inf)
    every = scores
    if problem.sinks is not None:
        sink = problem.sinks.astype(dtype)[:, None, None]
        every = jnp.concatenate([scores, jnp.broadcast_to(sink, (*scores.shape[:-1], 1))], axis=-1)
    total = jax.nn.logsumexp(every, axis=-1)
    blind = total == -jnp.inf
    weights = jnp.exp(scores - jnp.where(blind, 0, total)[..., None])
    return weights, total


def _dense_bias(problem: Problem) -> Any:
    """The bias, one by distance as an array (…, Lq, Lk)."""
    if not problem.by_distance:
        return problem.bias
    queries, keys = np.arange(problem.extent.queries), np.arange(problem.extent.keys)
    return problem.bias[..., 0, keys - queries[:, None] + len(queries) - 1]


def _products(problem: Problem, dtype: str) -> Any:
    query = problem.query.astype(dtype)
    key = _repeat(problem.key, problem.extent.heads).astype(dtype)
    if problem.vector is None:
        return jnp.matmul(query, key.mT, precision="highest")
    joined = query[..., :, None, :] + key[..., None, :, :]
    if problem.activation == "tanh":
        joined = jnp.tanh(joined)
    else:
        joined = jnp.where(joined > 0, joined, problem.negative_slope * joined)
    return (joined * problem.vector.astype(dtype)[:, None, None, :]).sum(axis=-1)


def _repeat(array: Any, heads: int) -> Any:
    group = heads // array.shape[-3]
    return array if group == 1 else jnp.repeat(array, group, axis=-3)
