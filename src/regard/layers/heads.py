"""The core of multi-head attention: what all layers do between their projections."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from regard import api
from regard.operator import AttentionWeights

__all__ = ["attend"]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    dropout_p: float = 0.0,
    return_weights: bool = False,
    **options: Any,
) -> tuple[Tensor, AttentionWeights | None]:
    """The heads' outputs side by side, (B, Lq, H · E), and, if wanted, the weights.

    query: (B, Lq, H, D). key: (B, Lk, K, D). value: (B, Lk, K, E). The options are those of
    `regard.weights`.
    """
    heads: Tensor = api.attention(query, key, value, dropout_p=dropout_p, layout="BLHD", **options)
    weights = api.weights(query, key, layout="BLHD", **options) if return_weights else None
    return heads.flatten(-2), weights
