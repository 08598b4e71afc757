"""What is added to the scores for the distance between query and key: ALiBi, and learned biases.

Both make a bias of regard.bias, which is never a matrix, for queries of which the last one stands
on the last key.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.bias import Bias, alibi, alibi_slopes, buckets_fit, t5_bias
from regard.errors import OptionError
from regard.frontends import torch as front
from regard.frontends.torch.own import spread
from regard.masks import Extent

__all__ = ["Alibi", "RelativePositions"]


class Alibi(nn.Module):
    """−m_h · |distance|, with a slope m_h = 2^(−8 (h + 1) / H) for head h; nothing is learned.

    Where H is no power of two, the slopes of the next lower one are followed by every other one of
    the next higher one, as the authors do.

    Args:
        heads: H.

    Source: Press, Smith, Lewis, "Train Short, Test Long: Attention with Linear Biases Enables Input
    Length Extrapolation" (2022).
    """

    slopes: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        slopes = torch.from_numpy(alibi_slopes(heads)).float()
        self.register_buffer("slopes", slopes, persistent=False)

    def bias(self) -> Bias:
        """For attention's `bias=`."""
        return alibi(self.slopes, align="lower_right")

    def forward(self, queries: int, keys: int) -> Tensor:
        """(H, Lq, Lk): the matrix, to be looked at or added to another bias."""
        return _dense(self.bias(), len(self.slopes), queries, keys, self.slopes)


class RelativePositions(nn.Module):
    """A learned number for each head and each range of distances, as in T5.

    Half of the ranges (of each direction) are single distances; the others grow with the logarithm
    of the distance, and the last one is for `furthest` and all that lies beyond.

    Args:
        heads: H.
        ranges: their number, of both directions together.
        furthest: the distance from which on no difference is made.
        bidirectional: whether keys after the query have ranges of their own; otherwise they count
            as distance 0.

    Source: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
    Transformer" (2020).
    """

    def __init__(
        self, heads: int, *, ranges: int = 32, furthest: int = 128, bidirectional: bool = True
    ) -> None:
        super().__init__()
        if not buckets_fit(ranges, bidirectional, furthest):
            raise OptionError(
                f"ranges={ranges}, furthest={furthest}",
                "at least 2 ranges a direction, and a distance beyond those that stand alone",
            )
        self.furthest, self.bidirectional = furthest, bidirectional
        self.table = nn.Embedding(ranges, heads)
        nn.init.zeros_(self.table.weight)

    def bias(self) -> Bias:
        """For attention's `bias=`."""
        return t5_bias(
            self.table.weight,
            bidirectional=self.bidirectional,
            max_distance=self.furthest,
            align="lower_right",
        )

    def forward(self, queries: int, keys: int) -> Tensor:
        """(H, Lq, Lk): the matrix, to be looked at or added to another bias."""
        weight = self.table.weight
        return _dense(self.bias(), self.table.embedding_dim, queries, keys, weight)


def _dense(bias: Bias, heads: int, queries: int, keys: int, like: Tensor) -> Tensor:
    extent = Extent((), heads, queries, keys)
    return spread(bias.table(front, like, extent, "float32"), keys).to(like.dtype)
