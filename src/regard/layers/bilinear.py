"""Bilinear attention: a matrix between queries and keys, which may be of different sizes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from regard.layers.cache import KeyValueCache
from regard.layers.single import SingleHeadAttention

__all__ = ["BilinearAttention"]


class BilinearAttention(SingleHeadAttention):
    """softmax(qᵀ W k) over the keys, for queries and keys of any two sizes.

    Args:
        query_width: size of the queries' vectors.
        key_width: size of the keys' vectors; default query_width.

    Source: Luong, Pham, Manning, "Effective Approaches to Attention-based Neural Machine
    Translation" (2015), there called "general".
    """

    def __init__(self, query_width: int, key_width: int | None = None) -> None:
        super().__init__()
        self.matrix = nn.Linear(query_width, key_width or query_width, bias=False)

    def _keys(self, key: Tensor) -> Tensor:
        return key

    def _scored(self, query: Tensor, held: KeyValueCache) -> dict[str, Any]:
        # Under autocast the product is narrower than keys that nothing has projected.
        queries = self.matrix(query).to(held.key.dtype)
        return {"query": queries[:, :, None], "key": held.key, "scale": 1.0}
