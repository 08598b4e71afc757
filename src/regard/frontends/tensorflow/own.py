"""Attention as a plain expression of TensorFlow's: for devices without a kernel of ours, for XLA,
and for second derivatives. Memory is quadratic in length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from regard.bias import LEAST_SCORE
from regard.errors import BackendError
from regard.frontends.tensorflow.held import Held, is_tensor
from regard.masks import Extent, Mask, flatten, visibility
from regard.masks.base import Both, Dense, Either, check_dense
from regard.problem import Problem

__all__ = ["attention", "transposed"]


def attention(problem: Problem) -> tuple[Any, Any]:
    """Output in the caller's layout, None without values, and lse (*batch, H, Lq)."""
    if problem.dropout_p:
        raise BackendError(
            f"dropout_p={problem.dropout_p} in the plain expression of TensorFlow's",
            "our kernels, which draw dropout's numbers, and first derivatives",
            "compute on the CPU, or apply dropout elsewhere",
        )
    weights, total = _weights(problem)
    if problem.value is None:
        return None, total
    value = _repeat(problem.value.tensor, problem.extent.heads)
    output = tf.cast(weights @ tf.cast(value, weights.dtype), problem.query.tensor.dtype)
    return output if problem.layout == "BHLD" else Held(output, exchanged=True).tensor, total


def transposed(problem: Problem, y: Held) -> Any:
    """weightsᵀ y, (*batch, H, Lk, C)."""
    weights, _ = _weights(problem)
    given = y.tensor
    return tf.cast(tf.matmul(weights, tf.cast(given, weights.dtype), transpose_a=True), given.dtype)


def _weights(problem: Problem) -> tuple[Any, Any]:
    dtype = tf.as_dtype(problem.accumulation_dtype)
    scores = problem.scale * _products(problem, dtype)
    hidden = tf.constant(-np.inf, dtype)
    if problem.softcap:
        scores = problem.softcap * tf.tanh(scores / problem.softcap)
    if problem.bias is not None:
        scores = scores + tf.cast(problem.bias.tensor, dtype)
        low = (scores < LEAST_SCORE) & (scores > hidden)
        # Gradients go through as if nothing were raised.
        raised = scores - tf.stop_gradient(scores) + LEAST_SCORE
        scores = tf.where(low, raised, scores)
        # What a bias hides is hidden from gradients too, or a row of −∞ makes them NaN.
        scores = tf.where(scores == hidden, hidden, scores)
    if problem.mask is not None:
        scores = tf.where(_seen(problem.mask, problem.extent), scores, hidden)
    every = scores
    if problem.sinks is not None:
        sink = tf.cast(problem.sinks.tensor, dtype)[:, None, None]
        every = tf.concat([scores, tf.broadcast_to(sink, (*scores.shape[:-1], 1))], axis=-1)
    top = tf.stop_gradient(tf.reduce_max(every, axis=-1, keepdims=True))
    blind = top == hidden
    top = tf.where(blind, tf.zeros_like(top), top)
    shares = tf.exp(scores - top)
    summed = tf.reduce_sum(tf.exp(every - top), axis=-1, keepdims=True)
    summed = tf.where(blind, tf.ones_like(summed), summed)
    total = tf.where(blind, hidden, tf.math.log(summed) + top)
    return shares / summed, total[..., 0]


def _products(problem: Problem, dtype: Any) -> Any:
    query = tf.cast(problem.query.tensor, dtype)
    key = tf.cast(_repeat(problem.key.tensor, problem.extent.heads), dtype)
    if problem.vector is None:
        return tf.matmul(query, key, transpose_b=True)
    joined = query[..., :, None, :] + key[..., None, :, :]
    if problem.activation == "tanh":
        joined = tf.tanh(joined)
    else:
        joined = tf.nn.leaky_relu(joined, problem.negative_slope)
    vector = tf.cast(problem.vector.tensor, dtype)[:, None, None, :]
    return tf.reduce_sum(joined * vector, axis=-1)


def _seen(mask: Mask, extent: Extent) -> Any:
    """Boolean, broadcasting to (*batch, H, Lq, Lk): an expression where the mask's arrays are."""
    arrays = flatten(mask)[1]
    if not any(is_tensor(array) and not hasattr(array, "numpy") for array in arrays):
        dense = visibility(mask, extent).as_dense(extent.keys)
        batch = extent.batch if dense.shape[0] != 1 else (1,) * len(extent.batch)
        return tf.constant(dense.reshape(*batch, *dense.shape[1:]))
    match mask:
        case Both(one, other):
            return _seen(one, extent) & _seen(other, extent)
        case Either(one, other):
            return _seen(one, extent) | _seen(other, extent)
        case Dense(seen):
            check_dense(tuple(seen.shape), extent)
            return seen
        case _:
            raise BackendError(
                f"{mask!r} with tensors that have no values yet, in the plain expression",
                "arrays with values, or a boolean tensor as the mask",
                "pass the arrays of masks as NumPy's, or let our kernels compute",
            )


def _repeat(array: Any, heads: int) -> Any:
    group = heads // array.shape[-3]
    return array if group == 1 else tf.repeat(array, group, axis=-3)
