"""PyTorch's own attention, for devices that have no kernel of ours.

scaled_dot_product_attention where it can do what is asked, the plain expression otherwise (memory
quadratic in length). Differentiable, since PyTorch differentiates it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from regard.bias import LEAST_SCORE
from regard.errors import BackendError
from regard.frontends.torch import masks
from regard.masks import edge_count
from regard.problem import Problem

__all__ = [
    "attention",
    "attention_lse",
    "dense_bias",
    "fused",
    "log_sum_exp",
    "output",
    "spread",
    "transposed",
]


def fused(problem: Problem) -> bool:
    """Whether scaled_dot_product_attention can compute the output."""
    plain = problem.bias is None and problem.sinks is None and not problem.softcap
    plain = plain and problem.vector is None
    return plain and problem.value_heads == problem.key_heads


def output(problem: Problem) -> Tensor:
    """(B, H, Lq, E)."""
    _refuse_dropout(problem)
    if not fused(problem):
        return attention_lse(problem)[0]
    return functional.scaled_dot_product_attention(
        problem.query,
        problem.key,
        problem.value,
        attn_mask=_seen(problem),
        scale=problem.scale,
        enable_gqa=problem.key_heads != problem.extent.heads,
    )


def attention(problem: Problem, backend: str | None) -> tuple[Tensor, Tensor]:
    """As `attention_lse`, whatever backend was asked for."""
    return attention_lse(problem)


def attention_lse(problem: Problem) -> tuple[Tensor, Tensor]:
    """Output (B, H, Lq, E) and lse (B, H, Lq)."""
    _refuse_dropout(problem)
    weights, total = _weights(problem)
    value = _repeat(problem.value, problem.extent.heads)
    return (weights @ value.to(weights.dtype)).to(problem.query.dtype), total


def log_sum_exp(problem: Problem) -> Tensor:
    """(B, H, Lq)."""
    return _weights(problem)[1]


def transposed(problem: Problem, y: Tensor) -> Tensor:
    """weightsᵀ y, (B, H, Lk, C)."""
    weights, _ = _weights(problem)
    return (weights.mT @ y.to(weights.dtype)).to(y.dtype)


def spread(table: Tensor, keys: int) -> Tensor:
    """(…, Lq, Lk) of a table (…, 1, Lq + Lk − 1) of a bias by distance."""
    return table[..., 0, :].unfold(-1, keys, 1).flip(-2)


def _refuse_dropout(problem: Problem) -> None:
    if problem.dropout_p:
        raise BackendError(
            f"dropout_p={problem.dropout_p} on {problem.query.device}",
            "tensors in main memory, where our kernels draw dropout's numbers",
            "move the tensors to the CPU, or apply dropout elsewhere",
        )


def _weights(problem: Problem) -> tuple[Tensor, Tensor]:
    dtype = getattr(torch, problem.accumulation_dtype)
    scores = problem.scale * _products(problem, dtype)
    if problem.softcap:
        scores = problem.softcap * torch.tanh(scores / problem.softcap)
    if problem.bias is not None:
        scores = scores + dense_bias(problem).to(dtype)
        low = (scores < LEAST_SCORE) & (scores > -torch.inf)
        # Gradients go through as if nothing were raised.
        scores = torch.where(low, scores - scores.detach() + LEAST_SCORE, scores)
        # What a bias hides is hidden from gradients too, or a row of −∞ makes them NaN.
        scores = scores.masked_fill(scores == -torch.inf, -torch.inf)
    seen = _seen(problem)
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    every = scores
    if problem.sinks is not None:
        sink = problem.sinks.to(dtype)[:, None, None].expand(*scores.shape[:-1], 1)
        every = torch.cat([scores, sink], dim=-1)
    total = torch.logsumexp(every, dim=-1)
    blind = total == -torch.inf
    weights = torch.exp(scores - total.masked_fill(blind, 0)[..., None])
    return weights, total


def _products(problem: Problem, dtype: torch.dtype) -> Tensor:
    query, key = problem.query.to(dtype), _repeat(problem.key, problem.extent.heads).to(dtype)
    if problem.vector is None:
        products: Tensor = query @ key.mT
        return products
    joined = query[..., :, None, :] + key[..., None, :, :]
    if problem.activation == "tanh":
        joined = torch.tanh(joined)
    else:
        joined = functional.leaky_relu(joined, problem.negative_slope)
    summed: Tensor = (joined @ problem.vector.to(dtype)[:, None, :, None])[..., 0]
    return summed


def _seen(problem: Problem) -> Tensor | None:
    """Boolean, broadcasting to (*batch, H, Lq, Lk), on the query's device."""
    if problem.mask is None:
        return None
    return masks.seen(problem.mask, problem.extent, problem.query.device)


def dense_bias(problem: Problem) -> Tensor:
    """The bias as an array that broadcasts to (*batch, H, Lq, Lk), by distance or edge or not."""
    bias: Tensor = problem.bias
    if problem.by_distance:
        return spread(bias, problem.extent.keys)
    if edge_count(problem.mask) is None:
        return bias
    edges = problem.visibility.edges
    assert edges is not None
    queries, keys, numbers = (torch.from_numpy(a).long().to(bias.device) for a in edges.pairs)
    lead, extent = bias.shape[:-2], problem.extent
    dense = bias.new_zeros((*lead, extent.queries * extent.keys))
    each = bias.expand(*lead, 1, edges.count).reshape(*lead, edges.count)
    dense = dense.index_copy(-1, queries * extent.keys + keys, each[..., numbers])
    return dense.reshape(*lead, extent.queries, extent.keys)


def _repeat(array: Tensor, heads: int) -> Tensor:
    group = heads // array.shape[-3]
    return array if group == 1 else array.repeat_interleave(group, dim=-3)
