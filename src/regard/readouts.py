"""Read-outs: exact summaries of the weights, gathered block by block in memory linear in length.

Each class is one read-out: it is shown every block of rows once (`add`), then asked for the result,
as NumPy arrays of leading shape (B, H), B flattened. Requested together they share the sweep.
i counts queries, j keys; p_ij are the weights, s_ij the scores. Cost: one pass over all visible
pairs. The docstrings of `AttentionWeights` say formula and shape of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from regard import dispatch
from regard._arrays import as_numpy
from regard.errors import OptionError, ShapeError
from regard.masks import Extent
from regard.problem import Problem

__all__ = ["KINDS", "Block", "Edges", "Pooled", "ReadOut", "TopK", "blocks", "gather"]

Array = npt.NDArray[Any]

# Elements of one block of scores: large enough to keep NumPy busy, small enough to stay in cache.
_BLOCK_ELEMENTS = 1 << 19


class TopK(NamedTuple):
    """Per query the largest weights, falling, and the keys they belong to: both (B, H, Lq, k)."""

    weights: Any
    keys: Any


class Edges(NamedTuple):
    """Pairs of query and key with a large weight; five vectors (n,), ordered by (b, h, i, j)."""

    batch: Any
    head: Any
    query: Any
    key: Any
    weight: Any


class Pooled(NamedTuple):
    """The map summed and maximised into cells: both (B, H, rows, columns)."""

    sum: Any
    max: Any


@dataclass(frozen=True)
class Block:
    """Some rows of one head's weights, over the keys that any of them may see."""

    batch: int
    head: int
    rows: slice
    keys: slice
    scores: Array  # (rows, keys), hidden −∞
    lse: Array  # (rows,)
    weights: Array  # (rows, keys)

    @property
    def at(self) -> tuple[int, int, slice]:
        """Where the rows stand in an array (B, H, Lq, …)."""
        return self.batch, self.head, self.rows

    def distances(self, offset: int) -> Array:
        """(rows, keys): |j − (i + offset)|."""
        i = np.arange(self.rows.start, self.rows.stop)[:, None] + offset
        distances: Array = np.abs(np.arange(self.keys.start, self.keys.stop) - i)
        return distances


def blocks(
    problem: Problem, lse: Array, backend: str | None, lengths: tuple[int, int] | None = None
) -> Iterator[Block]:
    """Every block of rows, batch element by batch element and head by head; lse (B, H, Lq).

    lengths: (first, last) row, where not all of them are wanted.
    """
    extent, seen = problem.extent, problem.visibility
    step = max(1, _BLOCK_ELEMENTS // max(1, extent.keys))
    first, last = lengths or (0, extent.queries)
    for b in range(extent.flat_batch):
        for h in range(extent.heads):
            for start in range(first, last, step):
                rows = slice(start, min(start + step, last))
                keys = seen.key_range(b, h, rows, extent.keys)
                yield block(problem, lse, backend, b, h, rows, keys)


def block(
    problem: Problem, lse: Array, backend: str | None, b: int, h: int, rows: slice, keys: slice
) -> Block:
    """One block of rows and keys; lse (B, H, Lq)."""
    scores = dispatch.score_block(problem, b, h, rows, keys, backend)
    total = lse[b, h, rows]
    return Block(b, h, rows, keys, scores, total, _weights(scores, total))


def _weights(scores: Array, lse: Array) -> Array:
    blind = lse == -np.inf
    if blind.any():  # nothing is seen: every score is −∞, and so is the sum
        lse = np.where(blind, 0, lse)
    with np.errstate(invalid="ignore"):
        weights: Array = np.exp(scores - lse[:, None])
    return weights


class ReadOut:
    """One read-out over all blocks."""

    name: ClassVar[str]

    def __init__(self, extent: Extent, dtype: str) -> None:
        self.extent, self.dtype = extent, dtype

    def add(self, block: Block) -> None:
        """Take one block into account."""
        raise NotImplementedError

    def result(self) -> Any:
        """The read-out: an array, or a named tuple of arrays."""
        raise NotImplementedError

    def zeros(self, *tail: int, dtype: Any = None) -> Array:
        """(B, H, *tail) zeros."""
        lead = (self.extent.flat_batch, self.extent.heads)
        return np.zeros((*lead, *tail), dtype or self.dtype)


class _PerQuery(ReadOut):
    """One number a query: (B, H, Lq)."""

    def __init__(self, extent: Extent, dtype: str) -> None:
        super().__init__(extent, dtype)
        self.values = self.zeros(extent.queries)

    def add(self, block: Block) -> None:
        self.values[block.at] = self.of(block)

    def of(self, block: Block) -> Array:
        """(rows,)."""
        raise NotImplementedError

    def result(self) -> Array:
        return self.values


class Lse(_PerQuery):
    name = "lse"

    def of(self, block: Block) -> Array:
        return block.lse


class MaxScore(_PerQuery):
    name = "max_score"

    def of(self, block: Block) -> Array:
        return np.asarray(block.scores.max(axis=-1, initial=-np.inf))


class MaxWeight(_PerQuery):
    name = "max_weight"

    def of(self, block: Block) -> Array:
        return np.asarray(block.weights.max(axis=-1, initial=0))


class Entropy(_PerQuery):
    name = "entropy"

    def of(self, block: Block) -> Array:
        with np.errstate(invalid="ignore"):
            terms = block.weights * (block.scores - block.lse[:, None])
        entropy: Array = -np.where(block.weights == 0, 0, terms).sum(axis=-1)
        return entropy


class EffectiveKeys(_PerQuery):
    name = "effective_keys"

    def of(self, block: Block) -> Array:
        squares = np.einsum("ij,ij->i", block.weights, block.weights)
        effective: Array = np.divide(1, squares, out=np.zeros_like(squares), where=squares != 0)
        return effective


class Distance(_PerQuery):
    name = "distance"

    def __init__(self, extent: Extent, dtype: str, offset: int = 0) -> None:
        super().__init__(extent, dtype)
        self.offset = offset

    def of(self, block: Block) -> Array:
        return np.asarray((block.weights * block.distances(self.offset)).sum(axis=-1))


class DistanceBins(ReadOut):
    name = "distance_bins"

    def __init__(self, extent: Extent, dtype: str, offset: int = 0) -> None:
        super().__init__(extent, dtype)
        self.offset = offset
        farthest = max(abs(extent.keys - 1 - offset), abs(extent.queries - 1 + offset), abs(offset))
        self.values = self.zeros(extent.queries, farthest.bit_length() + 1)

    def add(self, block: Block) -> None:
        # frexp's exponent is the number of binary digits: 0 for 0, n for 2ⁿ⁻¹ … 2ⁿ − 1.
        bins = np.frexp(block.distances(self.offset))[1]
        count = self.values.shape[-1]
        index = bins + np.arange(len(bins))[:, None] * count
        sums = np.bincount(index.ravel(), block.weights.ravel(), count * len(bins))
        self.values[block.at] = sums.reshape(-1, count)

    def result(self) -> Array:
        return self.values


class Offsets(ReadOut):
    name = "offsets"

    def __init__(self, extent: Extent, dtype: str, offsets: Any = (-1, 0, 1)) -> None:
        super().__init__(extent, dtype)
        self.offsets = np.atleast_1d(as_numpy(offsets))
        if self.offsets.size and self.offsets.dtype.kind not in "iu":
            raise OptionError(f"offsets({offsets!r})", "whole numbers")
        self.values = self.zeros(extent.queries, len(self.offsets))

    def add(self, block: Block) -> None:
        i = np.arange(block.rows.start, block.rows.stop)[:, None]
        j = i + self.offsets - block.keys.start
        inside = (j >= 0) & (j < block.weights.shape[1])
        if block.weights.size:
            found = np.take_along_axis(block.weights, np.where(inside, j, 0), axis=1)
            self.values[block.at] = np.where(inside, found, 0)

    def result(self) -> Array:
        return self.values


class Mass(ReadOut):
    name = "mass"

    def __init__(self, extent: Extent, dtype: str, keys: Any = 1) -> None:
        super().__init__(extent, dtype)
        groups = _groups(keys, extent)
        self.single = groups.dtype == bool
        codes = np.where(groups, 0, -1) if self.single else groups
        self.codes = np.broadcast_to(codes, (extent.flat_batch, extent.keys))
        self.count = int(codes.max(initial=0)) + 1
        self.values = self.zeros(extent.queries, self.count)

    def add(self, block: Block) -> None:
        codes = self.codes[block.batch, block.keys]
        members = (codes[:, None] == np.arange(self.count)).astype(self.dtype)
        self.values[block.at] = block.weights @ members

    def result(self) -> Array:
        return self.values[..., 0] if self.single else self.values


class TopKReadOut(ReadOut):
    name = "top_k"

    def __init__(self, extent: Extent, dtype: str, k: int = 8) -> None:
        super().__init__(extent, dtype)
        if not isinstance(k, (int, np.integer)) or k < 1:
            raise OptionError(f"top_k(k={k!r})", "a whole number, 1 or more")
        self.k = int(k)
        self.weights = self.zeros(extent.queries, self.k)
        self.keys = self.zeros(extent.queries, self.k, dtype=np.int64) - 1

    def add(self, block: Block) -> None:
        left = block.scores.copy()
        lines = np.arange(len(left))
        for n in range(min(self.k, left.shape[1])):
            best = left.argmax(axis=-1)  # the first of equals: ties go to the lower key
            found = left[lines, best] != -np.inf
            left[lines, best] = -np.inf
            at = (*block.at, n)
            self.weights[at] = np.where(found, block.weights[lines, best], 0)
            self.keys[at] = np.where(found, best + block.keys.start, -1)

    def result(self) -> TopK:
        return TopK(self.weights, self.keys)


class Threshold(ReadOut):
    name = "threshold"

    def __init__(self, extent: Extent, dtype: str, least: float = 0.1) -> None:
        super().__init__(extent, dtype)
        if not 0 < least <= 1:
            raise OptionError(f"threshold({least})", "a weight above 0 and at most 1")
        self.least = least
        self.found: list[tuple[Array, ...]] = []

    def add(self, block: Block) -> None:
        query, key = np.nonzero(block.weights >= self.least)
        where = (np.full(len(query), n) for n in (block.batch, block.head))
        weight = block.weights[query, key]
        self.found.append((*where, query + block.rows.start, key + block.keys.start, weight))

    def result(self) -> Edges:
        if not self.found:
            nothing = np.zeros(0, np.int64)
            return Edges(nothing, nothing, nothing, nothing, np.zeros(0, self.dtype))
        return Edges(*map(np.concatenate, zip(*self.found, strict=True)))


class Received(ReadOut):
    name = "received"

    def __init__(
        self, extent: Extent, dtype: str, reduce: str = "sum", queries: Any = None
    ) -> None:
        super().__init__(extent, dtype)
        if reduce not in ("sum", "mean", "max"):
            raise OptionError(f"received(reduce={reduce!r})", '"sum", "mean" or "max"')
        self.reduce = reduce
        self.counts_query = np.zeros(extent.queries, bool)
        chosen = slice(None) if queries is None else queries
        self.counts_query[chosen if isinstance(chosen, slice) else as_numpy(chosen)] = True
        self.values = self.zeros(extent.keys, dtype=np.float64)
        self.viewers = self.zeros(extent.keys, dtype=np.int64)

    def add(self, block: Block) -> None:
        rows = self.counts_query[block.rows]
        weights = block.weights if rows.all() else block.weights[rows]
        target = self.values[block.batch, block.head, block.keys]
        if self.reduce == "max":
            np.maximum(target, weights.max(axis=0, initial=0), out=target)
        else:
            target += weights.sum(axis=0, dtype=np.float64)
        if self.reduce == "mean":
            seen = block.scores[rows] != -np.inf
            self.viewers[block.batch, block.head, block.keys] += seen.sum(axis=0)

    def result(self) -> Array:
        if self.reduce == "mean":
            return (self.values / np.maximum(self.viewers, 1)).astype(self.dtype)
        return self.values.astype(self.dtype)


class PooledReadOut(ReadOut):
    name = "pooled"

    def __init__(
        self, extent: Extent, dtype: str, shape: Any = (64, 64), reduce: str = "sum"
    ) -> None:
        super().__init__(extent, dtype)
        if reduce not in ("sum", "max", "both"):
            raise OptionError(f"pooled(reduce={reduce!r})", '"sum", "max" or "both"')
        sizes = np.asarray(shape)
        if sizes.shape != (2,) or sizes.dtype.kind not in "iu" or sizes.min() < 1:
            raise OptionError(f"pooled(shape={shape})", "two sizes, 1 or more, rows and columns")
        self.reduce = reduce
        cells = [
            min(int(size), max(1, length))
            for size, length in zip(sizes, (extent.queries, extent.keys), strict=True)
        ]
        self.row_cell = np.arange(extent.queries) * cells[0] // max(1, extent.queries)
        self.key_cell = np.arange(extent.keys) * cells[1] // max(1, extent.keys)
        self.sum = self.zeros(*cells, dtype=np.float64)
        self.max = self.zeros(*cells)

    def add(self, block: Block) -> None:
        if not block.weights.size:
            return
        row_cell, key_cell = self.row_cell[block.rows], self.key_cell[block.keys]
        row_edges, key_edges = (
            np.flatnonzero(np.diff(c, prepend=-1)) for c in (row_cell, key_cell)
        )
        cells = np.ix_(row_cell[row_edges], key_cell[key_edges])
        head = block.batch, block.head
        if self.reduce != "max":
            columns = np.add.reduceat(block.weights, key_edges, axis=1, dtype=np.float64)
            self.sum[head][cells] += np.add.reduceat(columns, row_edges, axis=0)
        if self.reduce != "sum":
            columns = np.maximum.reduceat(block.weights, key_edges, axis=1)
            largest = np.maximum.reduceat(columns, row_edges, axis=0)
            self.max[head][cells] = np.maximum(self.max[head][cells], largest)

    def result(self) -> Any:
        both = Pooled(self.sum.astype(self.dtype), self.max)
        return both if self.reduce == "both" else getattr(both, self.reduce)


KINDS: dict[str, type[ReadOut]] = {
    kind.name: kind
    for kind in (
        *(Lse, MaxScore, MaxWeight, Entropy, EffectiveKeys, TopKReadOut, Threshold, Mass),
        *(Distance, DistanceBins, Offsets, Received, PooledReadOut),
    )
}


def gather(
    problem: Problem, lse: Array, backend: str | None, requests: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The read-outs requested (name: its keywords), in one sweep; lse (B, H, Lq)."""
    wanted = {
        name: KINDS[name](problem.extent, problem.accumulation_dtype, **keywords)
        for name, keywords in requests.items()
    }
    if set(wanted) - {"lse"}:
        for part in blocks(problem, lse, backend):
            for read_out in wanted.values():
                read_out.add(part)
    return {name: lse if name == "lse" else read_out.result() for name, read_out in wanted.items()}


def _groups(keys: Any, extent: Extent) -> Array:
    """(B|1, Lk) booleans, or integers with a group for each key (negative: none)."""
    if isinstance(keys, (int, np.integer)) and not isinstance(keys, bool):
        if keys < 1:
            raise OptionError(f"mass(keys={keys})", "a number of first keys, 1 or more")
        return np.asarray(np.arange(extent.keys) < keys)[None]
    groups = as_numpy(keys)
    if groups.dtype != bool and groups.dtype.kind not in "iu":
        raise OptionError(
            f"mass(keys) of type {groups.dtype}",
            "a number of first keys, booleans (Lk,), or a group number for each key",
        )
    if groups.shape not in ((extent.keys,), (extent.flat_batch, extent.keys)):
        raise ShapeError(
            f"mass(keys) of shape {groups.shape}",
            f"(Lk,) or (B, Lk) = ({extent.flat_batch}, {extent.keys})",
        )
    return groups.reshape(-1, extent.keys)
