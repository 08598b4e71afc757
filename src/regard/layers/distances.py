"""What is added to the scores for the distance between query and key: ALiBi, and learned biases.

Both give a dense bias (H, Lq, Lk), whose memory is quadratic in length.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from regard.errors import OptionError

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
        self.register_buffer("slopes", torch.tensor(_slopes(heads)), persistent=False)

    def forward(self, queries: int, keys: int) -> Tensor:
        """(H, Lq, Lk), where the last query stands on the last key."""
        away = _distances(queries, keys, self.slopes.device).abs()
        return -self.slopes[:, None, None] * away


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
        one_way = ranges // 2 if bidirectional else ranges
        if one_way < 2 or furthest <= one_way // 2:
            raise OptionError(
                f"ranges={ranges}, furthest={furthest}",
                "at least 2 ranges a direction, and a distance beyond those that stand alone",
            )
        self.furthest, self.bidirectional = furthest, bidirectional
        self.table = nn.Embedding(ranges, heads)
        nn.init.zeros_(self.table.weight)

    def forward(self, queries: int, keys: int) -> Tensor:
        """(H, Lq, Lk), where the last query stands on the last key."""
        distances = _distances(queries, keys, self.table.weight.device)
        found: Tensor = self.table(self._ranges(distances))
        return found.permute(2, 0, 1)

    def _ranges(self, distances: Tensor) -> Tensor:
        """The number of the range that each distance (key − query) lies in."""
        ranges, first = self.table.num_embeddings, torch.zeros_like(distances)
        if self.bidirectional:
            ranges //= 2
            first = (distances > 0) * ranges
            away = distances.abs()
        else:
            away = (-distances).clamp(min=0)
        single = ranges // 2
        growth = torch.log(away.clamp(min=1) / single) / math.log(self.furthest / single)
        grown = (single + (growth * (ranges - single)).long()).clamp(max=ranges - 1)
        return first + torch.where(away < single, away, grown)


def _distances(queries: int, keys: int, device: torch.device) -> Tensor:
    """(Lq, Lk): key − query."""
    stands_on = torch.arange(keys - queries, keys, device=device)
    return torch.arange(keys, device=device) - stands_on[:, None]


def _slopes(heads: int) -> list[float]:
    power = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8 * (head + 1) / power) for head in range(power)]
    return slopes + [2.0 ** (-8 * (head + 0.5) / power) for head in range(heads - power)]
