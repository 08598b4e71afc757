"""The core of multi-head attention: what all layers do between their projections."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from regard import api
from regard.operator import AttentionWeights

__all__ = ["attend", "dense"]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    shared: int = 1,
    dropout_p: float = 0.0,
    return_weights: bool = False,
    **options: Any,
) -> tuple[Tensor, AttentionWeights | None]:
    """The heads' outputs side by side, (B, Lq, H · E), and, if wanted, the weights.

    query: (B, Lq, H, D). key: (B, Lk, K, D). value: (B, Lk, K, E). The options are those of
    `regard.weights`.
    shared: so many rows of queries, one after another, look at each row of keys, (B / shared, …);
        mask and weights then see them as one row of shared · Lq queries.
    """
    count, length, *sizes = query.shape
    rows = query if shared == 1 else query.reshape(count // shared, shared * length, *sizes)
    heads: Tensor = api.attention(rows, key, value, dropout_p=dropout_p, layout="BLHD", **options)
    weights = api.weights(rows, key, layout="BLHD", **options) if return_weights else None
    return heads.reshape(count, length, heads.shape[-2] * heads.shape[-1]), weights


def dense(weights: AttentionWeights, learned: Iterable[Tensor | None]) -> Tensor:
    """The weights as a matrix (B, H, Lq, Lk), of heads in the layout BLHD.

    With gradients where one of those it was made of, `learned`, has them.
    """
    given = [array for array in learned if array is not None]
    if torch.is_grad_enabled() and any(array.requires_grad for array in given):
        # Applied to the unit matrix, since dense() has no gradient.
        unit = torch.eye(weights.shape[-1], dtype=given[0].dtype, device=given[0].device)
        applied: Tensor = weights @ unit
        return applied.transpose(1, 2)
    return weights.dense()  # type: ignore[no-any-return]
