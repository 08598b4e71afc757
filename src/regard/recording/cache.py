"""Whether a call of a module goes on with the keys of the calls before it.

A model that generates calls its attention once a step, with a few new queries and all keys so far.
That these are the earlier keys and some more is not assumed but compared. Three kinds of cache are
followed:

    appended     the keys so far, then the new ones
    sliding      the last of the keys so far, then the new ones
    preallocated as many slots at every step, of which a mask hides those not written yet

and the keys of cross attention, which are the same at every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regard.recording.call import Parts, kept
from regard.score import Additive

__all__ = ["Cache", "Place", "marks"]


@dataclass(frozen=True)
class Place:
    """Where a call goes on: all keys, which of them is the call's first, how many are written."""

    keys: Tensor
    start: int
    written: int


class Cache:
    """The keys that the calls of a module have brought, (B, K, Lk, D), or marks of them.

    keys: all of them, in order.
    """

    def __init__(self, first: Parts, given: Tensor, keys: Tensor, crosses: bool) -> None:
        self.keys = keys
        self._given = given  # as the model gave them last
        self._form, self._crosses = _form(first), crosses
        self._written = _written(first)

    def place(self, parts: Parts, given: Tensor) -> Place | None:
        """Where a call with these keys, or marks of them, goes on; None: it does not."""
        if _form(parts) != self._form:
            return None
        if self._crosses:
            same = _same_memory(given, self._given) or (
                parts.query.shape[-2] == 1 and torch.equal(given, self._given)
            )
            return Place(self.keys, 0, given.shape[-2]) if same else None
        queries = parts.query.shape[-2]
        return self._in_slots(_written(parts), queries, given) or self._appended(queries, given)

    def take(self, place: Place, given: Tensor) -> None:
        """Go on there."""
        self.keys, self._given, self._written = place.keys, given, place.written

    def close(self) -> None:
        """No call will come any more: forget what only the next one would be compared with."""
        self._given = self.keys

    def _appended(self, new: int, given: Tensor) -> Place | None:
        before, there = given.shape[-2] - new, self.keys.shape[-2]
        start = there - before
        if before <= 0 or start < 0:
            return None
        if not torch.equal(given[..., :before, :], self.keys[..., start:, :]):
            return None
        keys = kept(given)
        if start:
            keys = torch.cat([self.keys, given[..., before:, :]], dim=-2)
        return Place(keys, start, there + new)

    def _in_slots(self, written: int, new: int, given: Tensor) -> Place | None:
        if given.shape[-2] != self._given.shape[-2]:
            return None
        before = self._written
        if before == 0 or written - new != before:
            return None
        if not torch.equal(given[..., :before, :], self.keys[..., :before, :]):
            return None
        return Place(given[..., :written, :].clone(), 0, written)


def marks(key: Tensor) -> Tensor:
    """(B, K, Lk, 1), one element of each key: stands for keys where these are not to be held.

    A key is a projection of all that a position holds, so that another text shows in any element.
    """
    return key[..., :1].clone()


def _form(parts: Parts) -> tuple[object, ...]:
    """What all calls of a record have in common."""
    query, key = parts.query, parts.key
    sizes = (*query.shape[:2], *key.shape[:2], key.shape[3])
    same = (*sizes, key.dtype, parts.scale, parts.softcap)
    score = parts.score
    if isinstance(score, Additive):
        return *same, score.activation, score.negative_slope, score.v.data_ptr()
    return same


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape


def _written(parts: Parts) -> int:
    """The number of keys up to the last one that any query sees."""
    keys = parts.extent.keys
    seen = parts.seen
    if seen.dense is not None:
        visible = np.flatnonzero(seen.as_dense(keys).any(axis=(0, 1, 2)))
        return int(visible[-1]) + 1 if len(visible) else 0
    return keys if seen.intervals is None else min(keys, int(seen.intervals[..., 1].max()))
