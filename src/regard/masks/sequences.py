"""Masks by sequence: padding, lengths, and several documents packed into one sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from regard._arrays import as_array, as_numpy, dtype_name
from regard.errors import MaskError, OptionError
from regard.masks.arguments import integers, per_batch, sequence_of
from regard.masks.base import Mask
from regard.masks.intervals import (
    EVERYTHING,
    MOST_INTERVALS,
    Extent,
    Visibility,
    interval,
    runs,
    stack,
)

__all__ = ["documents", "keys", "lengths"]


@dataclass(frozen=True, eq=False, repr=False)
class Lengths(Mask):
    """Query i sees key j when both lie inside their sequence's length."""

    keys: Any = None
    queries: Any = None

    def visibility(self, extent: Extent) -> Visibility:
        seen = EVERYTHING
        if self.keys is not None:
            seen &= interval(0, per_batch(self.keys, extent, "lengths(keys=…)"), extent.keys)
        if self.queries is not None:
            length = per_batch(self.queries, extent, "lengths(queries=…)")
            inside = np.arange(extent.queries) < length
            seen &= interval(0, np.where(inside, extent.keys, 0), extent.keys)
        return seen


@dataclass(frozen=True, eq=False, repr=False)
class Keys(Mask):
    """Every query of batch element b sees key j when keep[b, j]."""

    keep: Any

    def visibility(self, extent: Extent) -> Visibility:
        keep = sequence_of(self.keep, extent, extent.keys, "keys(keep)", "Lk")
        found = [runs(row) for row in keep]
        if max(map(len, found), default=0) > MOST_INTERVALS:
            return Visibility(dense=keep[:, None, None, :])
        return Visibility(stack(found)[:, None, None])


@dataclass(frozen=True, eq=False, repr=False)
class Documents(Mask):
    """Query i sees key j when both lie in the same document; negative ids are padding."""

    ids: Any
    key_ids: Any

    def visibility(self, extent: Extent) -> Visibility:
        ids = sequence_of(self.ids, extent, extent.queries, "documents(ids)", "Lq")
        key_ids = sequence_of(self.key_ids, extent, extent.keys, "documents(key_ids)", "Lk")
        batch = len(ids) if len(key_ids) == 1 else len(key_ids)
        ids = np.broadcast_to(ids, (batch, extent.queries))
        key_ids = np.broadcast_to(key_ids, (batch, extent.keys))
        pairs = [_document_runs(*row) for row in zip(ids, key_ids, strict=True)]
        if max((p.shape[1] for p in pairs), default=0) > MOST_INTERVALS:
            same = (ids[:, :, None] == key_ids[:, None, :]) & (ids[:, :, None] >= 0)
            return Visibility(dense=same[:, None])
        return Visibility(stack(pairs, extent.queries)[:, None])


@dataclass(frozen=True, eq=False, repr=False)
class CumulativeDocuments(Mask):
    """Documents one after another, given by where each begins."""

    cu_lengths: Any

    def visibility(self, extent: Extent) -> Visibility:
        bounds = as_numpy(self.cu_lengths).astype(np.int64)
        if bounds.ndim != 1 or len(bounds) < 1 or bounds[0] != 0 or np.any(np.diff(bounds) < 0):
            raise MaskError(
                f"documents(cu_lengths) = {bounds.tolist()[:8]}",
                "a vector that begins with 0 and does not fall",
                "pass np.cumsum([0, *lengths])",
            )
        if bounds[-1] > min(extent.queries, extent.keys):
            raise MaskError(
                f"documents(cu_lengths) that ends at {bounds[-1]}, with {extent.queries} queries "
                f"and {extent.keys} keys",
                "an end within the sequence",
            )
        count = len(bounds) - 1
        ids = np.full(max(extent.queries, extent.keys), -1)
        ids[: bounds[-1]] = np.repeat(np.arange(count), np.diff(bounds))
        mask = Documents(ids[None, : extent.queries], ids[None, : extent.keys])
        return mask.visibility(extent)

    def __repr__(self) -> str:
        return f"documents(cu_lengths=array{tuple(self.cu_lengths.shape)})"


def lengths(keys: Any = None, queries: Any = None) -> Mask:
    """Both query and key lie inside their sequence's length; (B,) integers each, None = all."""
    if keys is None and queries is None:
        raise OptionError("lengths()", "lengths of the keys, of the queries, or both")
    checked = (
        None if value is None else integers(value, name)
        for name, value in (("lengths(keys)", keys), ("lengths(queries)", queries))
    )
    return Lengths(*checked)


def keys(keep: Any) -> Mask:
    """Batch element b's queries see key j when keep[b, j]; boolean (B, Lk): padding on any side."""
    keep = as_array(keep, "keys(keep)")
    if dtype_name(keep) != "bool":
        raise MaskError(
            f"keys(keep) of type {dtype_name(keep)}",
            "boolean, True where the key may be seen",
            "pass keep != 0 (or == 0, if yours marks what is hidden)",
        )
    return Keys(keep)


def documents(ids: Any = None, key_ids: Any = None, *, cu_lengths: Any = None) -> Mask:
    """Query and key lie in the same document of a packed ("varlen") sequence.

    ids: (B, L) integers, the document of each position; negative = padding, seen by nobody.
    key_ids: (B, Lk), where the keys are others than the queries.
    cu_lengths: (n + 1,) instead of ids: documents one after another, d from cu_lengths[d] to
        cu_lengths[d + 1]; what lies beyond the last is padding.
    """
    if (ids is None) == (cu_lengths is None):
        raise OptionError(
            "documents() with " + ("neither" if ids is None else "both"),
            "either ids= or cu_lengths=",
        )
    if cu_lengths is not None:
        bounds = integers(cu_lengths, "documents(cu_lengths)")
        if isinstance(bounds, int):
            raise MaskError(f"documents(cu_lengths={bounds})", "(n + 1,) integers, from 0 up")
        return CumulativeDocuments(bounds)
    ids = integers(ids, "documents(ids)")
    return Documents(ids, ids if key_ids is None else integers(key_ids, "documents(key_ids)"))


def _document_runs(ids: npt.NDArray[Any], key_ids: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """(Lq, n, 2): for each query, the runs of keys with its id."""
    starts = np.flatnonzero(np.diff(key_ids, prepend=key_ids[:1] - 1))
    stops = np.append(starts[1:], len(key_ids))[: len(starts)]
    run_ids = key_ids[starts]
    order = np.argsort(run_ids, kind="stable")
    run_ids, pairs = run_ids[order], np.stack([starts, stops], axis=-1)[order]
    first = np.searchsorted(run_ids, ids, "left")
    count = np.where(ids < 0, 0, np.searchsorted(run_ids, ids, "right") - first)
    most = max(1, int(count.max(initial=0)))
    if most > MOST_INTERVALS:
        return np.empty((len(ids), most, 0), np.int32)
    slots = first[:, None] + np.arange(most)
    found = pairs[np.minimum(slots, len(pairs) - 1)] if len(pairs) else np.zeros((*slots.shape, 2))
    return np.where((np.arange(most) < count[:, None])[..., None], found, 0).astype(np.int32)
