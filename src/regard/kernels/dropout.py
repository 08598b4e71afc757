"""Which weights dropout keeps: a counter-based generator, so that every backend agrees.

The weight of query i and key j in head h of batch element b depends on (seed, b, h, i, j) alone: on
no order of computation, and the backward pass draws the forward's numbers again. The mixing steps
are the finalisers of splitmix64 (Steele et al., 2014) and MurmurHash3 (Appleby, 2011).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["kept"]

Words = npt.NDArray[Any]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def kept(
    seed: int, probability: float, batch: int, heads: int, queries: int, keys: int
) -> npt.NDArray[np.bool_]:
    """(B, H, Lq, Lk) boolean, False with the given probability."""
    with np.errstate(over="ignore"):
        head = np.arange(batch * heads, dtype=np.uint64).reshape(batch, heads, 1)
        of_head = _mix64(_mix64(np.full(1, seed % 2**64, np.uint64)) + head * _GOLDEN)
        row = _mix64(of_head + np.arange(queries, dtype=np.uint64) * _GOLDEN)[..., None]
        low, high = row.astype(np.uint32), (row >> np.uint64(32)).astype(np.uint32)
        draws = _mix32(_mix32(np.arange(keys, dtype=np.uint32) ^ low) + high)
    return np.asarray(draws >= int(probability * 2**32))


def _mix64(x: Words) -> Words:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def _mix32(x: Words) -> Words:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return x
