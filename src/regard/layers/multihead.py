"""Multi-head attention: several heads, each with projections of its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from regard.bias import Bias
from regard.errors import OptionError, RegardError, ShapeError
from regard.layers.cache import KeyValueCache
from regard.layers.distances import Alibi, RelativePositions
from regard.layers.heads import attend
from regard.layers.rotary import Rotary

__all__ = ["MultiHeadAttention"]


class MultiHeadAttention(nn.Module):
    """softmax(q kᵀ / √D) v in H heads, between projections of the inputs and of the output.

    Args:
        width: size of the queries' vectors and of the output.
        heads: H.
        key_heads: K, of which each serves H / K query heads; default H.
        head_size: D; default width / H.
        key_width: size of the vectors that keys and values are made of; default width.
        rotary: turns queries and keys by their positions.
        position_bias: is added to the scores, by the distance of query and key.
        dropout: probability with which a weight is dropped in training.
        bias: whether projections add a vector.

    Source: Vaswani et al., "Attention Is All You Need" (2017); with key_heads, Ainslie et al.,
    "GQA: Training Generalized Multi-Query Transformer Models" (2023).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_heads: int | None = None,
        head_size: int | None = None,
        key_width: int | None = None,
        rotary: Rotary | None = None,
        position_bias: Alibi | RelativePositions | None = None,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        key_heads, key_width = key_heads or heads, key_width or width
        if min(width, heads, key_heads, key_width, head_size or 1) < 1:
            raise OptionError(
                f"width={width}, heads={heads}, key_heads={key_heads}, head_size={head_size}, "
                f"key_width={key_width}",
                "sizes of 1 or more",
            )
        if (head_size is None and width % heads) or heads % key_heads:
            raise OptionError(
                f"width={width}, heads={heads}, key_heads={key_heads}",
                "a width that the number of heads divides, and a number of heads that the number "
                "of key heads divides",
            )
        size = head_size or width // heads
        self.width, self.heads, self.key_heads, self.dropout = width, heads, key_heads, dropout
        self.key_width, self.rotary, self.position_bias = key_width, rotary, position_bias
        self.query = nn.Linear(width, heads * size, bias=bias)
        self.key = nn.Linear(key_width, key_heads * size, bias=bias)
        self.value = nn.Linear(key_width, key_heads * size, bias=bias)
        self.output = nn.Linear(heads * size, width, bias=bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor | KeyValueCache | None = None,
        value: Tensor | None = None,
        *,
        mask: Any = None,
        bias: Tensor | Bias | None = None,
        cache: KeyValueCache | None = None,
        return_weights: bool = False,
    ) -> Any:
        """The output (B, Lq, width); with return_weights also the AttentionWeights (B, H, Lq, Lk).

        The weights are those before dropout. With a cache they hold until its next change: take
        `weights.copy()` to keep them.

        Args:
            query: (B, Lq, width).
            key: (B, Lk, key_width), or what `project` made of it; default: query, self-attention.
            value: (B, Lk, key_width); default: key.
            mask: a mask of Regard, such as regard.causal(), or a boolean array, True = may attend.
            bias: added to the scores; broadcasts to (B, H, Lq, Lk). Or one by distance, such as
                regard.alibi(…), if the layer has no position_bias.
            cache: of the positions before these; keys and values of this call are added to it, and
                all are attended to: a causal mask needs align="lower_right".

        Raises: regard.errors.ShapeError, MaskError, DtypeError.
        """
        _check_input(query, self.width)
        past, before = (0, 0) if cache is None else (cache.position, len(cache))
        held = (
            key
            if isinstance(key, KeyValueCache)
            else self.project(query if key is None else key, value, start=past)
        )
        queries = self.query(query).unflatten(-1, (self.heads, -1))
        if self.rotary is not None:
            queries = self.rotary(queries, past)
        if cache is not None:
            cache.append(held.key, held.value)
            held = cache
        if self.position_bias is not None:
            own = self.position_bias
            if bias is None and held.shared == 1:
                bias = own.bias()
            else:  # of two, or of rows of queries side by side, the matrix
                matrix = own(query.shape[1], len(held))
                bias = matrix if bias is None else bias + matrix
        try:
            output, weights = attend(
                queries,
                held.key,
                held.value,
                mask=mask,
                bias=bias,
                shared=held.shared,
                dropout_p=self.dropout if self.training else 0.0,
                return_weights=return_weights,
            )
        except RegardError:
            if cache is not None:  # as it was: the call can be made again
                cache.crop(before)
            raise
        output = self.output(output)
        return (output, weights) if return_weights else output

    def project(self, key: Tensor, value: Tensor | None = None, *, start: int = 0) -> KeyValueCache:
        """Keys and values of (B, Lk, key_width), to be attended to more than once.

        start: the position of the first, for rotary positions.
        """
        heads = (self.key_heads, -1)
        _check_input(key, self.key_width)
        value = key if value is None else value
        _check_input(value, self.key_width)
        keys = self.key(key).unflatten(-1, heads)
        values = self.value(value).unflatten(-1, heads)
        if self.rotary is not None:
            keys = self.rotary(keys, start)
        return KeyValueCache(keys, values)


def _check_input(given: Tensor, width: int) -> None:
    if given.ndim != 3 or given.shape[-1] != width:
        raise ShapeError(f"vectors {tuple(given.shape)}", f"(B, length, {width})")
