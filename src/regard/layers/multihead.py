"""Multi-head attention: several heads, each with projections of its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from regard import api
from regard.errors import OptionError
from regard.layers.cache import KeyValueCache

__all__ = ["MultiHeadAttention"]


class MultiHeadAttention(nn.Module):
    """softmax(q kᵀ / √D) v in H heads, between projections of the inputs and of the output.

    Args:
        width: size of the queries' vectors and of the output.
        heads: H.
        key_heads: K, of which each serves H / K query heads; default H.
        head_size: D; default width / H.
        key_width: size of the vectors that keys and values are made of; default width.
        dropout: probability with which a weight is dropped in training.
        bias: whether projections add a vector.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_heads: int | None = None,
        head_size: int | None = None,
        key_width: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if head_size is None and width % heads:
            raise OptionError(
                f"width={width} in heads={heads}", "a width that the number of heads divides"
            )
        self.heads, self.key_heads = heads, key_heads or heads
        size = head_size or width // heads
        self.dropout = dropout
        self.query = nn.Linear(width, heads * size, bias=bias)
        self.key = nn.Linear(key_width or width, self.key_heads * size, bias=bias)
        self.value = nn.Linear(key_width or width, self.key_heads * size, bias=bias)
        self.output = nn.Linear(heads * size, width, bias=bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor | KeyValueCache | None = None,
        value: Tensor | None = None,
        *,
        mask: Any = None,
        bias: Tensor | None = None,
        cache: KeyValueCache | None = None,
        return_weights: bool = False,
    ) -> Any:
        """The output (B, Lq, width); with return_weights also the AttentionWeights (B, H, Lq, Lk).

        Args:
            query: (B, Lq, width).
            key: (B, Lk, key_width), or what `project` made of it; default: query, self-attention.
            value: (B, Lk, key_width); default: key.
            mask: a mask of Regard, such as regard.causal(), or a boolean array, True = may attend.
            bias: added to the scores; broadcasts to (B, H, Lq, Lk).
            cache: of the positions before these; keys and values of this call are added to it.
        """
        queries = self.query(query).unflatten(-1, (self.heads, -1))
        projected = (
            key
            if isinstance(key, KeyValueCache)
            else self.project(query if key is None else key, value)
        )
        if cache is not None:
            cache.append(projected.key, projected.value)
            projected = cache
        options = {"mask": mask, "bias": bias, "layout": "BLHD"}
        dropout_p = self.dropout if self.training else 0.0
        output = api.attention(
            queries, projected.key, projected.value, dropout_p=dropout_p, **options
        )
        output = self.output(output.flatten(-2))
        if not return_weights:
            return output
        return output, api.weights(queries, projected.key, **options)

    def project(self, key: Tensor, value: Tensor | None = None) -> KeyValueCache:
        """Keys and values of (B, Lk, key_width), to be attended to more than once."""
        value = key if value is None else value
        heads = (self.key_heads, -1)
        return KeyValueCache(
            self.key(key).unflatten(-1, heads), self.value(value).unflatten(-1, heads)
        )
