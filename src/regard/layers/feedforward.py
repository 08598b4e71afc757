"""The feed-forward part of a block: each position by itself."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from regard.errors import OptionError

__all__ = ["Activation", "FeedForward"]

Activation = Literal["relu", "gelu", "swiglu"]


class FeedForward(nn.Module):
    """W₂ f(W₁ x): two products with a function between them.

    Args:
        width: size of input and output.
        inner: size between; default 4 · width.
        activation: "relu", "gelu", or "swiglu": silu(W x) · (W₁ x) (Shazeer, "GLU Variants Improve
            Transformer", 2020), which has a third matrix.
    """

    def __init__(
        self, width: int, inner: int | None = None, activation: Activation = "relu"
    ) -> None:
        super().__init__()
        if activation not in ("relu", "gelu", "swiglu"):
            raise OptionError(f"activation={activation!r}", '"relu", "gelu" or "swiglu"')
        inner = inner or 4 * width
        self.activation = activation
        self.enter = nn.Linear(width, inner)
        self.gate = nn.Linear(width, inner) if activation == "swiglu" else None
        self.leave = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) to (…, width)."""
        hidden = self.enter(x)
        if self.gate is not None:
            hidden = functional.silu(self.gate(x)) * hidden
        else:
            hidden = getattr(functional, self.activation)(hidden)
        result: Tensor = self.leave(hidden)
        return result
