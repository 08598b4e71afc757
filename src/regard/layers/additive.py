"""Additive attention: the score is a small network's, which needs no common size."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from regard.layers.cache import KeyValueCache
from regard.layers.single import SingleHeadAttention
from regard.score import Additive

__all__ = ["AdditiveAttention"]


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
        # Under autocast projections are narrower than values that nothing has projected.
        kind = held.value.dtype
        queries, keys = self.query(query).to(kind), held.key.to(kind)
        return {
            "query": queries[:, :, None],
            "key": keys,
            "score": Additive(None, None, self.vector),
        }
