"""What every read-out is: a request that is checked, asked of the kernels, and answered.

i counts queries, j keys; p_ij are the weights, s_ij the scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from regard.errors import OptionError
from regard.masks import Extent

__all__ = [
    "Array",
    "Dense",
    "Edges",
    "Pooled",
    "ReadOut",
    "TopK",
    "TopQueries",
    "group_codes",
    "position",
    "whole",
]

Array = npt.NDArray[Any]


class TopK(NamedTuple):
    """Per query the largest weights, falling, and the keys they belong to: both (B, H, Lq, k)."""

    weights: Any
    keys: Any


class TopQueries(NamedTuple):
    """Per key the largest weights, falling, and the queries they are of: both (B, H, Lk, k)."""

    weights: Any
    queries: Any


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
class Dense:
    """All weights as matrices in float64: what read-outs are defined by. B is flattened."""

    scores: Array  # (B, H, Lq, Lk), hidden −∞
    weights: Array  # (B, H, Lq, Lk)

    @property
    def seen(self) -> Array:
        """(B, H, Lq, Lk): whether the query sees the key."""
        return np.asarray(self.scores != -np.inf)

    def distances(self, offset: int) -> Array:
        """(Lq, Lk): |j − (i + offset)|."""
        queries, keys = self.scores.shape[-2:]
        distances: Array = np.abs(np.arange(keys) - np.arange(queries)[:, None] - offset)
        return distances


class ReadOut:
    """One read-out. The native core fills the arrays of `fields`, and `result` returns them; `of`
    is the definition, and what the reference computes.
    """

    name: ClassVar[str]

    def __init__(self, extent: Extent, dtype: str) -> None:
        self.extent, self.dtype = extent, dtype

    def fields(self) -> dict[str, Any]:
        """What to ask of the native core: fields of its request, arrays and numbers."""
        raise NotImplementedError

    def rest(self) -> dict[str, Any]:
        """What to ask in another sweep, once the first is done."""
        return {}

    def result(self) -> Any:
        """The read-out: an array, or a named tuple of arrays."""
        raise NotImplementedError

    def of(self, dense: Dense) -> Any:
        """The same by its definition."""
        raise NotImplementedError

    def empty(self, *tail: int, dtype: Any = None) -> Array:
        """(B, H, *tail), to be written to."""
        lead = (self.extent.flat_batch, self.extent.heads)
        return np.empty((*lead, *tail), dtype or self.dtype)


def whole(name: str, value: Any) -> int:
    """A count: 1 or more. Raises OptionError."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise OptionError(f"{name}={value!r})", "a whole number, 1 or more")
    return int(value)


def position(name: str, value: Any) -> int:
    """Where something lies: below 2^53, so that distances are exact. Raises OptionError."""
    whole_number = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole_number or abs(int(value)) >= 1 << 53:
        raise OptionError(f"{name}={value!r})", "a whole number of positions")
    return int(value)


def group_codes(name: str, groups: Array) -> Array:
    """Group numbers as the native core takes them; −1: none. Raises OptionError."""
    if groups.size and groups.max() > np.iinfo(np.int32).max - 1:
        raise OptionError(
            f"{name} with group {groups.max()}", "group numbers below 2^31 - 1", "count from 0"
        )
    return np.ascontiguousarray(
        np.maximum(groups, -1) if groups.dtype.kind == "i" else groups, np.int32
    )
