"""Two recordings of the same shape compared: which heads differ most.

The distance of two heads is the total variation of their pooled maps, ½ Σ |a − b| over cells of
maps that sum to 1, in the mean over the batch: 0 for the same, 1 for maps without a cell in common.
It is never larger than that of the weights themselves, which it is a summary of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from regard._arrays import as_numpy
from regard.errors import ShapeError
from regard.recording.heads import HeadRow, table
from regard.recording.record import Recording

__all__ = ["HeadDifference", "compare"]

_CELLS = (64, 64)


@dataclass(frozen=True)
class HeadDifference:
    """A head in two recordings.

    distance: the total variation of its maps. changes: each score, the second less the first.
    """

    first: HeadRow
    second: HeadRow
    distance: float
    changes: dict[str, float]

    @property
    def largest(self) -> str:
        """The share that changed most, or "" where none is known."""
        shares = {n: abs(v) for n, v in self.changes.items() if v == v and n not in _NO_SHARES}
        return max(shares, key=lambda name: shares[name], default="")


_NO_SHARES = ("distance", "effective keys")


def compare(one: Recording, other: Recording) -> list[HeadDifference]:
    """Every head's difference, the largest first. Raises ShapeError unless the shapes are equal."""
    if len(one) != len(other):
        raise ShapeError(
            f"recordings of {len(one)} and {len(other)} calls", "as many of one as of the other"
        )
    tables = table(one), table(other)
    found: list[HeadDifference] = []
    for n, (first, second) in enumerate(zip(one.entries, other.entries, strict=True)):
        shapes = first.weights.shape, second.weights.shape
        if shapes[0] != shapes[1] or first.numbers != second.numbers:
            raise ShapeError(
                f"call {n} ({first.name}) has shape {shapes[0]} in one recording and {shapes[1]} "
                "in the other",
                "the same shapes and heads",
                "record texts of the same number of tokens",
            )
        distances = _distances(first.weights, second.weights)
        rows = zip(*([row for row in t if row.call == n] for t in tables), strict=True)
        for distance, (before, after) in zip(distances, rows, strict=True):
            changes = {name: after.scores[name] - before.scores[name] for name in before.scores}
            found.append(HeadDifference(before, after, float(distance), changes))
    return sorted(found, key=lambda difference: -difference.distance)


def _distances(one: Any, other: Any) -> npt.NDArray[np.float64]:
    """(H,): the total variation of the pooled maps."""
    maps = [as_numpy(weights.pooled(_CELLS, "sum")).astype(np.float64) for weights in (one, other)]
    shares = [m / np.maximum(m.sum(axis=(-2, -1), keepdims=True), 1e-300) for m in maps]
    variation = np.abs(shares[0] - shares[1]).sum(axis=(-2, -1)) / 2
    return np.asarray(variation.mean(axis=0))
