"""Blocks one after another: an encoder (causal, a language model), and a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from torch import Tensor, nn

from regard.layers.blocks import BlockOptions, DecoderBlock, EncoderBlock
from regard.layers.cache import KeyValueCache

__all__ = ["Decoder", "Encoder"]


class Encoder(nn.Module):
    """Encoder blocks, and with norm="pre" a last normalisation.

    Args:
        width, heads: as in MultiHeadAttention.
        layers: number of blocks.
        options: of EncoderBlock.
    """

    def __init__(
        self, width: int, heads: int, layers: int, **options: Unpack[BlockOptions]
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(EncoderBlock(width, heads, **options) for _ in range(layers))
        self.norm = _last_norm(width, options)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Any = None,
        caches: Sequence[KeyValueCache] | None = None,
        return_weights: bool = False,
    ) -> Any:
        """(B, L, width) to (B, L, width); with return_weights also each block's AttentionWeights.

        caches: one for each block, for a causal mask with align="lower_right".
        """
        seen = []
        held: Sequence[KeyValueCache | None] = caches or [None] * len(self.blocks)
        for block, cache in zip(self.blocks, held, strict=True):
            x = block(x, mask=mask, cache=cache, return_weights=return_weights)
            if return_weights:
                x, weights = x
                seen.append(weights)
        x = self.norm(x)
        return (x, seen) if return_weights else x


class Decoder(nn.Module):
    """Decoder blocks, and with norm="pre" a last normalisation. Made like Encoder."""

    def __init__(
        self, width: int, heads: int, layers: int, **options: Unpack[BlockOptions]
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DecoderBlock(width, heads, **options) for _ in range(layers))
        self.norm = _last_norm(width, options)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | Sequence[KeyValueCache],
        *,
        mask: Any = None,
        memory_mask: Any = None,
        caches: Sequence[KeyValueCache] | None = None,
        return_weights: bool = False,
    ) -> Any:
        """(B, L, width) to (B, L, width); with return_weights also each block's BlockWeights.

        memory: (B, S, width), or what `project` made of it. The others: as in DecoderBlock.
        """
        seen = []
        held: Sequence[KeyValueCache | None] = caches or [None] * len(self.blocks)
        memories = [memory] * len(self.blocks) if isinstance(memory, Tensor) else memory
        options = {"mask": mask, "memory_mask": memory_mask, "return_weights": return_weights}
        for block, looked_at, cache in zip(self.blocks, memories, held, strict=True):
            x = block(x, looked_at, cache=cache, **options)
            if return_weights:
                x, weights = x
                seen.append(weights)
        x = self.norm(x)
        return (x, seen) if return_weights else x

    def project(self, memory: Tensor) -> list[KeyValueCache]:
        """What each block attends to in a memory (B, S, width), to be used more than once."""
        blocks = (block for block in self.blocks if isinstance(block, DecoderBlock))
        return [block.cross.project(memory) for block in blocks]


def _last_norm(width: int, options: BlockOptions) -> nn.Module:
    """Post-norm blocks end with one of their own."""
    return nn.Identity() if options.get("norm") == "post" else nn.LayerNorm(width)
