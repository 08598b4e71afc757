"""Recurrent encoder and decoder with attention between them: where attention began."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from regard.errors import OptionError
from regard.layers.additive import AdditiveAttention
from regard.layers.bilinear import BilinearAttention
from regard.layers.cache import KeyValueCache
from regard.layers.decoding import DecodingState
from regard.layers.dropout import Dropout
from regard.layers.memory import Memory

__all__ = ["RecurrentEncoderDecoder", "RecurrentState"]

Attention = Literal["additive", "bilinear"] | None


class RecurrentEncoderDecoder(nn.Module):
    """A bidirectional GRU reads the source, a GRU that attends to it writes the target.

    At each step s_t = GRU([e(y_{t-1}), c_t], s_{t-1}), where the context c_t is what the attention
    of s_{t-1} finds among the source's states; the logits are made of s_t, c_t and e(y_{t-1}).
    Without attention c is the same at every step: the encoder's two last states.

    Args:
        source_vocabulary, target_vocabulary: numbers of tokens.
        width: of embeddings, and of the states of each GRU.
        attention: "additive", "bilinear", or None.
        dropout: of embeddings, and of what the logits are made of.
        tie_embeddings: whether the logits are products with the target's embeddings.

    Source: Bahdanau, Cho, Bengio, "Neural Machine Translation by Jointly Learning to Align and
    Translate" (2015).
    """

    def __init__(
        self,
        source_vocabulary: int,
        target_vocabulary: int,
        *,
        width: int = 256,
        attention: Attention = "additive",
        dropout: float = 0.1,
        tie_embeddings: bool = True,
    ) -> None:
        super().__init__()
        self.source_embedding = nn.Embedding(source_vocabulary, width)
        self.target_embedding = nn.Embedding(target_vocabulary, width)
        self.dropout = Dropout(dropout)
        self.encoder = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.cross = _attention(attention, width)
        self.first = nn.Linear(2 * width, width)
        self.decoder = nn.GRUCell(3 * width, width)
        self.readout = nn.Linear(4 * width, width)
        self.logits = nn.Linear(width, target_vocabulary)
        if tie_embeddings:
            self.logits.weight = self.target_embedding.weight
        for embedding in (self.source_embedding, self.target_embedding):
            nn.init.normal_(embedding.weight, std=width**-0.5)

    # Its loop over tokens and its GRU would be cut into many small graphs.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
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
        return_weights: also a list with the AttentionWeights (B, 1, L, S) over the source; it is
            empty without attention.
        """
        state = self.start(self.encode(source_tokens, source_lengths))
        embedded = self.dropout(self.target_embedding(target_tokens))
        before, after, contexts = [], [], []
        for token in embedded.unbind(1):
            before.append(state.hidden)
            contexts.append(self._advance(token, state))
            after.append(state.hidden)
        logits = self._logits(torch.stack(after, dim=1), torch.stack(contexts, dim=1), embedded)
        if not return_weights:
            return logits
        if self.cross is None:
            return logits, []
        queries, (held,) = torch.stack(before, dim=1), state.memories
        return logits, [self.cross(queries, held, mask=state.mask, return_weights=True)[1]]

    def encode(self, source_tokens: Tensor, source_lengths: Tensor) -> Memory:
        """What the encoder makes of source_tokens (B, S): states of size 2 · width."""
        embedded = self.dropout(self.source_embedding(source_tokens))
        packed = pack_padded_sequence(
            embedded, source_lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states, _ = self.encoder(packed)
        states, _ = pad_packed_sequence(
            states, batch_first=True, total_length=source_tokens.shape[1]
        )
        return Memory(states, source_lengths)

    def start(self, memory: Memory) -> RecurrentState:
        """The state before the first token, for `step`."""
        forwards, backwards = memory.states.chunk(2, dim=-1)
        rows = torch.arange(len(forwards), device=forwards.device)
        last = torch.cat([forwards[rows, memory.lengths - 1], backwards[:, 0]], dim=-1)
        held = [] if self.cross is None else [self.cross.project(memory.states)]
        return RecurrentState(torch.tanh(self.first(last)), last, held, memory.lengths)

    def step(self, tokens: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Logits (B, V) of the token that follows `tokens` (B,), and the state, which moved on."""
        embedded = self.dropout(self.target_embedding(tokens))
        context = self._advance(embedded, state)
        return self._logits(state.hidden, context, embedded), state

    def _advance(self, embedded: Tensor, state: RecurrentState) -> Tensor:
        """Move the state on by a token (B, width); the context (B, 2 · width) that it was given."""
        context = state.last
        if self.cross is not None:
            (held,) = state.memories
            context = self.cross(state.hidden[:, None], held, mask=state.mask)[:, 0]
        state.hidden = self.decoder(torch.cat([embedded, context], dim=-1), state.hidden)
        return context

    def _logits(self, hidden: Tensor, context: Tensor, embedded: Tensor) -> Tensor:
        joined = torch.cat([hidden, context, embedded], dim=-1)
        made: Tensor = self.logits(self.dropout(torch.tanh(self.readout(joined))))
        return made


class RecurrentState(DecodingState):
    """hidden (B, width), the decoder's state; last (B, 2 · width), the encoder's."""

    def __init__(
        self, hidden: Tensor, last: Tensor, memories: list[KeyValueCache], lengths: Tensor
    ) -> None:
        super().__init__(memories, lengths)
        self.hidden, self.last = hidden, last

    def reorder(self, index: Tensor) -> None:
        """Row b becomes what row index[b] was."""
        super().reorder(index)
        self.hidden, self.last = self.hidden[index], self.last[index]


def _attention(name: Attention, width: int) -> AdditiveAttention | BilinearAttention | None:
    match name:
        case None:
            return None
        case "additive":
            return AdditiveAttention(width, 2 * width)
        case "bilinear":
            return BilinearAttention(width, 2 * width)
    raise OptionError(f"attention={name!r}", '"additive", "bilinear" or None')
