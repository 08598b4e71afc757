"""What an encoder made of the source, for a decoder to look at."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regard.masks import Mask, lengths

__all__ = ["Memory"]


@dataclass
class Memory:
    """states (B, S, width), of which the first lengths[b] of row b are there, others padding."""

    states: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Mask:
        """What of it may be seen."""
        return lengths(keys=self.lengths)
