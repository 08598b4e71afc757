"""Calls of one module that go on with a cache of keys, as one record that grows.

A model that generates calls its attention once a step, with a few new queries and all keys so far.
Each step brings its queries, what they see, and the keys that are new; that these are the earlier
keys and some more is not assumed but compared, number by number. Three kinds of cache are followed:

    appended     the keys so far, then the new ones
    sliding      the last of the keys so far, then the new ones
    preallocated as many slots at every step, of which a mask hides those not written yet

and the keys of cross attention, which are the same at every step.
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
from regard.recording.call import Parts

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
        self._crosses = crosses
        self._first = first.kept()
        self._keys = self._first.key  # all of them, in order
        self._given = first.key  # as the model gave them last
        self._written = _written(first)
        self._more: list[_Step] = []
        self._made: AttentionWeights | None = self._first.operator()

    @property
    def steps(self) -> list[slice]:
        """The queries of each call."""
        ends = np.cumsum([query.shape[-2] for query in self._queries]).tolist()
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    @property
    def arrays(self) -> list[Any]:
        """All that is held."""
        return [self._keys, *self._beside_keys]

    @property
    def _beside_keys(self) -> list[Any]:
        added = [self._first.bias, *(step.bias for step in self._more)]
        masks = [self._first.seen.dense, *(step.seen.dense for step in self._more)]
        return [*self._queries, *(array for array in (*added, *masks) if array is not None)]

    def grow(self, parts: Parts, fits: Callable[[list[Any], Growing], bool]) -> bool:
        """Take a call in, if it goes on from here; False if it does not, or grew too large.

        fits: whether so many arrays may be held instead of this record's.
        """
        found = self._continued(parts)
        if found is None:
            return False
        keys, start, written = found
        query = parts.query.clone()
        if not fits([query, keys, *self._beside_keys], self):
            return False
        self._more.append(_Step(query, parts.seen, parts.bias, start, parts.extent.keys))
        self._keys, self._given, self._written = keys, parts.key, written
        self._made = None
        return True

    def close(self) -> None:
        """No call will come any more: forget what only the next one would be compared with."""
        self._given = self._keys

    def operator(self) -> AttentionWeights:
        """The weights of all steps."""
        if self._made is None:
            self._made = self._joined().operator()
        return self._made

    @property
    def _queries(self) -> list[Tensor]:
        return [self._first.query, *(step.query for step in self._more)]

    def _continued(self, parts: Parts) -> tuple[Tensor, int, int] | None:
        """(all keys, which of them is the call's first, how many are written), or None."""
        first, key = self._first, parts.key
        alike = (
            first.query.shape[:2] == parts.query.shape[:2]
            and first.key.shape[:2] == key.shape[:2]
            and first.key.shape[3] == key.shape[3]
            and first.key.dtype == key.dtype
            and _options(first) == _options(parts)
        )
        if not alike:
            return None
        if self._crosses:
            same = _same_memory(key, self._given) or (
                parts.query.shape[-2] == 1 and torch.equal(key, self._given)
            )
            return (self._keys, 0, key.shape[-2]) if same else None
        return self._in_slots(parts) or self._appended(parts)

    def _appended(self, parts: Parts) -> tuple[Tensor, int, int] | None:
        key, new = parts.key, parts.query.shape[-2]
        before, there = key.shape[-2] - new, self._keys.shape[-2]
        start = there - before
        if before <= 0 or start < 0:
            return None
        if not torch.equal(key[..., :before, :], self._keys[..., start:, :]):
            return None
        if start:
            key = torch.cat([self._keys, key[..., before:, :]], dim=-2)
        return _kept(key), start, there + new

    def _in_slots(self, parts: Parts) -> tuple[Tensor, int, int] | None:
        if parts.key.shape[-2] != self._given.shape[-2]:
            return None
        written, before = _written(parts), self._written
        if before == 0 or written - parts.query.shape[-2] != before:
            return None
        if not torch.equal(parts.key[..., :before, :], self._keys[..., :before, :]):
            return None
        return parts.key[..., :written, :].clone(), 0, written

    def _joined(self) -> Parts:
        """One call with the queries of all steps."""
        if not self._more:
            return self._first
        first = self._first
        count = self._keys.shape[-2]
        steps = [_Step(first.query, first.seen, first.bias, 0, first.extent.keys), *self._more]
        return first.replace(
            query=torch.cat(self._queries, dim=-2),
            key=self._keys,
            mask=_joined_masks(steps, count),
            bias=_joined_biases(steps, count),
        )


def _options(parts: Parts) -> tuple[float | None, ...]:
    return parts.scale, parts.softcap


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape


def _kept(key: Tensor) -> Tensor:
    return key.clone() if key.is_inference() or key._version else key


def _written(parts: Parts) -> int:
    """The number of keys up to the last one that any query sees."""
    keys = parts.extent.keys
    seen = parts.seen
    if seen.dense is not None:
        visible = np.flatnonzero(seen.as_dense(keys).any(axis=(0, 1, 2)))
        return int(visible[-1]) + 1 if len(visible) else 0
    return keys if seen.intervals is None else min(keys, int(seen.intervals[..., 1].max()))


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
