"""Where a token stands, added to what it is: sinusoidal and learned positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.errors import ShapeError
from regard.layers.angles import Angles

__all__ = ["LearnedPositions", "SinusoidalPositions"]


class SinusoidalPositions(nn.Module):
    """x + p, where p[t, 2i] = sin(t / 10000^(2i / width)) and p[t, 2i+1] the cosine of the same.

    Any length; nothing is learned. Source: Vaswani et al., "Attention Is All You Need" (2017).

    Args:
        width: size of the vectors.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self._angles = Angles(width, 10_000.0)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """(B, L, width) with the positions start … start + L - 1 added."""
        cosines, sines = self._angles(start, start + x.shape[1], x.device)
        table = torch.stack([sines, cosines], dim=-1).flatten(1)[:, : self.width]
        return x + table.to(x.dtype)


class LearnedPositions(nn.Module):
    """x + p, where p (longest, width) is learned.

    Args:
        width: size of the vectors.
        longest: the number of positions that there are.
    """

    def __init__(self, width: int, longest: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(longest, width))
        nn.init.normal_(self.table, std=0.02)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """(B, L, width) with the positions start … start + L - 1 added."""
        stop = start + x.shape[1]
        if stop > len(self.table):
            raise ShapeError(
                f"{stop} positions", f"at most {len(self.table)}", "make longest= larger"
            )
        return x + self.table[start:stop]
