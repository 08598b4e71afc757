"""Rotary positions: queries and keys are turned by their position."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.errors import OptionError
from regard.layers.angles import Angles

__all__ = ["Rotary"]


class Rotary(nn.Module):
    """Turns pairs of elements by angles t · base^(-2i / D), so that q · k depends on t_q − t_k.

    Args:
        size: D, the head size; even.
        base: of the angles' geometric series.
        interleaved: False pairs element i with i + D/2, as GPT-NeoX, Llama and transformers do;
            True pairs 2i with 2i + 1, as the article does.

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021).
    """

    def __init__(self, size: int, *, base: float = 10_000.0, interleaved: bool = False) -> None:
        super().__init__()
        if size % 2:
            raise OptionError(f"size={size}", "an even head size, whose elements go in pairs")
        self.interleaved = interleaved
        self._angles = Angles(size, base)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """(B, L, H, D) turned as positions start … start + L - 1 are, in the type of x."""
        angles = self._angles(start, start + x.shape[1], x.device)
        cosine, sine = (table[:, None] for table in angles)
        among = -1 if self.interleaved else -2  # the dimension of the two that make a pair
        pairs = (-1, 2) if self.interleaved else (2, -1)
        one, other = x.reshape(*x.shape[:-1], *pairs).unbind(among)
        turned = one * cosine - other * sine, other * cosine + one * sine
        return torch.stack(turned, dim=among).flatten(-2).to(x.dtype)
