"""Read-outs: exact summaries of the weights, in memory linear in length.

Those that are requested together share a sweep over the scores, in the native core; the reference
reads them off the matrix. Results are NumPy arrays of leading shape (B, H), B flattened. The
docstrings of `AttentionWeights` say formula and shape of each.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regard import dispatch
from regard.problem import Problem
from regard.readouts import keys, queries
from regard.readouts.base import Array, Dense, Edges, Pooled, ReadOut, TopK, TopQueries

__all__ = ["KINDS", "Edges", "Gathering", "Pooled", "ReadOut", "TopK", "TopQueries"]

KINDS: dict[str, type[ReadOut]] = {
    kind.name: kind
    for kind in (
        *(queries.MaxScore, queries.MaxWeight, queries.Entropy, queries.EffectiveKeys),
        *(queries.TopKeys, queries.Threshold, queries.Mass),
        *(queries.Distance, queries.DistanceBins, queries.Offsets),
        *(keys.Received, keys.TopQueriesOfKeys, keys.PooledMap, keys.Similarity),
    )
}


class Gathering:
    """Read-outs of one problem (name: its keywords) that are gathered together."""

    def __init__(
        self, problem: Problem, backend: str | None, requests: dict[str, dict[str, Any]]
    ) -> None:
        self.problem, self.backend = problem, backend
        self.wanted = {
            name: KINDS[name](problem.extent, problem.accumulation_dtype, **keywords)
            for name, keywords in requests.items()
        }
        self.native = dispatch.choose(backend)[0] == "native"
        self.fields: dict[str, Any] = {}
        if self.native:
            for one in self.wanted.values():
                self.fields |= one.fields()

    def sweep(self, lse: Array | None) -> Array | None:
        """Fill the fields, and return the log-sum-exp (B, H, Lq) where it is known by then.

        lse: where it is known already; None: the same sweep computes it.
        """
        if not self.fields:
            return lse
        known, extent = lse is not None, self.problem.extent
        if lse is None:
            shape = (extent.flat_batch, extent.heads, extent.queries)
            lse = np.empty(shape, self.problem.accumulation_dtype)
        dispatch.read_out(self.problem, None, lse, self.fields, self.backend, known=known)
        return lse

    def results(self, lse: Array) -> dict[str, Any]:
        """Each read-out, once the fields are filled."""
        if not self.native:
            return self._by_definition()
        rest = {k: v for one in self.wanted.values() for k, v in one.rest().items()}
        if rest:
            dispatch.read_out(self.problem, None, lse, rest, self.backend)
        return {name: one.result() for name, one in self.wanted.items()}

    def _by_definition(self) -> dict[str, Any]:
        if not self.wanted:
            return {}
        dense = Dense(*dispatch.dense(self.problem))
        return {name: _narrow(one.of(dense), one.dtype) for name, one in self.wanted.items()}


def _narrow(result: Any, dtype: str) -> Any:
    """float64 of the definition in the type that read-outs have."""
    if isinstance(result, tuple):
        return type(result)(*(_narrow(array, dtype) for array in result))
    return result.astype(dtype) if result.dtype.kind == "f" else result
