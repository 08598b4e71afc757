"""AttentionWeights: the weights (B, H, Lq, Lk) as a linear operator that is never a matrix.

It holds the queries, the keys and what was done with them, and applies itself: `w @ v`, `w.mT @ y`.
Its read-outs are exact and take memory linear in length.
"""

from __future__ import annotations

import copy
import itertools
import math
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from regard import dispatch
from regard._arrays import as_numpy, dtype_name
from regard.errors import DtypeError, OptionError, ShapeError, StaleOperator
from regard.frontends import front_end
from regard.problem import Problem
from regard.reading import DEFAULT_READ_OUTS, ReadOuts, namespace, requested
from regard.readouts import Edges, Gathering
from regard.selection import indices, select, spans, visible

__all__ = ["DEFAULT_READ_OUTS", "AttentionWeights"]

_SHOWN = 4_000_000  # weights up to which a notebook shows them


class AttentionWeights(ReadOuts):
    """softmax(scale · q kᵀ + bias) under a mask: a lazy operator of shape (B, H, Lq, Lk).

    Make one with `regard.weights`. It refers to its arrays and does not copy them. i counts
    queries, j keys, p_ij are the weights, s_ij the scores. Read-outs are arrays of the framework of
    q and k, detached, float32 (float64 for float64), of leading shape (B, H) in every layout.
    """

    def __init__(
        self,
        problem: Problem,
        front: ModuleType,
        backend: str | None = None,
        axes: tuple[bool, ...] | None = None,
    ) -> None:
        self._problem, self._front, self._backend = problem, front, backend
        self._axes = (True,) * (len(problem.extent.batch) + 1) if axes is None else axes
        self._lead = visible(problem, self._axes)
        self._watched = problem.weight_arrays
        self._versions = self._current_versions()
        self._on_host: Problem | None = None
        self._reader: str | None = None  # the backend that reads out there
        self._lse: npt.NDArray[Any] | None = None
        self.name: str | None = None  # of the module that attended, in a recording

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, H, Lq, Lk), less what was indexed away."""
        return (*self._lead, *self._problem.extent.shape[-2:])

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def mT(self) -> Transposed:  # noqa: N802 (the name that arrays use)
        """The transposed operator: `w.mT @ y` is Σ_i p_ij y_i, per query head."""
        return Transposed(self)

    def __matmul__(self, value: Any) -> Any:
        """Σ_j p_ij v_j: the weighted sum of values, differentiable.

        value: (B, K, Lk, E) or (B, H, Lk, E) in the operator's layout, or one matrix (Lk, C) for
            all heads.
        Returns (B, H, Lq, E) in the operator's layout.
        """
        return self._leave_layout(self._front.attention(self._with_value(value), self._backend))

    def attend(self, value: Any, *, read_outs: str | None = None, **wanted: Any) -> tuple[Any, Any]:
        """`self @ value` and read-outs of the same weights, in the same sweep where that can be.

        wanted, read_outs: as `read` takes them.

        Returns the output, the same bits as `self @ value`, and an object with each read-out as an
        attribute.
        """
        requests = requested(read_outs, wanted)
        problem = self._with_value(value)
        if not requests:
            return self._leave_layout(self._front.attention(problem, self._backend)), namespace({})
        gathering = self._gathering(requests)
        output, lse = self._front.attend(problem, self._backend, gathering.fields)
        if lse is None:
            self._sweep(gathering)
        else:
            self._lse = self._flat_lse(lse)
        return self._leave_layout(output), namespace(self._results(gathering, requests))

    def lse(self) -> Any:
        """log Σ_j exp s_ij, the sink's score among them: (B, H, Lq), differentiable."""
        self._check_fresh()
        total = self._front.lse(self._problem, self._backend)
        return self._front.leave(total.reshape((*self._lead, total.shape[-1])))

    def rows(self, queries: Any) -> Any:
        """The weights of some queries: (B, H, n, Lk) for indices (n,)."""
        return self._dense(indices(queries, self.shape[-2], "query"), None)

    def columns(self, keys: Any) -> Any:
        """The weights on some keys: (B, H, Lq, n) for indices (n,)."""
        return self._dense(None, indices(keys, self.shape[-1], "key"))

    def entries(self, queries: Any, keys: Any) -> Any:
        """Single weights p_ij for pairs of indices (n,): (B, H, n)."""
        i = indices(queries, self.shape[-2], "query")
        j = indices(keys, self.shape[-1], "key")
        if i.shape != j.shape:
            raise ShapeError(
                f"{len(i)} queries and {len(j)} keys", "as many of one as of the other"
            )
        host = self._host()
        values = np.empty((host.extent.flat_batch, host.extent.heads, len(i)))
        for n, (row, column) in enumerate(zip(i.tolist(), j.tolist(), strict=True)):
            for b, h in self._heads():
                pair = slice(row, row + 1), slice(column, column + 1)
                values[b, h, n] = self._block(b, h, *pair)[0, 0]
        return self._out(values.astype(host.accumulation_dtype))

    def on_edges(self) -> Any:
        """The weights along the edges of a graph, as the caller numbers them: (B, H, n).

        Memory is linear in the edges. Raises: MaskError where the mask is no regard.graph().
        """
        self._check_fresh()
        problem, backend = self._front.host(self._problem.replace(value=None), self._backend)
        return self._out(dispatch.on_edges(problem, backend))

    def dense(self) -> Any:
        """The matrix (B, H, Lq, Lk): memory quadratic in length."""
        return self._dense(None, None)

    def scores(self) -> Any:
        """The scores (B, H, Lq, Lk), dense: after scale, softcap and bias; hidden ones −∞."""
        return self._dense(None, None, scores=True)

    def copy(self) -> AttentionWeights:
        """An operator on copies of all its arrays, which in-place changes do not reach."""
        self._check_fresh()
        names = ("query", "key", "bias", "sinks", "vector")
        arrays = {name: getattr(self._problem, name) for name in names}
        copies = {n: None if a is None else self._front.copy(a) for n, a in arrays.items()}
        problem = self._problem.replace(**copies, mask=copy.deepcopy(self._problem.mask))
        return AttentionWeights(problem, self._front, self._backend, self._axes)

    def __getitem__(self, index: Any) -> Any:
        """Indexing B or H stays lazy; indexing Lq or Lk gives a dense array."""
        self._check_fresh()
        chosen = select(self._problem, self._axes, index)
        part = AttentionWeights(chosen.problem, self._front, self._backend, chosen.axes)
        part._watched, part._versions = self._watched, self._versions
        if chosen.query is None and chosen.key is None:
            return part
        return part._cut(chosen.query, chosen.key)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise OptionError(
            f"an operator of shape {self.shape} where an array is wanted",
            "a deliberate request, since the matrix takes memory quadratic in length",
            "call dense() for the matrix, or a read-out for a summary of it",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        self._check_fresh()
        front = self._front.__name__
        return _remade, (self._problem, front, self._backend, self._axes, self.name)

    def __repr__(self) -> str:
        mask = "" if self._problem.mask is None else f", mask {self._problem.mask!r}"
        letters = ("B", "H")[-len(self._lead) :] if self._lead else ()
        extra = tuple(f"B{n}" for n in range(len(self._lead) - len(letters)))
        names = ", ".join((*extra, *letters, "Lq", "Lk"))
        return f"AttentionWeights ({names}) = {self.shape}, {self._problem.dtype}{mask}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """In a notebook, the first batch element as a page to look around in, if it is small."""
        from regard.viewer.notebook import weights_bundle

        first = self[(0,) * (len(self._lead) - 1)] if len(self._lead) > 1 else self
        if not 0 < math.prod(first.shape) <= _SHOWN:
            return {"text/plain": repr(self)}
        queries, keys = first.shape[-2:]
        dense = as_numpy(first.dense()).reshape(-1, queries, keys)
        return weights_bundle(dense.astype(np.float32), repr(self))

    def _cut(self, query: Any, key: Any) -> Any:
        """Dense rows and columns by what stood at Lq and Lk in an index: slices or integers."""
        wanted: list[npt.NDArray[np.int64] | None] = []
        for index, length in zip((query, key), self.shape[-2:], strict=True):
            if index is None:
                wanted.append(None)
            elif isinstance(index, slice):
                wanted.append(np.arange(length)[index])
            else:
                wanted.append(indices([index], length, "position"))
        found = self._dense(wanted[0], wanted[1])
        if key is not None and not isinstance(key, slice):
            found = found[..., 0]
        if query is not None and not isinstance(query, slice):
            found = found[..., 0, :] if isinstance(key, slice) or key is None else found[..., 0]
        return found

    def _dense(
        self,
        rows: npt.NDArray[np.int64] | None,
        columns: npt.NDArray[np.int64] | None,
        scores: bool = False,
    ) -> Any:
        """(B, H, rows, columns) of weights or scores; None: all."""
        host, extent = self._host(), self._host().extent
        i = np.arange(extent.queries) if rows is None else rows
        j = np.arange(extent.keys) if columns is None else columns
        found = np.empty((extent.flat_batch, extent.heads, len(i), len(j)), host.accumulation_dtype)
        keys = slice(int(j.min(initial=extent.keys)), int(j.max(initial=-1)) + 1)
        keys = keys if keys.start < keys.stop else slice(0, 0)
        width = keys.stop - keys.start
        for (b, h), (start, stop) in itertools.product(self._heads(), spans(i, width)):
            part = slice(int(i[start]), int(i[stop - 1]) + 1)
            values = self._block(b, h, part, keys, scores)
            found[b, h, start:stop] = values[:, j - keys.start]
        return self._out(found)

    def _heads(self) -> list[tuple[int, int]]:
        extent = self._problem.extent
        return list(itertools.product(range(extent.flat_batch), range(extent.heads)))

    def _block(self, b: int, h: int, rows: slice, keys: slice, scores: bool = False) -> Any:
        """(rows, keys) of one head's weights or scores."""
        block = self._front.untraced(dispatch.score_block)
        found = block(self._host(), b, h, rows, keys, self._reader)
        return found if scores else _weights(found, self._host_lse()[b, h, rows])

    def _gather(self, requests: dict[str, dict[str, Any]]) -> dict[str, Any]:
        gathering = self._gathering(requests)
        self._sweep(gathering)
        return self._results(gathering, requests)

    def _gathering(self, requests: dict[str, dict[str, Any]]) -> Gathering:
        others = {name: given for name, given in requests.items() if name != "lse"}
        return Gathering(self._host(), self._reader, others)

    def _sweep(self, gathering: Gathering) -> None:
        """Fill a gathering's fields; the first of an operator's sweeps computes its lse too."""
        self._lse = self._front.untraced(gathering.sweep)(self._lse)

    def _results(self, gathering: Gathering, requests: dict[str, dict[str, Any]]) -> dict[str, Any]:
        found = self._front.untraced(gathering.results)(self._host_lse())
        if "lse" in requests:
            found = {"lse": self._host_lse(), **found}
        return {name: self._out_any(found[name]) for name in requests}

    def _host(self) -> Problem:
        """The problem with its arrays in main memory, and a graph as a dense mask."""
        self._check_fresh()
        if self._on_host is None:
            host, self._reader = self._front.host(self._problem, self._backend)
            dense = host.without_edges()
            if dense.bias is not host.bias:
                dense = dense.replace(bias=self._front.from_numpy(dense.bias, host.query))
            self._on_host = dense
        return self._on_host

    def _host_lse(self) -> npt.NDArray[Any]:
        """(B, H, Lq), B flattened."""
        if self._lse is None:
            self._lse = self._flat_lse(self._front.lse(self._host(), self._reader))
        return self._lse

    def _flat_lse(self, lse: Any) -> npt.NDArray[Any]:
        extent = self._problem.extent
        return as_numpy(lse).reshape(extent.flat_batch, extent.heads, extent.queries)

    def _out_any(self, result: Any) -> Any:
        if isinstance(result, Edges):
            return Edges(*(self._to_framework(array) for array in result))
        if isinstance(result, tuple):
            return type(result)(*(self._out(array) for array in result))
        return self._out(result)

    def _out(self, array: npt.NDArray[Any]) -> Any:
        """(B, H, …) as the caller's framework and leading shape have it."""
        return self._to_framework(array.reshape(self._lead + array.shape[2:]))

    def _to_framework(self, array: npt.NDArray[Any]) -> Any:
        return self._front.from_numpy(array, self._problem.query)

    def _with_value(self, value: Any) -> Problem:
        self._check_fresh()
        return self._problem.with_value(self._enter_layout(value, self._problem.key_heads, "value"))

    def _enter_layout(self, array: Any, shared_heads: int, name: str) -> Any:
        """values or y as (*batch, heads, L, size): one matrix (L, C) serves all heads."""
        front_end(query=self._problem.query, **{name: array})
        array = self._front.enter(array)
        batch = self._problem.extent.batch
        if len(array.shape) == 2:
            return self._front.broadcast(array, (*batch, shared_heads, *array.shape))
        has_heads, blhd = self._axes[-1], self._problem.layout == "BLHD"
        lead = self._lead[:-1] if has_heads else self._lead
        if tuple(array.shape[: -3 if has_heads else -2]) != lead:
            rest = ("L, heads" if blhd else "heads, L") if has_heads else "L"
            raise ShapeError(
                f"{name} of shape {tuple(array.shape)} for weights of shape {self.shape}",
                f"({', '.join((*map(str, lead), rest))}, size), or one matrix (L, C) for all heads",
            )
        if has_heads and blhd:
            array = array.swapaxes(-3, -2)
        heads = array.shape[-3] if has_heads else 1
        return array.reshape((*batch, heads, *array.shape[-2:]))

    def _leave_layout(self, output: Any) -> Any:
        """The output without the dimensions that were indexed away."""
        if all(self._axes):
            return self._front.leave(output)
        size, queries = output.shape[-1], self._problem.extent.queries
        blhd = self._problem.layout == "BLHD" and self._axes[-1]
        heads_and_queries = (queries, self._lead[-1]) if blhd else (*self._lead[-1:], queries)
        return self._front.leave(output.reshape((*self._lead[:-1], *heads_and_queries, size)))

    def _current_versions(self) -> tuple[Any, ...]:
        return tuple(self._front.version(array) for array in self._watched)

    def _check_fresh(self) -> None:
        """That no array was changed in place; a version None (under compilation) cannot tell."""
        versions = zip(self._versions, self._current_versions(), strict=True)
        if any(now not in (then, None) for then, now in versions if then is not None):
            raise StaleOperator(
                "an array that this operator refers to was changed in place after it was made",
                remedy="make it anew, or keep an independent one with w.copy()",
            )


class Transposed:
    """weightsᵀ, of shape (B, H, Lk, Lq): made by `w.mT`."""

    def __init__(self, weights: AttentionWeights) -> None:
        self.mT = weights
        *lead, queries, keys = weights.shape
        self.shape = (*lead, keys, queries)

    def __matmul__(self, y: Any) -> Any:
        """Σ_i p_ij y_i: (B, H, Lk, C), per query head, differentiable.

        y: (B, H, Lq, C) in the operator's layout, or one matrix (Lq, C) for all heads.
        """
        weights = self.mT
        weights._check_fresh()
        problem = weights._problem
        y = weights._enter_layout(y, problem.extent.heads, "y")
        if dtype_name(y) != problem.dtype:
            raise DtypeError(
                f"y of type {dtype_name(y)}, queries of type {problem.dtype}",
                "one element type",
                "convert one of them",
            )
        wanted = (*problem.extent.shape[:-1], y.shape[-1])
        if tuple(y.shape) != wanted:
            raise ShapeError(f"y of shape {tuple(y.shape)}", f"(B, H, Lq, C) = {wanted}")
        result = weights._front.transposed(problem, y, weights._backend)
        result = result.reshape((*weights._lead, *result.shape[-2:]))
        blhd = problem.layout == "BLHD" and weights._axes[-1]
        return weights._front.leave(result.swapaxes(-3, -2) if blhd else result)

    def __repr__(self) -> str:
        return f"{self.mT!r}, transposed"


def _weights(scores: npt.NDArray[Any], lse: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """exp(scores − lse) of some rows; a query that sees nothing has weights 0."""
    with np.errstate(invalid="ignore"):
        weights: npt.NDArray[Any] = np.exp(scores - np.where(lse == -np.inf, 0, lse)[:, None])
    return weights


def _remade(
    problem: Problem, front: str, backend: str | None, axes: tuple[bool, ...], name: str | None
) -> AttentionWeights:
    """The operator that was pickled."""
    made = AttentionWeights(problem, import_module(front), backend, axes)
    made.name = name
    return made
