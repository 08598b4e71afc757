"""A mask for each element of the first batch dimension: what mapping a call over masks makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from regard.masks.base import Mask
from regard.masks.intervals import Extent, Visibility

__all__ = ["Stacked"]


Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False, repr=False)
class Stacked(Mask):
    """Element b of the first batch dimension has the mask parts[b]; one part serves all of them."""

    parts: tuple[Mask, ...]

    def visibility(self, extent: Extent) -> Visibility:
        """Those of the parts one after another."""
        count, *batch = extent.batch
        inner = dataclasses.replace(extent, batch=tuple(batch))
        parts = [part.visibility(inner) for part in self.parts]
        parts = parts * count if len(parts) == 1 else parts
        if all(seen.intervals is not None and seen.dense is None for seen in parts):
            return Visibility(_intervals(parts, inner)).normal(extent.keys)
        dense = [seen.as_dense(extent.keys) for seen in parts]
        shape = np.broadcast_shapes(*(array.shape for array in dense))
        shape = (inner.flat_batch if shape[0] > 1 or count > 1 else 1, *shape[1:])
        return Visibility(dense=np.concatenate([np.broadcast_to(d, shape) for d in dense]))

    def __repr__(self) -> str:
        shown = repr(self.parts[0])
        return shown if len(self.parts) == 1 else f"{len(self.parts)} masks such as {shown}"


def _intervals(parts: Sequence[Visibility], inner: Extent) -> Ints:
    """Theirs one after another, as many for each query, the surplus empty."""
    given = [seen.intervals for seen in parts if seen.intervals is not None]
    lead = np.broadcast_shapes(*(part.shape[1:-2] for part in given))
    most = max(part.shape[-2] for part in given)
    found = np.zeros((len(given), inner.flat_batch, *lead, most, 2), np.int32)
    for row, part in zip(found, given, strict=True):
        row[..., : part.shape[-2], :] = part
    return found.reshape(-1, *found.shape[2:])
