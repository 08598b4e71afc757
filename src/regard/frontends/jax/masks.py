"""The normal form of a mask for JAX: NumPy's where the mask is known, an expression where traced.

A traced array has a shape and no values, so what depends on the values is chosen for the worst
case: lengths and offsets stay intervals, documents become dense.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regard.errors import MaskError
from regard.masks import Extent, Mask, flatten, visibility
from regard.masks.arguments import check_per_batch, check_sequence
from regard.masks.base import Both, Dense, Either, Normal, check_dense
from regard.masks.intervals import MOST_INTERVALS
from regard.masks.positions import Causal, Prefix, Window
from regard.masks.sequences import CumulativeDocuments, Documents, Keys, Lengths

__all__ = ["as_dense", "normal"]

# Farther than any position, and far enough from int32's end that positions can be added to it.
_FAR = 1 << 30


def normal(mask: Mask | None, extent: Extent) -> Normal | None:
    """The mask in its normal form; its arrays have all batch dimensions, or 1 for each of them.

    intervals: (*batch|1, H|1, Lq|1, n, 2) int32; dense: (*batch|1, H|1, Lq|1, Lk|1) boolean.
    """
    if mask is None:
        return None
    seen = _normal(mask, extent)
    if seen.intervals is None and seen.dense is None:
        return None
    return Normal(_unflattened(seen.intervals, extent), _unflattened(seen.dense, extent))


def as_dense(seen: Normal, keys: int) -> Any:
    """(*batch|1, H|1, Lq|1, Lk) boolean."""
    found = jnp.ones((1, keys), bool) if seen.dense is None else seen.dense
    if seen.intervals is None:
        return found
    j = jnp.arange(keys)
    inside = (seen.intervals[..., :1] <= j) & (j < seen.intervals[..., 1:])
    return found & inside.any(axis=-2)


def _normal(mask: Mask, extent: Extent) -> Normal:
    if not any(isinstance(array, jax.core.Tracer) for array in flatten(mask)[1]):
        known = visibility(mask, extent)
        if known.edges is not None:
            return Normal(None, known.as_dense(extent.keys))
        return Normal(known.intervals, known.dense)
    match mask:
        case Both(one, other):
            return _both(_normal(one, extent), _normal(other, extent), extent)
        case Either(one, other):
            parts = (_normal(part, extent) for part in (one, other))
            return Normal(None, jnp.logical_or(*(as_dense(p, extent.keys) for p in parts)))
        case Dense(seen):
            return _dense(seen, extent)
        case Normal():
            return mask
        case Causal(align):
            return _interval(0, _positions(align, extent, "causal") + 1, extent)
        case Window(left, right, align):
            stands_on = _positions(align, extent, "window")
            start = 0 if left is None else stands_on - min(left, _FAR)
            stop = extent.keys if right is None else stands_on + min(right, _FAR) + 1
            return _interval(start, stop, extent)
        case Prefix(n):
            return _interval(0, _per_batch(n, extent, "prefix(n)"), extent)
        case Lengths(keys, queries):
            return _lengths(keys, queries, extent)
        case Keys(keep):
            keep = _sequence(keep, extent, extent.keys, "keys(keep)", "Lk")
            return Normal(None, keep[:, None, None, :])
        case Documents(ids, key_ids):
            return _documents(ids, key_ids, extent)
        case CumulativeDocuments(bounds):
            return _cumulative_documents(bounds, extent)
        case _:
            raise MaskError(
                f"{mask!r} with traced arrays",
                "arrays whose values are known when the function is traced",
                "pass NumPy arrays, or a traced boolean array as the mask",
            )


def _both(one: Normal, other: Normal, extent: Extent) -> Normal:
    """What both allow: intersected intervals, unless these become too many."""
    intervals = [seen.intervals for seen in (one, other) if seen.intervals is not None]
    dense = [seen.dense for seen in (one, other) if seen.dense is not None]
    if len(intervals) == 2:
        a, b = intervals
        start = jnp.maximum(a[..., :, None, 0], b[..., None, :, 0])
        stop = jnp.maximum(jnp.minimum(a[..., :, None, 1], b[..., None, :, 1]), start)
        pairs = jnp.stack([start, stop], axis=-1)
        intervals = [pairs.reshape(*pairs.shape[:-3], -1, 2)]
    found = Normal(
        intervals[0] if intervals else None,
        dense[0] if len(dense) == 1 else jnp.logical_and(*dense) if dense else None,
    )
    many = found.intervals is not None and found.intervals.shape[-2] > MOST_INTERVALS
    return Normal(None, as_dense(found, extent.keys)) if many else found


def _dense(seen: Any, extent: Extent) -> Normal:
    check_dense(seen.shape, extent)
    seen = seen.reshape((1,) * (len(extent.shape) - seen.ndim) + seen.shape)
    *batch, heads, queries, keys = seen.shape
    if any(size != 1 for size in batch):
        seen = jnp.broadcast_to(seen, (*extent.batch, heads, queries, keys))
    return Normal(None, seen.reshape(-1, heads, queries, keys))


def _lengths(keys: Any, queries: Any, extent: Extent) -> Normal:
    seen = Normal(None, None)
    if keys is not None:
        seen = _interval(0, _per_batch(keys, extent, "lengths(keys=…)"), extent)
    if queries is not None:
        inside = np.arange(extent.queries) < _per_batch(queries, extent, "lengths(queries=…)")
        shown = _interval(0, jnp.where(inside, extent.keys, 0), extent)
        seen = _both(seen, shown, extent)
    return seen


def _documents(ids: Any, key_ids: Any, extent: Extent) -> Normal:
    ids = _sequence(ids, extent, extent.queries, "documents(ids)", "Lq")
    key_ids = _sequence(key_ids, extent, extent.keys, "documents(key_ids)", "Lk")
    same = (ids[:, :, None] == key_ids[:, None, :]) & (ids[:, :, None] >= 0)
    return Normal(None, same[:, None])


def _cumulative_documents(bounds: Any, extent: Extent) -> Normal:
    """The interval of a position is that of the document that it lies in, empty behind the last."""
    bounds = jnp.asarray(bounds)
    document = jnp.searchsorted(bounds, np.arange(extent.queries), side="right")
    start, stop = bounds[document - 1], bounds[jnp.minimum(document, len(bounds) - 1)]
    return _interval(start[None, None], stop[None, None], extent)


def _interval(start: Any, stop: Any, extent: Extent) -> Normal:
    """One interval a query: start and stop, (B|1, 1, Lq|1), are cut to the keys."""
    start = jnp.clip(jnp.asarray(start), 0, extent.keys)
    stop = jnp.maximum(jnp.clip(jnp.asarray(stop), 0, extent.keys), start)
    pairs = jnp.broadcast_arrays(start, stop)
    return Normal(jnp.stack(pairs, axis=-1)[..., None, :].astype(jnp.int32), None)


def _positions(align: Any, extent: Extent, name: str) -> Any:
    """(B|1, 1, Lq): the key that each query stands on, for a traced `align`."""
    return np.arange(extent.queries) + _per_batch(align, extent, f"{name}(align)")


def _per_batch(value: Any, extent: Extent, name: str) -> Any:
    """(B|1, 1, 1)."""
    value = jnp.asarray(value)
    check_per_batch(value.shape, extent, name)
    return value.clip(-_FAR, _FAR).astype(jnp.int32).reshape(-1, 1, 1)


def _sequence(value: Any, extent: Extent, length: int, name: str, letter: str) -> Any:
    """(B|1, length)."""
    value = jnp.asarray(value)
    check_sequence(value.shape, extent, length, name, letter)
    return value.reshape(-1, length)


def _unflattened(array: Any, extent: Extent) -> Any:
    """(B|1, …) with all batch dimensions again."""
    if array is None:
        return None
    batch = extent.batch if array.shape[0] == extent.flat_batch else (1,) * len(extent.batch)
    return array.reshape(batch + array.shape[1:])
