"""Indexing an operator: the batch and head dimensions stay lazy, positions become dense."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from regard._arrays import as_numpy
from regard.errors import OptionError
from regard.masks import normal
from regard.problem import Problem

__all__ = ["Selection", "indices", "select", "spans", "visible"]

_ALL = slice(None)


@dataclass(frozen=True)
class Selection:
    """A problem for some batch elements and heads, and what is left of the index.

    axes: for each of the problem's (*batch, H), whether it is still visible; an integer takes one
    away (its size is then 1).
    """

    problem: Problem
    axes: tuple[bool, ...]
    query: Any  # None: all queries; else an integer or a slice
    key: Any


def visible(problem: Problem, axes: tuple[bool, ...]) -> tuple[int, ...]:
    """The sizes of (*batch, H) that no index has taken away."""
    return tuple(itertools.compress(problem.extent.shape, axes))


def select(problem: Problem, axes: tuple[bool, ...], index: Any) -> Selection:
    """Apply an index on the visible (*batch, H, Lq, Lk): integers, slices and one Ellipsis."""
    lead = visible(problem, axes)
    *leading, query, key = _expand(index, len(lead) + 2)
    kept = _restore(leading, lead, axes)
    stays = iter([isinstance(entry, slice) for entry in leading])
    new_axes = tuple(axis and next(stays) for axis in axes)
    return Selection(_apply(problem, kept), new_axes, _or_none(query), _or_none(key))


def indices(given: Any, length: int, name: str) -> npt.NDArray[np.int64]:
    """Indices (n,), negative ones counted from the end."""
    array = np.atleast_1d(as_numpy(given))
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise OptionError(f"{name} indices {given!r}", "a vector of integers")
    array = array.astype(np.int64)
    if array.size and not (-length <= array.min() and array.max() < length):
        raise IndexError(f"{name} {given!r} is outside of 0 … {length - 1}")
    return np.where(array < 0, array + length, array)


def spans(positions: npt.NDArray[np.int64], width: int) -> list[tuple[int, int]]:
    """Stretches of consecutive indices, as (start, stop) positions, of a bounded size."""
    if not len(positions):
        return []
    most = max(1, (1 << 19) // max(1, width))
    breaks = set(np.flatnonzero(np.diff(positions) != 1) + 1) | {0, len(positions)}
    edges = sorted(breaks | set(range(0, len(positions), most)))
    return [(int(a), int(b)) for a, b in itertools.pairwise(edges)]


def _expand(index: Any, rank: int) -> list[Any]:
    """One entry, an integer or a slice, for each dimension."""
    entries = list(index) if isinstance(index, tuple) else [index]
    for entry in entries:
        if entry is not Ellipsis and (
            isinstance(entry, bool) or not isinstance(entry, (int, np.integer, slice))
        ):
            raise OptionError(
                f"an operator indexed with {entry!r}",
                "integers, slices and …",
                "for lists of positions use rows(), columns() or entries()",
            )
    if entries.count(Ellipsis) > 1:
        raise OptionError("two … in an index", "at most one")
    missing = rank - len([entry for entry in entries if entry is not Ellipsis])
    if missing < 0:
        raise IndexError(f"{len(entries)} indices for an operator of {rank} dimensions")
    if Ellipsis not in entries:
        entries.append(Ellipsis)
    at = entries.index(Ellipsis)
    return [*entries[:at], *[_ALL] * missing, *entries[at + 1 :]]


def _restore(leading: list[Any], lead: tuple[int, ...], axes: tuple[bool, ...]) -> list[slice]:
    """A slice for each of the problem's (*batch, H), whole where an index took it away before."""
    slices: list[slice] = []
    for entry, size in zip(leading, lead, strict=True):
        if isinstance(entry, slice):
            slices.append(entry)
            continue
        if not -size <= entry < size:
            raise IndexError(f"index {entry} is outside of a dimension of size {size}")
        entry = int(entry) % size
        slices.append(slice(entry, entry + 1))
    rest = iter(slices)
    return [next(rest) if axis else _ALL for axis in axes]


def _apply(problem: Problem, kept: list[slice]) -> Problem:
    if all(entry == _ALL for entry in kept):
        return problem
    extent = problem.extent
    *batch, head_slice = kept
    heads = np.arange(extent.heads)[head_slice]
    flat = np.arange(extent.flat_batch).reshape(extent.batch)[tuple(batch)].reshape(-1)
    seen = problem.visibility.select(flat, heads)
    bias, score = problem.bias, problem.score
    if bias is not None:
        whole = [_ALL] * 2
        entries = [*kept, *whole][len(kept) + 2 - bias.ndim :]
        bias = bias[
            tuple(
                entry if size > 1 else _ALL for entry, size in zip(entries, bias.shape, strict=True)
            )
        ]
    return problem.replace(
        query=problem.query[tuple(kept)],
        key=_key_heads(problem, tuple(batch), heads),
        mask=normal(seen),
        bias=bias,
        sinks=None if problem.sinks is None else problem.sinks[head_slice],
        vector=None if isinstance(score, str) else score.of_heads(head_slice).vector,
    )


def _key_heads(problem: Problem, batch: tuple[slice, ...], heads: Any) -> Any:
    """The key heads that these query heads read: a view where whole groups (or one head) remain."""
    key = problem.key[batch]
    if not len(heads):
        return key[(..., slice(0, 1), _ALL, _ALL)]
    group = problem.extent.heads // problem.key_heads
    wanted = heads // group
    distinct = np.unique(wanted)
    steps = np.diff(distinct)
    regular = len(heads) % len(distinct) == 0 and np.array_equal(
        wanted, np.repeat(distinct, len(heads) // len(distinct))
    )
    if regular and np.all(steps == (steps[0] if len(steps) else 1)):
        step = int(steps[0]) if len(steps) else 1
        span = slice(int(distinct[0]), int(distinct[-1]) + 1, step)
        return key[(..., span, _ALL, _ALL)]
    return key[(..., wanted.tolist(), _ALL, _ALL)]


def _or_none(entry: Any) -> Any:
    return None if isinstance(entry, slice) and entry == _ALL else entry
