"""What a mask shows as an expression of PyTorch's, for tensors that have no values yet.

Transforms, exporters and other devices see what is done with a mask's arrays. A mask that has none
of its own, and is none of those below, is a constant made from its normal form.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.errors import MaskError
from regard.masks import Extent, Mask, visibility
from regard.masks.arguments import check_per_batch, check_sequence
from regard.masks.base import Both, Dense, Either, Normal, check_dense
from regard.masks.positions import Causal, Prefix, Window
from regard.masks.sequences import CumulativeDocuments, Documents, Keys, Lengths
from regard.masks.stacked import Stacked

__all__ = ["seen"]


def seen(mask: Mask, extent: Extent, device: torch.device) -> Tensor:
    """Boolean, broadcasts to (*batch, H, Lq, Lk)."""
    i = torch.arange(extent.queries, device=device)[:, None]
    j = torch.arange(extent.keys, device=device)
    match mask:
        case Both(one, other):
            return seen(one, extent, device) & seen(other, extent, device)
        case Either(one, other):
            return seen(one, extent, device) | seen(other, extent, device)
        case Stacked(parts):
            return _stacked(parts, extent, device)
        case Dense(array):
            check_dense(tuple(array.shape), extent)
            return _tensor(array, device)
        case Normal(intervals, dense):
            return _normal(intervals, dense, extent, device)
        case Causal(align):
            return j <= i + _offset(align, extent, "causal", device)
        case Window(left, right, align):
            distance = j - (i + _offset(align, extent, "window", device))
            near = torch.ones_like(distance, dtype=torch.bool)
            near = near if left is None else near & (distance >= -left)
            return near if right is None else near & (distance <= right)
        case Prefix(n):
            return j < _per_batch(n, extent, "prefix(n)", device)
        case Lengths(keys, queries):
            inside = torch.ones_like(j, dtype=torch.bool)
            if keys is not None:
                inside = j < _per_batch(keys, extent, "lengths(keys=…)", device)
            if queries is not None:
                inside = inside & (i < _per_batch(queries, extent, "lengths(queries=…)", device))
            return inside
        case Keys(keep):
            keep = _sequence(keep, extent, extent.keys, "keys(keep)", "Lk", device)
            return keep[..., None, None, :]
        case Documents(ids, key_ids):
            ids = _sequence(ids, extent, extent.queries, "documents(ids)", "Lq", device)
            key_ids = _sequence(key_ids, extent, extent.keys, "documents(key_ids)", "Lk", device)
            return _same(ids, key_ids)
        case CumulativeDocuments(bounds):
            bounds = _tensor(bounds, device)
            ids, key_ids = (_document(bounds, n) for n in (i[:, 0], j))
            return _same(ids, key_ids)
        case _:
            return _constant(mask, extent, device)


def _stacked(parts: tuple[Mask, ...], extent: Extent, device: torch.device) -> Tensor:
    inner = Extent(extent.batch[1:], *extent.shape[-3:])
    shown = [seen(part, inner, device).expand(inner.shape) for part in parts]
    return torch.stack(shown)


def _normal(intervals: Any, dense: Any, extent: Extent, device: torch.device) -> Tensor:
    found = torch.ones((1, 1, 1, extent.keys), dtype=torch.bool, device=device)
    if intervals is not None:
        start, stop = _tensor(intervals, device).unbind(-1)
        j = torch.arange(extent.keys, device=device)
        found = ((start[..., None] <= j) & (j < stop[..., None])).any(dim=-2)
    if dense is not None:
        found = found & _tensor(dense, device)
    return _unflattened(found, extent)


def _offset(align: Any, extent: Extent, name: str, device: torch.device) -> int | Tensor:
    """The key that query 0 stands on: a number, or (*batch, 1, 1, 1)."""
    if align is None and extent.queries == extent.keys:
        align = "upper_left"
    if align is None:
        raise MaskError(
            f"{name}() for {extent.queries} queries and {extent.keys} keys",
            'align="upper_left" or "lower_right"',
        )
    if isinstance(align, str):
        return 0 if align == "upper_left" else extent.keys - extent.queries
    return _per_batch(align, extent, f"{name}(align)", device)


def _per_batch(value: Any, extent: Extent, name: str, device: torch.device) -> Tensor:
    """(*batch, 1, 1, 1), or as many dimensions less where all share it."""
    array = _tensor(value, device)
    check_per_batch(tuple(array.shape), extent, name)
    batch = () if tuple(array.shape) in ((), (1,)) else extent.batch
    return array.reshape(*batch, 1, 1, 1)


def _sequence(
    value: Any, extent: Extent, length: int, name: str, letter: str, device: torch.device
) -> Tensor:
    """(*batch, length), or (length,) where all share it."""
    array = _tensor(value, device)
    check_sequence(tuple(array.shape), extent, length, name, letter)
    batch = () if tuple(array.shape[:-1]) in ((), (1,)) else extent.batch
    return array.reshape(*batch, length)


def _same(ids: Tensor, key_ids: Tensor) -> Tensor:
    same = (ids[..., :, None] == key_ids[..., None, :]) & (ids[..., :, None] >= 0)
    return same[..., None, :, :]


def _document(bounds: Tensor, position: Tensor) -> Tensor:
    """The document that each position lies in; −1 behind the last."""
    document = (position[:, None] >= bounds).sum(dim=-1) - 1
    return torch.where(position < bounds[-1], document, -1)


def _constant(mask: Mask, extent: Extent, device: torch.device) -> Tensor:
    dense = torch.from_numpy(visibility(mask, extent).as_dense(extent.keys).copy())
    return _unflattened(dense.to(device), extent)


def _unflattened(seen: Tensor, extent: Extent) -> Tensor:
    """(B|1, H|1, Lq|1, Lk) with all batch dimensions again."""
    batch = extent.batch if seen.shape[0] != 1 else (1,) * len(extent.batch)
    return seen.reshape(*batch, *seen.shape[1:])


def _tensor(array: Any, device: torch.device) -> Tensor:
    return torch.as_tensor(array, device=device)
