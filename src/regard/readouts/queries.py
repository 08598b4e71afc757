"""Read-outs of queries: what each attends to. All are (B, H, Lq, …)."""

from __future__ import annotations

from typing import Any

import numpy as np

from regard._arrays import as_numpy
from regard.errors import OptionError, ShapeError
from regard.masks import Extent
from regard.readouts.base import Array, Dense, Edges, ReadOut, TopK, group_codes, position, whole

__all__ = [
    "Distance",
    "DistanceBins",
    "EffectiveKeys",
    "Entropy",
    "Mass",
    "MaxScore",
    "MaxWeight",
    "Offsets",
    "Threshold",
    "TopKeys",
]


class _PerQuery(ReadOut):
    """One number a query, (B, H, Lq), or what a subclass says."""

    def fields(self) -> dict[str, Any]:
        self.values = self.empty(self.extent.queries)
        return {self.name: self.values}

    def result(self) -> Array:
        return self.values


class MaxScore(_PerQuery):
    name = "max_score"

    def of(self, dense: Dense) -> Array:
        return np.asarray(dense.scores.max(axis=-1, initial=-np.inf))


class MaxWeight(_PerQuery):
    name = "max_weight"

    def of(self, dense: Dense) -> Array:
        return np.asarray(dense.weights.max(axis=-1, initial=0))


class Entropy(_PerQuery):
    name = "entropy"

    def of(self, dense: Dense) -> Array:
        p = dense.weights
        logarithms: Array = np.log(p, out=np.zeros_like(p), where=p != 0)
        return np.asarray(0 - (p * logarithms).sum(axis=-1))


class EffectiveKeys(_PerQuery):
    name = "effective_keys"

    def of(self, dense: Dense) -> Array:
        squares = (dense.weights**2).sum(axis=-1)
        effective: Array = np.divide(1, squares, out=np.zeros_like(squares), where=squares != 0)
        return effective


class Distance(_PerQuery):
    name = "distance"

    def __init__(self, extent: Extent, dtype: str, offset: int = 0) -> None:
        super().__init__(extent, dtype)
        self.offset = position("distance(offset", offset)

    def fields(self) -> dict[str, Any]:
        return {**super().fields(), "distance_offset": self.offset}

    def of(self, dense: Dense) -> Array:
        return np.asarray((dense.weights * dense.distances(self.offset)).sum(axis=-1))


class DistanceBins(_PerQuery):
    name = "distance_bins"

    def __init__(self, extent: Extent, dtype: str, offset: int = 0) -> None:
        super().__init__(extent, dtype)
        self.offset = offset = position("distance_bins(offset", offset)
        farthest = max(abs(extent.keys - 1 - offset), abs(extent.queries - 1 + offset), abs(offset))
        self.count = farthest.bit_length() + 1

    def fields(self) -> dict[str, Any]:
        self.values = self.empty(self.extent.queries, self.count)
        return {"bins": self.values, "bin_count": self.count, "bin_offset": self.offset}

    def of(self, dense: Dense) -> Array:
        # frexp's exponent is the number of binary digits: 0 for 0, n for 2ⁿ⁻¹ … 2ⁿ − 1.
        bins = np.frexp(dense.distances(self.offset))[1]
        sums = [(dense.weights * (bins == n)).sum(axis=-1) for n in range(self.count)]
        return np.stack(sums, axis=-1)


class Offsets(_PerQuery):
    name = "offsets"

    def __init__(self, extent: Extent, dtype: str, offsets: Any = (-1, 0, 1)) -> None:
        super().__init__(extent, dtype)
        self.offsets = np.atleast_1d(as_numpy(offsets))
        if self.offsets.ndim > 1 or (self.offsets.size and self.offsets.dtype.kind not in "iu"):
            raise OptionError(f"offsets({offsets!r})", "whole numbers")
        self.offsets = self.offsets.astype(np.int64)

    def fields(self) -> dict[str, Any]:
        count = len(self.offsets)
        self.values = self.empty(self.extent.queries, count)
        return {"offset_weights": self.values, "offsets": self.offsets, "offset_count": count}

    def of(self, dense: Dense) -> Array:
        queries, keys = dense.weights.shape[-2:]
        i = np.arange(queries)[:, None]
        j = i + self.offsets
        inside = (j >= 0) & (j < keys)
        if not keys:
            return np.zeros((*dense.weights.shape[:-1], len(self.offsets)))
        return np.where(inside, dense.weights[..., i, np.where(inside, j, 0)], 0)


class Mass(_PerQuery):
    name = "mass"

    def __init__(self, extent: Extent, dtype: str, keys: Any = 1) -> None:
        super().__init__(extent, dtype)
        groups = _groups(keys, extent)
        self.single = groups.dtype == bool
        codes = np.where(groups, 0, -1) if self.single else groups
        self.codes = group_codes("mass(keys)", codes)
        self.count = max(int(self.codes.max(initial=-1)) + 1, 1 if self.single else 0)

    def fields(self) -> dict[str, Any]:
        self.values = self.empty(self.extent.queries, self.count)
        return {
            "mass": self.values,
            "key_groups": self.codes,
            "key_groups_stride": self.extent.keys if len(self.codes) > 1 else 0,
            "mass_count": self.count,
        }

    def result(self) -> Array:
        return self.values[..., 0] if self.single else self.values

    def of(self, dense: Dense) -> Array:
        members = self.codes[:, None, :, None] == np.arange(self.count)
        mass: Array = dense.weights @ members.astype(np.float64)
        return mass[..., 0] if self.single else mass


class TopKeys(ReadOut):
    name = "top_k"

    def __init__(self, extent: Extent, dtype: str, k: int = 8) -> None:
        super().__init__(extent, dtype)
        self.k = whole("top_k(k", k)

    def fields(self) -> dict[str, Any]:
        self.weights = self.empty(self.extent.queries, self.k)
        self.keys = self.empty(self.extent.queries, self.k, dtype=np.int64)
        return {"top_weights": self.weights, "top_keys": self.keys, "top_count": self.k}

    def result(self) -> TopK:
        return TopK(self.weights, self.keys)

    def of(self, dense: Dense) -> TopK:
        return TopK(*largest(dense.scores, dense.weights, self.k))


class Threshold(ReadOut):
    """The number of edges is known only after a first sweep."""

    name = "threshold"

    def __init__(self, extent: Extent, dtype: str, least: float = 0.1) -> None:
        super().__init__(extent, dtype)
        if not isinstance(least, (int, float, np.number)) or not 0 < least <= 1:
            raise OptionError(f"threshold({least!r})", "a weight above 0 and at most 1")
        self.least = float(least)

    def fields(self) -> dict[str, Any]:
        self.counts = self.empty(self.extent.queries, dtype=np.int64)
        return {"edge_counts": self.counts, "edge_least": self.least}

    def rest(self) -> dict[str, Any]:
        ends = np.cumsum(self.counts)
        found = int(ends[-1]) if len(ends) else 0
        self.keys, self.weights = np.empty(found, np.int64), np.empty(found, self.dtype)
        return {
            "edge_starts": ends - self.counts.ravel(),
            "edge_least": self.least,
            "edge_keys": self.keys,
            "edge_weights": self.weights,
        }

    def result(self) -> Edges:
        rows = np.repeat(np.arange(self.counts.size), self.counts.ravel())
        batch, head, query = np.unravel_index(rows, self.counts.shape)
        return Edges(batch, head, query, self.keys, self.weights)

    def of(self, dense: Dense) -> Edges:
        batch, head, query, key = where = np.nonzero(dense.weights >= self.least)
        return Edges(batch, head, query, key, dense.weights[where])


def largest(scores: Array, weights: Array, k: int) -> tuple[Array, Array]:
    """Along the last axis: the weights of the k largest scores, and where they are.

    Ties go to the lower place; what is missing or hidden is 0 and −1.
    """
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    seen = np.take_along_axis(scores, order, -1) != -np.inf
    found = np.where(seen, np.take_along_axis(weights, order, -1), 0)
    missing = [(0, 0)] * (scores.ndim - 1) + [(0, k - order.shape[-1])]
    places = np.pad(np.where(seen, order, -1), missing, constant_values=-1)
    return np.pad(found, missing), places


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
    return np.atleast_2d(groups)
