"""Encoder and decoder blocks: attention and a feed-forward part, each with a way around it."""

from __future__ import annotations

import copy
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

from torch import Tensor, nn

from regard.errors import OptionError
from regard.layers.cache import KeyValueCache
from regard.layers.distances import Alibi, RelativePositions
from regard.layers.dropout import Dropout
from regard.layers.feedforward import Activation, FeedForward
from regard.layers.multihead import MultiHeadAttention
from regard.layers.rotary import Rotary
from regard.operator import AttentionWeights

__all__ = ["BlockOptions", "BlockWeights", "DecoderBlock", "EncoderBlock", "Norm"]

Norm = Literal["pre", "post"]


class BlockOptions(TypedDict, total=False):
    """What EncoderBlock takes by keyword, and whatever has such blocks hands on."""

    feedforward: int | None
    dropout: float
    attention_dropout: float
    norm: Norm
    activation: Activation
    key_heads: int | None
    rotary: Rotary | None
    position_bias: Alibi | RelativePositions | None


class BlockWeights(NamedTuple):
    """What a decoder block attended to: its own positions, and the memory's."""

    own: AttentionWeights
    cross: AttentionWeights


class Residual(nn.Module):
    """The way around a part f of a block.

    norm="pre": x + dropout(f(norm(x))); "post": norm(x + dropout(f(x))).
    """

    def __init__(self, width: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        if norm not in ("pre", "post"):
            raise OptionError(f"norm={norm!r}", '"pre" or "post"')
        self.pre = norm == "pre"
        self.norm, self.dropout = nn.LayerNorm(width), Dropout(dropout)

    def enter(self, x: Tensor) -> Tensor:
        """What the part is given."""
        given: Tensor = self.norm(x) if self.pre else x
        return given

    def leave(self, x: Tensor, result: Tensor) -> Tensor:
        """x and what the part made of it, joined."""
        joined: Tensor = x + self.dropout(result)
        return joined if self.pre else self.norm(joined)


class EncoderBlock(nn.Module):
    """Self-attention, then a feed-forward part. With a causal mask it is a decoder-only block.

    Args:
        width, heads, key_heads, rotary, position_bias: as in MultiHeadAttention.
        feedforward: inner size of the feed-forward part; default 4 · width.
        dropout: of what each part gives, as in "Attention Is All You Need".
        attention_dropout: probability with which a weight is dropped.
        norm: "pre" normalises what a part is given, "post" (the article's) the sum behind it.
        activation: "relu", "gelu" or "swiglu".
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        feedforward: int | None = None,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        norm: Norm = "pre",
        activation: Activation = "relu",
        key_heads: int | None = None,
        rotary: Rotary | None = None,
        position_bias: Alibi | RelativePositions | None = None,
    ) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(
            width,
            heads,
            key_heads=key_heads,
            rotary=rotary,
            position_bias=position_bias,
            dropout=attention_dropout,
        )
        self.feedforward = FeedForward(width, feedforward, activation)
        self.around_attention = Residual(width, norm, dropout)
        self.around_feedforward = Residual(width, norm, dropout)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Any = None,
        cache: KeyValueCache | None = None,
        return_weights: bool = False,
    ) -> Any:
        """(B, L, width) to (B, L, width); with return_weights also the AttentionWeights."""
        x, weights = self._attend(x, mask, cache, return_weights)
        x = self._feed(x)
        return (x, weights) if return_weights else x

    def _attend(
        self, x: Tensor, mask: Any, cache: KeyValueCache | None, return_weights: bool
    ) -> tuple[Tensor, Any]:
        around = self.around_attention
        found = self.attention(
            around.enter(x), mask=mask, cache=cache, return_weights=return_weights
        )
        output, weights = found if return_weights else (found, None)
        return around.leave(x, output), weights

    def _feed(self, x: Tensor) -> Tensor:
        around = self.around_feedforward
        return around.leave(x, self.feedforward(around.enter(x)))


class DecoderBlock(EncoderBlock):
    """Self-attention, attention to a memory, then a feed-forward part; made like EncoderBlock.

    Positions concern self-attention alone: rotary and position_bias leave the memory as it is.
    """

    def __init__(self, width: int, heads: int, **options: Unpack[BlockOptions]) -> None:
        super().__init__(width, heads, **options)
        own = self.attention
        self.cross = MultiHeadAttention(width, heads, key_heads=own.key_heads, dropout=own.dropout)
        self.around_cross = copy.deepcopy(self.around_attention)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        memory: Tensor | KeyValueCache,
        *,
        mask: Any = None,
        memory_mask: Any = None,
        cache: KeyValueCache | None = None,
        return_weights: bool = False,
    ) -> Any:
        """(B, L, width) to (B, L, width); with return_weights also BlockWeights.

        memory: (B, S, width), or what `cross.project` made of it.
        memory_mask: what of the memory may be seen.
        """
        x, own = self._attend(x, mask, cache, return_weights)
        around = self.around_cross
        found = self.cross(around.enter(x), memory, mask=memory_mask, return_weights=return_weights)
        output, cross = found if return_weights else (found, None)
        x = self._feed(around.leave(x, output))
        return (x, BlockWeights(own, cross)) if return_weights else x  # type: ignore[arg-type]
