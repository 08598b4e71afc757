"""A sequence begun: what incremental decoding hands from token to token, for greedy and beams."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.layers.cache import KeyValueCache
from regard.masks import Mask, lengths

__all__ = ["DecodingState"]


class DecodingState:
    """What decoders attend to in the source, row by row of a batch; subclasses add what is theirs.

    Args:
        memories: keys and values of the source, one for each attention.
        lengths: (B,), how many of them are no padding.
    """

    def __init__(self, memories: list[KeyValueCache], lengths: Tensor) -> None:
        self.memories = memories
        self._rows = torch.arange(len(lengths), device=lengths.device)  # of the memory, by row
        self._set_lengths(lengths)

    @property
    def mask(self) -> Mask:
        """What of the source may be seen."""
        return self._mask

    def reorder(self, index: Tensor) -> None:
        """Row b becomes what row index[b] was. More rows than there were repeat some: beams."""
        rows = self._rows[index]
        if torch.equal(rows, self._rows):  # beams of one source share what is held of it
            return
        for memory in self.memories:
            memory.reorder(index)
        self._rows = rows
        self._set_lengths(self._lengths[index])

    def _set_lengths(self, held: Tensor) -> None:
        self._lengths, self._mask = held, lengths(keys=held)
