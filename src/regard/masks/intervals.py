"""The normal form of every mask: for each query, a few disjoint intervals of the keys it may see.

Intersections and unions of intervals are intervals again, and a kernel that is given them skips
every tile that nothing sees and tests only the borders. What is not a few intervals stays a dense
boolean array, which then holds in addition. The edges of a graph stay edges.

Sizes: B batch (all batch dimensions flattened), H query heads, Lq queries, Lk keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from regard.errors import MaskError
from regard.masks.edges import Edges

__all__ = ["EVERYTHING", "MOST_INTERVALS", "Extent", "Visibility", "interval", "runs", "stack"]

Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

# More intervals a query than this cost a kernel more than reading a dense mask does.
MOST_INTERVALS = 16
_PAIR_BYTES = 8


@dataclass(frozen=True)
class Extent:
    """The sizes that a mask is applied to: batch dimensions, H query heads, Lq queries, Lk keys."""

    batch: tuple[int, ...]
    heads: int
    queries: int
    keys: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(*batch, H, Lq, Lk)."""
        return (*self.batch, self.heads, self.queries, self.keys)

    @property
    def flat_batch(self) -> int:
        """B: the product of all batch dimensions."""
        return math.prod(self.batch)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of that shape broadcasts to these sizes."""
        wanted = self.shape
        tail = wanted[len(wanted) - len(shape) :]
        return len(shape) <= len(wanted) and all(map(_fits, shape, tail))


@dataclass(frozen=True, eq=False)
class Visibility:
    """What each query sees: inside one of its intervals, and where `dense` (if any) is true.

    intervals: (B|1, H|1, Lq|1, n, 2) int32 pairs start, stop; disjoint and ascending along n;
        an empty pair has start == stop. None: every key.
    dense: (B|1, H|1, Lq|1, Lk|1) boolean. None: no further condition.
    edges: of a graph; then intervals and dense are None.
    """

    intervals: Ints | None = None
    dense: Bools | None = None
    edges: Edges | None = None

    def __and__(self, other: Visibility) -> Visibility:
        if self.edges is not None:
            return Visibility(edges=self.edges.where(other.on(self.edges)))
        if other.edges is not None:
            return other & self
        return Visibility(
            _intersect(self.intervals, other.intervals), _combine(self.dense, other.dense)
        )

    def union(self, other: Visibility, keys: int) -> Visibility:
        """What either sees: intervals stay intervals, anything else becomes dense."""
        if self.sees_everything or other.sees_everything:
            return EVERYTHING
        plain = all(seen.dense is None and seen.edges is None for seen in (self, other))
        if plain:
            assert self.intervals is not None and other.intervals is not None
            return Visibility(_unite(self.intervals, other.intervals)).normal(keys)
        return Visibility(dense=self.as_dense(keys) | other.as_dense(keys))

    @property
    def sees_everything(self) -> bool:
        """Whether nothing is hidden."""
        return self.intervals is None and self.dense is None and self.edges is None

    def normal(self, keys: int) -> Visibility:
        """The same, dense if the intervals are too many, and not much smaller than that."""
        if self.intervals is None:
            return self
        count = self.intervals.shape[-2]
        if count <= MOST_INTERVALS or 4 * _PAIR_BYTES * count <= keys:
            return self
        return Visibility(dense=self.as_dense(keys))

    def as_dense(self, keys: int) -> Bools:
        """(B|1, H|1, Lq|1, Lk) boolean: quadratic memory unless a dimension is shared."""
        if self.edges is not None:
            queries, other, _ = self.edges.pairs
            shown: Bools = np.zeros((1, 1, len(self.edges.by_query.starts) - 1, keys), bool)
            shown[0, 0, queries, other] = True
            return shown
        seen: Bools = np.ones((1, 1, 1, keys), bool) if self.dense is None else self.dense
        if self.intervals is not None:
            seen = seen & _inside(self.intervals, np.arange(keys, dtype=np.int32))
        return np.broadcast_to(seen, np.broadcast_shapes(seen.shape, (1, 1, 1, keys)))

    def on(self, edges: Edges) -> Bools:
        """Whether each edge, by query, is seen. Raises: MaskError if batch or heads differ."""
        queries, keys, _ = edges.pairs
        if self.edges is not None:
            width = len(self.edges.by_key.starts)
            own, others, _ = self.edges.pairs
            return np.isin(queries * width + keys, own * width + others)
        seen: Bools = np.ones(len(queries), bool)
        for array in (self.intervals, self.dense):
            if array is not None and array.shape[:2] != (1, 1):
                raise MaskError(
                    "a graph & a mask that differs between batch elements or heads",
                    "one that all of them share",
                    "take the edges away that are hidden, and call once for each",
                )
        if self.intervals is not None:
            pairs = self.intervals[0, 0][queries if self.intervals.shape[2] > 1 else 0 * queries]
            seen &= ((pairs[..., 0] <= keys[:, None]) & (keys[:, None] < pairs[..., 1])).any(-1)
        if self.dense is not None:
            rows, columns = (size > 1 for size in self.dense.shape[2:])
            seen &= self.dense[0, 0][queries * rows, keys * columns]
        return seen

    def select(self, batch: npt.NDArray[np.int64], heads: npt.NDArray[np.int64]) -> Visibility:
        """The same for some batch elements and heads only, by their indices."""

        def pick(array: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
            if array is None:
                return None
            array = array if array.shape[0] == 1 else array[batch]
            return array if array.shape[1] == 1 else array[:, heads]

        return Visibility(pick(self.intervals), pick(self.dense), self.edges)


EVERYTHING = Visibility()


def interval(start: npt.ArrayLike, stop: npt.ArrayLike, keys: int) -> Visibility:
    """One interval a query: start and stop, (B|1, H|1, Lq|1), are cut to the keys."""
    start = np.minimum(np.maximum(start, 0), keys)
    stop = np.maximum(np.minimum(stop, keys), start)
    pairs = np.empty((*stop.shape, 1, 2), np.int32)
    pairs[..., 0, 0], pairs[..., 0, 1] = start, stop
    return Visibility(pairs)


def runs(keep: Bools) -> Ints:
    """(n, 2) start and stop of each run of True in a vector."""
    edges = np.flatnonzero(np.diff(keep.astype(np.int8), prepend=0, append=0))
    return edges.reshape(-1, 2).astype(np.int32)


def stack(parts: list[Ints], *lead: int) -> Ints:
    """Stack (*lead, n, 2) of different n along a new first dimension, padded with empty pairs."""
    most = max([1, *(part.shape[-2] for part in parts)])
    stacked = np.zeros((len(parts), *lead, most, 2), np.int32)
    for row, part in zip(stacked, parts, strict=True):
        row[..., : part.shape[-2], :] = part
    return stacked


def _fits(size: int, wanted: int) -> bool:
    return size in (1, wanted)


def _inside(pairs: Ints, keys: Ints) -> Bools:
    """(..., Lk): whether each key lies in one of the pairs (..., n, 2)."""
    seen: Bools = np.zeros((*pairs.shape[:-2], len(keys)), bool)
    for n in range(pairs.shape[-2]):
        seen |= (pairs[..., n, 0, None] <= keys) & (keys < pairs[..., n, 1, None])
    return seen


def _combine(one: Bools | None, other: Bools | None) -> Bools | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _intersect(one: Ints | None, other: Ints | None) -> Ints | None:
    """Pairwise intersections; ordered by the first operand's pairs, so they stay ascending."""
    if one is None or other is None:
        return other if one is None else one
    start = np.maximum(one[..., :, None, 0], other[..., None, :, 0])
    stop = np.maximum(np.minimum(one[..., :, None, 1], other[..., None, :, 1]), start)
    pairs = np.stack([start, stop], axis=-1)
    count = one.shape[-2] * other.shape[-2]  # not -1: there may be no queries
    return _compact(pairs.reshape(*pairs.shape[:-3], count, 2))


def _unite(one: Ints, other: Ints) -> Ints:
    lead = np.broadcast_shapes(one.shape[:-2], other.shape[:-2])
    pairs = np.concatenate(
        [np.broadcast_to(part, (*lead, *part.shape[-2:])) for part in (one, other)], axis=-2
    )
    order = np.argsort(pairs[..., 0], axis=-1, kind="stable")
    pairs = np.take_along_axis(pairs, order[..., None], axis=-2)
    for n in range(1, pairs.shape[-2]):
        before, here = pairs[..., n - 1, :], pairs[..., n, :]
        touching = here[..., 0] <= before[..., 1]
        here[..., 1] = np.where(touching, np.maximum(before[..., 1], here[..., 1]), here[..., 1])
        here[..., 0] = np.where(touching, before[..., 0], here[..., 0])
        before[..., 1] = np.where(touching, before[..., 0], before[..., 1])
    return _compact(pairs)


def _compact(pairs: Ints) -> Ints:
    """Drop the pairs that are empty for every query, after moving empty ones behind the others."""
    if pairs.shape[-2] == 1:
        return pairs
    empty = pairs[..., 0] == pairs[..., 1]
    most = max(1, int((~empty).sum(axis=-1).max(initial=0)))
    if most == pairs.shape[-2]:
        return pairs
    order = np.argsort(empty, axis=-1, kind="stable")
    return np.take_along_axis(pairs, order[..., None], axis=-2)[..., :most, :]
