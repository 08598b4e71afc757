"""The definition of attention: slow, in float64, to be read first. Every kernel is judged by it.

    scores   s = scale · q kᵀ, or additive: s_ij = scale · Σ_a v_a f(q_ia + k_ja)
             s = softcap · tanh(s / softcap);  s = s + bias;  hidden: s = −∞
             (with a bias, a finite s below LEAST_SCORE counts as that)
    weights  p = exp(s − lse),  lse = log(Σ_j exp s_j  [+ exp sink])
    output   y = (p ∘ dropout) v

A query that sees nothing has output 0, weights 0, gradients 0 and lse −∞ (or its sink). What a
query may not see never reaches it, not even as 0 × NaN.

Shapes: query (B, H, Lq, D), key (B, K, Lk, D), value (B, K | H, Lk, E), everything between them
(B, H, Lq, Lk), lse (B, H, Lq).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from regard._arrays import as_numpy
from regard.bias import LEAST_SCORE, spread
from regard.kernels.dropout import kept
from regard.problem import Problem

__all__ = ["Gradients", "backward", "forward", "lse", "scores", "weights"]

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Gradients:
    """Of the sum of output · d_output + lse · d_lse, each shaped like what it belongs to."""

    query: Array
    key: Array
    value: Array | None
    bias: Array | None
    sinks: Array | None
    vector: Array | None  # (B, H, D): for each head of each batch element


def scores(problem: Problem) -> Array:
    """(B, H, Lq, Lk): after scale, softcap and bias; what a mask hides is −∞."""
    return _scores(problem)[0]


def lse(problem: Problem) -> Array:
    """(B, H, Lq): log-sum-exp of the scores, the sink's among them."""
    return weights(problem)[1]


def weights(problem: Problem) -> tuple[Array, Array]:
    """(B, H, Lq, Lk) and lse (B, H, Lq); before dropout."""
    s = scores(problem)
    if problem.sinks is not None:
        sink = as_numpy(problem.sinks).astype(np.float64)[None, :, None, None]
        s = np.concatenate([s, np.broadcast_to(sink, (*s.shape[:3], 1))], axis=-1)
    largest = s.max(axis=-1, keepdims=True, initial=-np.inf)
    largest = np.where(largest == -np.inf, 0, largest)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = largest + np.log(np.exp(s - largest).sum(axis=-1, keepdims=True))
        p = np.where(s == -np.inf, 0, np.exp(s - total))
    return p[..., : problem.extent.keys], total[..., 0]


def forward(problem: Problem) -> tuple[Array, Array]:
    """Output (B, H, Lq, E) and lse (B, H, Lq)."""
    p, total = weights(problem)
    v = _heads(problem.value, problem.extent.heads)
    return _visible_product(p * _dropout(problem), v, _seen(problem)), total


def backward(problem: Problem, d_output: Any, d_lse: Any = None) -> Gradients:
    """Gradients of the sum of output · d_output + lse · d_lse, by the chain rule, step by step."""
    extent = problem.extent
    q, k = _heads(problem.query, extent.heads), _heads(problem.key, extent.heads)
    v = _heads(problem.value, extent.heads)
    dy = _heads(d_output, extent.heads)
    d_total = 0 if d_lse is None else as_numpy(d_lse).astype(np.float64).reshape(dy.shape[:3])
    seen, hidden_from_key = _seen(problem), _seen(problem).swapaxes(-1, -2)
    p, total = weights(problem)
    keep = _dropout(problem)

    dv = _visible_product((p * keep).swapaxes(-1, -2), dy, hidden_from_key)
    with np.errstate(invalid="ignore"):
        dp = np.where(seen, dy @ v.swapaxes(-1, -2), 0) * keep
        delta = np.where(p == 0, 0, p * dp).sum(axis=-1) - d_total
        ds = np.where(p == 0, 0, p * (dp - delta[..., None]))

    d_score = ds
    if problem.softcap:  # the derivative of c · tanh(s / c) is 1 − tanh²(s / c)
        d_score = ds * (1 - _scores(problem)[1] ** 2)
    d_vector = None
    if problem.vector is None:
        dq = _visible_product(d_score, k, seen)
        dk = _visible_product(d_score.swapaxes(-1, -2), q, hidden_from_key)
    else:
        dq, dk, d_vector = _additive_gradients(problem, q, k, d_score)
    d_sinks = None
    if problem.sinks is not None:
        sink = as_numpy(problem.sinks).astype(np.float64)[None, :, None]
        d_sinks = -(np.exp(sink - total) * delta).sum(axis=(0, 2))
    return Gradients(
        query=problem.scale * dq.reshape(problem.query.shape),
        key=problem.scale * _sum_to(dk, problem.key.shape),
        value=None if problem.value is None else _sum_to(dv, problem.value.shape),
        bias=None if problem.bias is None else _sum_bias(ds, problem),
        sinks=d_sinks,
        vector=None if d_vector is None else problem.scale * d_vector,
    )


def _scores(problem: Problem) -> tuple[Array, Array]:
    """The scores, and the hyperbolic tangent inside the softcap (0 without one)."""
    heads = problem.extent.heads
    q, k = _heads(problem.query, heads), _heads(problem.key, heads)
    with np.errstate(invalid="ignore"):
        if problem.vector is None:
            s = problem.scale * (q @ k.swapaxes(-1, -2))
        else:
            f, _ = _activated(problem, q, k)
            s = problem.scale * np.einsum("bhija,bha->bhij", f, _vector(problem))
        tanh = np.zeros_like(s)
        if problem.softcap:
            tanh = np.tanh(s / problem.softcap)
            s = problem.softcap * tanh
        bias = problem.without_edges().bias
        if bias is not None:
            bias = as_numpy(bias)
            bias = spread(bias, problem.extent) if problem.by_distance else bias
            bias = np.broadcast_to(bias, problem.extent.shape)
            s = s + bias.reshape(s.shape).astype(np.float64)
            s = np.where(s == -np.inf, s, np.maximum(s, LEAST_SCORE))
    return np.where(_seen(problem), s, -np.inf), tanh


def _activated(problem: Problem, q: Array, k: Array) -> tuple[Array, Array]:
    """f(q_i + k_j) and f'(q_i + k_j): both (B, H, Lq, Lk, D)."""
    x: Array = q[..., :, None, :] + k[..., None, :, :]
    if problem.activation == "tanh":
        f = np.tanh(x)
        return f, 1 - f**2
    slope = problem.negative_slope
    return np.where(x > 0, x, slope * x), np.where(x > 0, 1, slope)


def _additive_gradients(
    problem: Problem, q: Array, k: Array, d_score: Array
) -> tuple[Array, Array, Array]:
    """Of q, of k (for every query head) and of v, but for the scale."""
    f, slope = _activated(problem, q, k)
    seen = d_score[..., None] != 0
    d_f = np.where(seen, d_score[..., None] * slope, 0) * _vector(problem)[:, :, None, None, :]
    d_vector: Array = np.where(seen, d_score[..., None] * f, 0).sum(axis=(2, 3))
    return d_f.sum(axis=3), d_f.sum(axis=2), d_vector


def _vector(problem: Problem) -> Array:
    """v as (B, H, D)."""
    extent, vector = problem.extent, as_numpy(problem.vector).astype(np.float64)
    return np.broadcast_to(vector, (extent.flat_batch, extent.heads, problem.head_size))


def _seen(problem: Problem) -> Bools:
    """(B, H, Lq, Lk) boolean."""
    extent = problem.extent
    shape = (extent.flat_batch, extent.heads, extent.queries, extent.keys)
    return np.broadcast_to(problem.visibility.as_dense(extent.keys), shape)


def _dropout(problem: Problem) -> Array:
    """(B, H, Lq, Lk): 0 for a dropped weight, 1 / (1 − p) for a kept one."""
    extent = problem.extent
    sizes = (extent.flat_batch, extent.heads, extent.queries, extent.keys)
    if not problem.dropout_p:
        return np.ones(sizes)
    return kept(int(problem.dropout_seed), problem.dropout_p, *sizes) / (1 - problem.dropout_p)


def _heads(array: Any, heads: int) -> Array:
    """(B, H, L, size) in float64: one batch dimension, each key head repeated for its group."""
    array = as_numpy(array)
    flat = (int(np.prod(array.shape[:-3], dtype=np.int64)), *array.shape[-3:])
    array = array.astype(np.float64).reshape(flat)
    return np.repeat(array, heads // array.shape[1], axis=1) if array.shape[1] else array


def _visible_product(p: Array, x: Array, seen: Bools) -> Array:
    """p @ x over what is seen only: a hidden NaN or infinity of x does not count."""
    finite: Bools = np.asarray(np.isfinite(x).all(axis=-1))
    y: Array = p @ np.where(finite[..., None], x, 0)
    for b, h, j in np.argwhere(~finite):
        with np.errstate(invalid="ignore"):
            y[b, h] += np.where(seen[b, h, :, j, None], p[b, h, :, j, None] * x[b, h, j], 0)
    return y


def _sum_to(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum the query heads of each group, and restore the batch dimensions."""
    batch, heads, *rest = gradient.shape
    groups: Array = gradient.reshape(batch, shape[-3], heads // shape[-3], *rest)
    summed: Array = groups.sum(axis=2)
    return summed.reshape(shape)


def _sum_bias(gradient: Array, problem: Problem) -> Array:
    """Sum the dimensions that the bias was broadcast over."""
    edges = problem.visibility.edges
    if edges is not None:
        queries, keys, numbers = edges.pairs
        along = np.zeros((*gradient.shape[:2], 1, edges.count))
        along[..., 0, numbers] = gradient[..., queries, keys]
        gradient = along
    if problem.by_distance:
        gradient = _along_distances(gradient)
    gradient = gradient.reshape(problem.bias_extent.shape)
    shape = tuple(problem.bias.shape)
    summed: Array = gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))
    shared = tuple(n for n, size in enumerate(shape) if size == 1)
    summed = summed.sum(axis=shared, keepdims=True)
    return summed.reshape(shape)


def _along_distances(gradient: Array) -> Array:
    """(B, H, 1, Lq + Lk − 1): the sums of (B, H, Lq, Lk) over each distance j − i."""
    *lead, queries, keys = gradient.shape
    along: Array = np.zeros((*lead, 1, max(queries + keys - 1, 0)))
    for i in range(queries):
        first = queries - 1 - i
        along[..., 0, first : first + keys] += gradient[..., i, :]
    return along
