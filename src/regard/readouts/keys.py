"""Read-outs of keys, of the whole map, and of heads together."""

from __future__ import annotations

from typing import Any

import numpy as np

from regard._arrays import among, as_numpy
from regard.errors import OptionError, ShapeError
from regard.masks import Extent
from regard.readouts.base import Array, Dense, Pooled, ReadOut, TopQueries, group_codes, whole
from regard.readouts.queries import largest

__all__ = ["PooledMap", "Received", "Similarity", "TopQueriesOfKeys"]

_REDUCTIONS = {"sum": 0, "mean": 1, "max": 2}  # as the native core numbers them


class Received(ReadOut):
    name = "received"

    def __init__(
        self,
        extent: Extent,
        dtype: str,
        reduce: str = "sum",
        queries: Any = None,
        groups: Any = None,
    ) -> None:
        super().__init__(extent, dtype)
        if not among(reduce, tuple(_REDUCTIONS)):
            raise OptionError(f"received(reduce={reduce!r})", '"sum", "mean" or "max"')
        if queries is not None and groups is not None:
            raise OptionError("received(queries=…, groups=…)", "one of both")
        self.reduce, self.single = reduce, groups is None
        if groups is None:
            self.codes = np.full(extent.queries, -1, np.int32)
            self.codes[_chosen(queries, extent)] = 0
            self.count = 1
        else:
            self.codes = _query_groups(groups, extent)
            self.count = int(self.codes.max(initial=-1)) + 1

    def fields(self) -> dict[str, Any]:
        self.values = self.empty(self.count, self.extent.keys)
        return {
            "received": self.values,
            "query_groups": self.codes,
            "received_count": self.count,
            "received_reduction": _REDUCTIONS[self.reduce],
        }

    def result(self) -> Array:
        return self.values[:, :, 0] if self.single else self.values

    def of(self, dense: Dense) -> Array:
        members = np.arange(self.count)[:, None] == self.codes
        if self.reduce == "max":
            rows = [dense.weights[:, :, m].max(axis=-2, initial=0) for m in members]
            nothing = np.zeros((*dense.weights.shape[:2], 0, dense.weights.shape[-1]))
            values = np.stack(rows, axis=2) if rows else nothing
        else:
            values = members.astype(np.float64) @ dense.weights
        if self.reduce == "mean":
            values = values / np.maximum(members.astype(np.float64) @ dense.seen, 1)
        return values[:, :, 0] if self.single else values


class TopQueriesOfKeys(ReadOut):
    name = "top_queries"

    def __init__(self, extent: Extent, dtype: str, k: int = 8) -> None:
        super().__init__(extent, dtype)
        self.k = whole("top_queries(k", k)

    def fields(self) -> dict[str, Any]:
        self.weights = self.empty(self.extent.keys, self.k)
        self.queries = self.empty(self.extent.keys, self.k, dtype=np.int64)
        return {
            "top_query_weights": self.weights,
            "top_queries": self.queries,
            "top_query_count": self.k,
        }

    def result(self) -> TopQueries:
        return TopQueries(self.weights, self.queries)

    def of(self, dense: Dense) -> TopQueries:
        weights = dense.weights.swapaxes(-1, -2)
        order = np.where(dense.seen.swapaxes(-1, -2), weights, -np.inf)
        return TopQueries(*largest(order, weights, self.k))


class PooledMap(ReadOut):
    name = "pooled"

    def __init__(
        self, extent: Extent, dtype: str, shape: Any = (64, 64), reduce: str = "sum"
    ) -> None:
        super().__init__(extent, dtype)
        if not among(reduce, ("sum", "max", "both")):
            raise OptionError(f"pooled(reduce={reduce!r})", '"sum", "max" or "both"')
        sizes = as_numpy(shape)
        if sizes.shape != (2,) or sizes.dtype.kind not in "iu" or sizes.min() < 1:
            raise OptionError(f"pooled(shape={shape})", "two sizes, 1 or more, rows and columns")
        self.reduce = reduce
        self.rows, self.columns = (
            min(int(size), max(1, length))
            for size, length in zip(sizes, (extent.queries, extent.keys), strict=True)
        )

    def fields(self) -> dict[str, Any]:
        wanted = ("sum", "max") if self.reduce == "both" else (self.reduce,)
        self.cells = {name: self.empty(self.rows, self.columns) for name in wanted}
        return {
            **{f"pooled_{name}": array for name, array in self.cells.items()},
            "pooled_rows": self.rows,
            "pooled_columns": self.columns,
        }

    def result(self) -> Any:
        return Pooled(**self.cells) if self.reduce == "both" else self.cells[self.reduce]

    def of(self, dense: Dense) -> Any:
        queries, keys = dense.weights.shape[-2:]
        row, column = (
            np.arange(length) * cells // max(1, length)
            for length, cells in ((queries, self.rows), (keys, self.columns))
        )
        total = np.zeros((*dense.weights.shape[:2], self.rows, self.columns))
        most = np.zeros_like(total)
        cells: Any = (..., row[:, None], column)
        np.add.at(total, cells, dense.weights)
        np.maximum.at(most, cells, dense.weights)
        both = Pooled(total, most)
        return both if self.reduce == "both" else getattr(both, self.reduce)


class Similarity(ReadOut):
    name = "similarity"

    def fields(self) -> dict[str, Any]:
        self.products = self.empty(self.extent.heads)
        return {"products": self.products}

    def result(self) -> Array:
        return _cosines(self.products)

    def of(self, dense: Dense) -> Array:
        return _cosines(np.einsum("bgij,bhij->bgh", dense.weights, dense.weights))


def _cosines(products: Array) -> Array:
    """(B, H, H) of sums of products: 0 for a head without weights."""
    norms = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    both = norms[..., :, None] * norms[..., None, :]
    cosines: Array = np.divide(products, both, out=np.zeros_like(products), where=both > 0)
    return cosines


def _query_groups(groups: Any, extent: Extent) -> Array:
    """(Lq,) group numbers; negative: none."""
    codes = as_numpy(groups)
    if codes.dtype.kind not in "iu":
        raise OptionError(
            f"received(groups) of type {codes.dtype}", "a group number for each query"
        )
    if codes.shape != (extent.queries,):
        raise ShapeError(f"received(groups) of shape {codes.shape}", f"(Lq,) = ({extent.queries},)")
    return group_codes("received(groups)", codes)


def _chosen(queries: Any, extent: Extent) -> Any:
    """The queries to count, as NumPy takes an index."""
    if queries is None:
        return slice(None)
    wrong = OptionError(f"received(queries={queries!r})", "a slice, indices, or booleans (Lq,)")
    chosen = queries if isinstance(queries, slice) else as_numpy(queries)
    if isinstance(chosen, np.ndarray):
        chosen = chosen if chosen.size else chosen.astype(np.int64)
        if chosen.dtype.kind not in "iub":
            raise wrong
    try:
        np.empty(extent.queries)[chosen]
    except IndexError as error:
        raise ShapeError(
            f"received(queries={queries!r})", f"some of {extent.queries} queries"
        ) from error
    except (TypeError, ValueError) as error:
        raise wrong from error
    return chosen
