"""Masks that are graphs: a query sees its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from regard._arrays import as_numpy
from regard.errors import MaskError
from regard.masks.arguments import integers
from regard.masks.base import Both, Mask, Normal
from regard.masks.edges import Edges, End
from regard.masks.intervals import Extent, Visibility

__all__ = ["Graph", "edge_count", "graph", "normal"]


@dataclass(frozen=True, eq=False, repr=False)
class Graph(Mask):
    """Query i sees key j where an edge leads from i to j; the fields are those of `Edges`."""

    query_starts: Any
    query_keys: Any
    query_edges: Any
    key_starts: Any
    key_queries: Any
    key_edges: Any
    count: int

    @staticmethod
    def of(edges: Edges) -> Graph:
        """The mask with these edges."""
        one, other = edges.by_query, edges.by_key
        return Graph(
            *(one.starts, one.others, one.numbers),
            *(other.starts, other.others, other.numbers),
            edges.count,
        )

    def visibility(self, extent: Extent) -> Visibility:
        """For as many queries and keys as there are. Raises: MaskError."""
        queries, keys = len(self.query_starts) - 1, len(self.key_starts) - 1
        if queries > extent.queries or keys > extent.keys:
            raise MaskError(
                f"graph(edges) that reach query {queries - 1} and key {keys - 1}, with "
                f"{extent.queries} queries and {extent.keys} keys",
                "edges between positions that are there",
            )
        by_query = (self.query_starts, self.query_keys, self.query_edges)
        by_key = (self.key_starts, self.key_queries, self.key_edges)
        edges = Edges(self.count, *(End(*map(as_numpy, end)) for end in (by_query, by_key)))
        return Visibility(edges=edges.padded(extent.queries, extent.keys))

    def __repr__(self) -> str:
        return f"graph({self.count} edges)"


def graph(edges: Any) -> Mask:
    """Query i sees key j where edges has a column (j, i): attention along the edges of a graph.

    edges: (2, n) integers, in row 0 the keys (sources), in row 1 the queries (targets), as in
        PyTorch Geometric's `edge_index`. Batch elements and heads share them. No edge twice.

    Memory and time are linear in the edges, gradients included. With such a mask `bias` is a
    number for each edge: it broadcasts to (B, H, 1, n). A node without neighbours has output 0;
    whether a node sees itself is for the edges to say. Read-outs other than `lse` and `on_edges`
    are computed with a dense mask. The edges are sorted once, here: keep the mask for many calls.
    Scores are any that there are: with `Additive` and leaky ReLU this is GATv2's attention.
    """
    array = as_numpy(integers(edges, "graph(edges)"))
    if array.ndim != 2 or array.shape[0] != 2:
        raise MaskError(
            f"graph(edges) of shape {array.shape}",
            "(2, n): a row of keys (sources) and a row of queries (targets)",
            "pass edges.T, if yours has a row for each edge",
        )
    if array.min(initial=0) < 0 or array.max(initial=0) > np.iinfo(np.int32).max:
        raise MaskError(f"graph(edges) with {array.min()} … {array.max()}", "positions, 0 or more")
    keys, queries = array.astype(np.int64, copy=False)
    found = Edges.of(queries, keys)
    rows, others, numbers = found.pairs
    twice = np.flatnonzero((np.diff(rows) == 0) & (np.diff(others) == 0))
    if twice.size:
        n = twice[0]
        raise MaskError(
            f"graph(edges) with ({others[n]}, {rows[n]}) twice, as edges {numbers[n]} and "
            f"{numbers[n + 1]}",
            "each edge once",
            "drop the others: numpy.unique(edges, axis=1), or torch_geometric's coalesce",
        )
    return Graph.of(found)


def normal(seen: Visibility) -> Mask | None:
    """The mask of what is seen; None if that is everything."""
    if seen.edges is not None:
        return Graph.of(seen.edges)
    return None if seen.sees_everything else Normal(seen.intervals, seen.dense)


def edge_count(mask: Mask | None) -> int | None:
    """How many edges the graph in a mask has, the first of several; None without one."""
    match mask:
        case Graph():
            return mask.count
        case Both(one, other):
            found = edge_count(one)
            return edge_count(other) if found is None else found
    return None
