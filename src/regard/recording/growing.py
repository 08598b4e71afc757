"""Calls of one module that go on with a cache of keys, as the operator of one record that grows.

Each step brings its queries, what they see, and the keys that are new; cache.py says which calls go
on, comparing keys number by number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from regard.masks import Mask, Normal, Visibility
from regard.operator import AttentionWeights
from regard.recording.cache import Cache
from regard.recording.call import Parts
from regard.recording.entry import in_a_row

__all__ = ["Growing"]


@dataclass(frozen=True)
class _Step:
    """Some queries: what they see and what is added, for so many keys from `start` on."""

    query: Tensor
    seen: Visibility
    bias: Tensor | None
    start: int
    keys: int


class Growing:
    """The record of a call, and of those that go on where it ended."""

    def __init__(self, first: Parts, crosses: bool) -> None:
        self._first = first.kept()
        self._cache = Cache(first, first.key, self._first.key, crosses)
        self._more: list[_Step] = []
        self._made: AttentionWeights | None = self._first.operator()

    @property
    def steps(self) -> list[slice]:
        """The queries of each call."""
        return in_a_row(query.shape[-2] for query in self._queries)

    @property
    def arrays(self) -> list[Any]:
        """All that is held."""
        return [self._cache.keys, *self._beside_keys]

    @property
    def _beside_keys(self) -> list[Any]:
        added = [self._first.bias, *(step.bias for step in self._more)]
        masks = [self._first.seen.dense, *(step.seen.dense for step in self._more)]
        return [*self._queries, *(array for array in (*added, *masks) if array is not None)]

    def grow(self, parts: Parts, fits: Callable[[list[Any], Growing], bool]) -> bool:
        """Take a call in, if it goes on from here; False if it does not, or grew too large.

        fits: whether so many arrays may be held instead of this record's.
        """
        place = self._cache.place(parts, parts.key)
        if place is None:
            return False
        query = parts.query.clone()
        if not fits([query, place.keys, *self._beside_keys], self):
            return False
        self._more.append(_Step(query, parts.seen, parts.bias, place.start, parts.extent.keys))
        self._cache.take(place, parts.key)
        self._made = None
        return True

    def close(self) -> None:
        """No call will come any more."""
        self._cache.close()

    def operator(self) -> AttentionWeights:
        """The weights of all steps."""
        if self._made is None:
            self._made = self._joined().operator()
        return self._made

    @property
    def _queries(self) -> list[Tensor]:
        return [self._first.query, *(step.query for step in self._more)]

    def _joined(self) -> Parts:
        """One call with the queries of all steps."""
        if not self._more:
            return self._first
        first = self._first
        count = self._cache.keys.shape[-2]
        steps = [_Step(first.query, first.seen, first.bias, 0, first.extent.keys), *self._more]
        return first.replace(
            query=torch.cat(self._queries, dim=-2),
            key=self._cache.keys,
            mask=_joined_masks(steps, count),
            bias=_joined_biases(steps, count),
        )


def _joined_masks(steps: list[_Step], count: int) -> Mask:
    """What the queries of all steps see of all `count` keys."""
    if any(step.seen.dense is not None for step in steps):
        return Normal(None, _stacked([_dense(step, count) for step in steps]))
    pairs = [_intervals(step, count) for step in steps]
    most = max(part.shape[-2] for part in pairs)
    padded = [np.pad(part, [*[(0, 0)] * 3, (0, most - part.shape[-2]), (0, 0)]) for part in pairs]
    return Normal(_stacked(padded), None)


def _intervals(step: _Step, count: int) -> npt.NDArray[np.int32]:
    """(B|1, H|1, queries, n, 2) pairs among all keys."""
    pairs = step.seen.intervals
    if pairs is None:
        pairs = np.array([0, step.keys], np.int32).reshape(1, 1, 1, 1, 2)
    whole = np.broadcast_to(pairs, (*pairs.shape[:2], step.query.shape[-2], *pairs.shape[3:]))
    found: npt.NDArray[np.int32] = np.minimum(whole + np.int32(step.start), np.int32(count))
    return found


def _dense(step: _Step, count: int) -> npt.NDArray[np.bool_]:
    """(B|1, H|1, queries, count) booleans."""
    dense = step.seen.as_dense(step.keys)[..., : count - step.start]
    whole = np.zeros((*dense.shape[:2], step.query.shape[-2], count), bool)
    whole[..., step.start : step.start + dense.shape[-1]] = dense
    return whole


def _stacked(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Joined along the queries, B and H made equal."""
    lead = np.broadcast_shapes(*(array.shape[:2] for array in arrays))
    return np.concatenate([np.broadcast_to(a, (*lead, *a.shape[2:])) for a in arrays], axis=2)


def _joined_biases(steps: list[_Step], count: int) -> Tensor | None:
    biases = [step.bias for step in steps]
    like = next((bias for bias in biases if bias is not None), None)
    if like is None:
        return None
    lead = np.broadcast_shapes(*(bias.shape[:2] for bias in biases if bias is not None))
    whole = like.new_zeros(*lead, sum(step.query.shape[-2] for step in steps), count)
    row = 0
    for step in steps:
        rows = step.query.shape[-2]
        if step.bias is not None:
            width = min(step.keys, count - step.start)
            part = step.bias if step.bias.shape[-1] == 1 else step.bias[..., :width]
            whole[..., row : row + rows, step.start : step.start + width] = part
        row += rows
    return whole
