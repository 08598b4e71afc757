"""A sequence begun: what incremental decoding hands from token to token, for greedy and beams."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.layers.cache import KeyValueCache
from regard.masks import Extent, Mask, lengths, normal, visibility

__all__ = ["DecodingState"]


class DecodingState:
    """What decoders attend to in the source, row by row of a batch; subclasses add what is theirs.

    Args:
        memories: keys and values of the source, one for each attention.
        lengths: (B,), how many of them are no padding.
    """

    def __init__(self, memories: list[KeyValueCache], lengths: Tensor) -> None:
        self.memories = memories
        self._rows = torch.arange(len(lengths), device=lengths.device)  # of the memories, by row
        self._set_lengths(lengths)

    @property
    def mask(self) -> Mask | None:
        """What of the source may be seen, by each row of the memories; None: everything."""
        return self._mask

    def reorder(self, index: Tensor) -> None:
        """Row b becomes what row index[b] was. More rows than there were repeat some: beams."""
        rows = self._rows[index]
        if torch.equal(rows, self._rows):
            return
        held, counts = torch.unique_consecutive(rows, return_counts=True)
        shared = int(counts[0]) if len(counts) else 1
        if (counts != shared).any():
            held, shared = rows, 1
        for memory in self.memories:
            memory.reorder(held, shared)
        places = torch.arange(len(held), device=held.device)
        self._rows = places.repeat_interleave(shared)
        self._set_lengths(self._lengths[held])

    def _set_lengths(self, held: Tensor) -> None:
        self._lengths, self._mask = held, None
        longest = len(self.memories[0]) if self.memories else 0
        if not bool((held >= longest).all()):  # worked out here, once for all steps
            extent = Extent((len(held),), 1, 1, longest)
            self._mask = normal(visibility(lengths(keys=held), extent))
