"""The normal form of a sparse mask: the edges of a graph, by query and by key.

Memory is linear in the edges, whatever the number of queries and keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Edges", "End"]

Longs = npt.NDArray[np.int64]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class End:
    """Edges in the order of the rows of one end: row r has those from starts[r] to starts[r + 1].

    starts: (rows + 1,). others: (n,), the row at the other end. numbers: (n,), which of the
    caller's edges it is.
    """

    starts: Longs
    others: Ints
    numbers: Ints

    @staticmethod
    def sort(rows: npt.NDArray[Any], others: npt.NDArray[Any], numbers: npt.NDArray[Any]) -> End:
        """From the two rows and the number of each edge, in any order."""
        order = np.lexsort((others, rows))
        starts = np.zeros(int(rows.max(initial=-1)) + 2, np.int64)
        np.cumsum(np.bincount(rows, minlength=len(starts) - 1), out=starts[1:])
        return End(starts, others[order].astype(np.int32), numbers[order].astype(np.int32))

    @property
    def rows(self) -> Longs:
        """(n,): the row of each edge."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def padded(self, rows: int) -> End:
        """With starts for so many rows: the last ones have no edges."""
        more = rows + 1 - len(self.starts)
        if more <= 0:
            return self
        return End(np.pad(self.starts, (0, more), mode="edge"), self.others, self.numbers)


@dataclass(frozen=True, eq=False)
class Edges:
    """Query i sees key j where an edge leads from i to j; shared by batch elements and heads.

    count: how many edges the caller has; a condition may have taken some of them away since.
    """

    count: int
    by_query: End
    by_key: End

    @staticmethod
    def of(queries: npt.NDArray[Any], keys: npt.NDArray[Any]) -> Edges:
        """From the query and the key of each edge."""
        numbers = np.arange(len(queries))
        return Edges(
            len(queries), End.sort(queries, keys, numbers), End.sort(keys, queries, numbers)
        )

    @property
    def pairs(self) -> tuple[Longs, Ints, Ints]:
        """Query, key and number of each edge, by query."""
        return self.by_query.rows, self.by_query.others, self.by_query.numbers

    def where(self, keep: npt.NDArray[np.bool_]) -> Edges:
        """Those that are kept, of the edges by query."""
        queries, keys, numbers = (array[keep] for array in self.pairs)
        ends = End.sort(queries, keys, numbers), End.sort(keys, queries, numbers)
        kept = Edges(self.count, *ends)
        return kept.padded(len(self.by_query.starts) - 1, len(self.by_key.starts) - 1)

    def padded(self, queries: int, keys: int) -> Edges:
        """For so many queries and keys."""
        return Edges(self.count, self.by_query.padded(queries), self.by_key.padded(keys))
