"""Additive attention: the score is a small network's, which needs no common size."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regard.layers.cache import KeyValueCache
from regard.layers.single import SingleHeadAttention

__all__ = ["AdditiveAttention"]

_MOST = 1 << 22  # numbers between, B · queries · Lk · size, that are held at a time


class AdditiveAttention(SingleHeadAttention):
    """softmax(vᵀ tanh(W_q q + W_k k + b)) over the keys, for queries and keys of any two sizes.

    Args:
        query_width: size of the queries' vectors.
        key_width: size of the keys' vectors; default query_width.
        size: of the hidden layer; default query_width.

    Source: Bahdanau, Cho, Bengio, "Neural Machine Translation by Jointly Learning to Align and
    Translate" (2015).
    """

    def __init__(
        self, query_width: int, key_width: int | None = None, size: int | None = None
    ) -> None:
        super().__init__()
        size = size or query_width
        self.query = nn.Linear(query_width, size)
        self.key = nn.Linear(key_width or query_width, size, bias=False)
        self.vector = nn.Parameter(torch.empty(size))
        nn.init.uniform_(self.vector, -1 / math.sqrt(size), 1 / math.sqrt(size))

    def _keys(self, key: Tensor) -> Tensor:
        projected: Tensor = self.key(key)
        return projected

    def _scored(self, query: Tensor, held: KeyValueCache) -> dict[str, Any]:
        scores = _scores(self.query(query), held.key[:, :, 0], self.vector)[:, None]
        value = held.value
        if scores.dtype not in (value.dtype, torch.float32):
            scores = scores.to(value.dtype)
        # Products of zeros, to which the scores are added.
        queries = value.new_zeros((len(value), query.shape[1], 1, 1))
        keys = value.new_zeros((len(value), value.shape[1], 1, 1))
        return {"query": queries, "key": keys, "bias": scores}


def _scores(query: Tensor, key: Tensor, vector: Tensor) -> Tensor:
    """vᵀ tanh(q + k): (B, Lq, Lk) of projected queries (B, Lq, A) and keys (B, Lk, A).

    Some queries at a time; with gradients each part is computed again in the backward pass, since
    what lies between would be A times as large as the scores.
    """
    batch, queries, size = query.shape
    rows = max(1, _MOST // max(1, batch * key.shape[1] * size))
    if rows >= queries:
        return _part(query, key, vector)
    parts = torch.split(query, rows, dim=1)
    found = [checkpoint(_part, part, key, vector, use_reentrant=False) for part in parts]
    return torch.cat(found, dim=1)


def _part(query: Tensor, key: Tensor, vector: Tensor) -> Tensor:
    return torch.tanh(query[:, :, None] + key[:, None]) @ vector.to(query.dtype)
