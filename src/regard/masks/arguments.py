"""What masks are given: integers, and arrays with one entry a batch element or a position."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from regard._arrays import as_array, as_numpy, dtype_name
from regard.errors import MaskError
from regard.masks.intervals import Extent

__all__ = ["FAR", "check_per_batch", "check_sequence", "integers", "per_batch", "sequence_of"]

# Farther than any position, and far enough from int64's end that positions can be added to it.
FAR = 1 << 60


def integers(value: Any, name: str) -> Any:
    """An integer as int, at most ±FAR; an integer array as it is; lists become arrays."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return max(-FAR, min(int(value), FAR))
    array = as_array(value, name)
    if "int" not in dtype_name(array):
        raise MaskError(f"{name} of type {dtype_name(array)}", "integers")
    return array


def per_batch(
    value: Any, extent: Extent, name: str, negative: bool = False
) -> npt.NDArray[np.int64]:
    """(B|1, 1, 1) from an integer or an array with one for each batch element."""
    array: npt.NDArray[np.int64] = as_numpy(value).astype(np.int64).clip(-FAR, FAR)
    check_per_batch(array.shape, extent, name)
    if not negative and (array < 0).any():
        raise MaskError(f"{name} with {int(array.min())} in it", "0 or more")
    return array.reshape(-1, 1, 1)


def check_per_batch(shape: tuple[int, ...], extent: Extent, name: str) -> None:
    """That an array of that shape has one entry, or one for each batch element."""
    if shape and shape not in ((1,), (extent.flat_batch,), extent.batch):
        raise MaskError(
            f"{name} of shape {shape}",
            f"an integer, or one for each of the {extent.flat_batch} batch elements",
        )


def sequence_of(
    value: Any, extent: Extent, length: int, name: str, letter: str
) -> npt.NDArray[Any]:
    """(B|1, length) from an array (length,), (B, length) or (*batch, length)."""
    array = as_numpy(value)
    check_sequence(array.shape, extent, length, name, letter)
    shared = array.shape[:-1] in ((), (1,))
    return array.reshape(1 if shared else extent.flat_batch, length)


def check_sequence(
    shape: tuple[int, ...], extent: Extent, length: int, name: str, letter: str
) -> None:
    """That an array of that shape has one entry for each position, shared by the batch or not."""
    fits = bool(shape) and shape[-1] == length
    if not fits or shape[:-1] not in ((), (1,), (extent.flat_batch,), extent.batch):
        raise MaskError(
            f"{name} of shape {shape}", f"(B, {letter}) = ({extent.flat_batch}, {length})"
        )
