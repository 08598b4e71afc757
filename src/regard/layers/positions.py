"""Where a token stands, added to what it is: sinusoidal and learned positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from regard.errors import ShapeError

__all__ = ["LearnedPositions", "SinusoidalPositions"]


class SinusoidalPositions(nn.Module):
    """x + p, where p[t, 2i] = sin(t / 10000^(2i / width)) and p[t, 2i+1] the cosine of the same.

    Any length; nothing is learned. Source: Vaswani et al., "Attention Is All You Need" (2017).
    """

    table: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("table", self._computed(512), persistent=False)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """(B, L, width) with the positions start … start + L - 1 added."""
        stop = start + x.shape[1]
        if stop > len(self.table):
            self.table = self._computed(2 * stop).to(self.table)
        return x + self.table[start:stop].to(x.dtype)

    def _computed(self, length: int) -> Tensor:
        steps = torch.arange(0, self.width, 2, dtype=torch.float32)
        rates = torch.exp(steps * (-math.log(10_000.0) / self.width))
        angles = torch.arange(length, dtype=torch.float32)[:, None] * rates
        table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
        return table[:, : self.width]


class LearnedPositions(nn.Module):
    """x + p, where p (longest, width) is learned."""

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
