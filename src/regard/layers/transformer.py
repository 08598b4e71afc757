"""The Transformer: an encoder and a decoder that attend and nothing else."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from regard.errors import OptionError
from regard.layers.cache import KeyValueCache
from regard.layers.decoding import DecodingState
from regard.layers.dropout import Dropout
from regard.layers.memory import Memory
from regard.layers.positions import SinusoidalPositions
from regard.layers.stacks import Decoder, Encoder
from regard.masks import causal, lengths

__all__ = ["Transformer", "TransformerState"]

_CAUSAL = causal("lower_right")  # the last query stands on the last key, with a cache too


class Transformer(nn.Module):
    """Encoder and decoder of "Attention Is All You Need" (Vaswani et al., 2017).

    Tokens are integers; rows of sources and targets are padded at their end. Positions are
    sinusoidal, unless rotary or position_bias is among the options.

    Args:
        source_vocabulary, target_vocabulary: numbers of tokens.
        width, heads: size of the vectors, and number of heads.
        layers: number of blocks in the encoder, and in the decoder.
        dropout: of embeddings, and of what each part of a block gives.
        tie_embeddings: whether the logits are products with the target's embeddings.
        joint_vocabulary: whether source and target share their embeddings too: their tokens are of
            one vocabulary then.
        options: of EncoderBlock: feedforward, norm, activation, key_heads, …
    """

    def __init__(
        self,
        source_vocabulary: int,
        target_vocabulary: int,
        *,
        width: int = 128,
        heads: int = 4,
        layers: int = 4,
        dropout: float = 0.1,
        tie_embeddings: bool = True,
        joint_vocabulary: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if joint_vocabulary and source_vocabulary != target_vocabulary:
            raise OptionError(
                f"joint_vocabulary=True with {source_vocabulary} source tokens and "
                f"{target_vocabulary} target tokens",
                "one vocabulary",
            )
        self.width = width
        self.target_embedding = nn.Embedding(target_vocabulary, width)
        self.source_embedding = (
            self.target_embedding if joint_vocabulary else nn.Embedding(source_vocabulary, width)
        )
        told = options.get("rotary") or options.get("position_bias")
        self.positions = None if told else SinusoidalPositions(width)
        self.dropout = Dropout(dropout)
        self.encoder = Encoder(width, heads, layers, dropout=dropout, **options)
        self.decoder = Decoder(width, heads, layers, dropout=dropout, **options)
        self.logits = nn.Linear(width, target_vocabulary, bias=False)
        if tie_embeddings:
            self.logits.weight = self.target_embedding.weight
        self._initialise()

    def forward(
        self,
        source_tokens: Tensor,
        source_lengths: Tensor,
        target_tokens: Tensor,
        *,
        return_weights: bool = False,
    ) -> Any:
        """Logits (B, L, V) of the token that follows each of target_tokens (B, L).

        source_tokens: (B, S), of which source_lengths (B,) are no padding.
        return_weights: also a list with each decoder block's AttentionWeights (B, H, L, S) over
            the source.
        """
        memory = self.encode(source_tokens, source_lengths)
        found = self.decoder(
            self._embed(self.target_embedding, target_tokens),
            memory.states,
            mask=_CAUSAL,
            memory_mask=memory.mask,
            return_weights=return_weights,
        )
        if not return_weights:
            return self.logits(found)
        x, seen = found
        return self.logits(x), [weights.cross for weights in seen]

    def encode(self, source_tokens: Tensor, source_lengths: Tensor) -> Memory:
        """What the encoder makes of source_tokens (B, S)."""
        x = self._embed(self.source_embedding, source_tokens)
        return Memory(self.encoder(x, mask=lengths(keys=source_lengths)), source_lengths)

    def start(self, memory: Memory) -> TransformerState:
        """The state before the first token, for `step`."""
        return TransformerState(self.decoder.project(memory.states), memory.lengths)

    def step(self, tokens: Tensor, state: TransformerState) -> tuple[Tensor, TransformerState]:
        """Logits (B, V) of the token that follows `tokens` (B,), and the state, which moved on."""
        x = self.decoder(
            self._embed(self.target_embedding, tokens[:, None], state.position),
            state.memories,  # and no mask: the last position sees all before it
            memory_mask=state.mask,
            caches=state.caches,
        )
        return self.logits(x)[:, 0], state

    def _embed(self, embedding: nn.Module, tokens: Tensor, start: int = 0) -> Tensor:
        x = embedding(tokens) * math.sqrt(self.width)
        if self.positions is not None:
            x = self.positions(x, start)
        dropped: Tensor = self.dropout(x)
        return dropped

    def _initialise(self) -> None:
        """Matrices by Glorot and Bengio's rule, as in the article; embeddings of length about 1."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embedding in (self.source_embedding, self.target_embedding):
            nn.init.normal_(embedding.weight, std=self.width**-0.5)


class TransformerState(DecodingState):
    """A cache for each decoder block, of what it attended to in the target so far."""

    def __init__(self, memories: list[KeyValueCache], lengths: Tensor) -> None:
        super().__init__(memories, lengths)
        self.caches = [KeyValueCache() for _ in memories]

    @property
    def position(self) -> int:
        """The number of tokens so far."""
        return len(self.caches[0])

    def reorder(self, index: Tensor) -> None:
        """Row b becomes what row index[b] was."""
        super().reorder(index)
        for cache in self.caches:
            cache.reorder(index)
