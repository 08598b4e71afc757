"""What any array tells about itself, whatever framework made it; nothing here imports one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from regard.errors import ShapeError

__all__ = ["among", "as_array", "as_it_is", "as_numpy", "dtype_name", "is_array"]


def is_array(value: object) -> bool:
    """Whether `value` is an array of some framework (it has a shape and an element type)."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def as_array(value: Any, name: str) -> Any:
    """An array as it is, anything else in NumPy. Raises: ShapeError for ragged lists."""
    if is_array(value):
        return value
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{name} as lists of different lengths", "rows of one length") from error


def among(value: Any, allowed: Collection[str | None]) -> bool:
    """Whether it is one of these texts; of an array, `in` would compare each element."""
    return (value is None or isinstance(value, str)) and value in allowed


def dtype_name(array: Any) -> str:
    """The element type's plain name: "float32" for every framework's."""
    name = getattr(array.dtype, "name", None)  # PyTorch's types have none
    return name if isinstance(name, str) else str(array.dtype).rpartition(".")[2]


def as_it_is(array: Any) -> Any:
    """The array: for front ends that need no more than that."""
    return array


def as_numpy(array: Any) -> np.ndarray[Any, Any]:
    """The array in NumPy, detached from any gradient; a view where it lies in main memory.

    PyTorch's bfloat16, which NumPy does not know, becomes float32 (exact, but a copy).
    """
    if hasattr(array, "detach"):
        array = array.detach().cpu().resolve_neg()
        if dtype_name(array) == "bfloat16":
            array = array.float()
        return np.asarray(array.numpy())
    return np.asarray(as_array(array, "an array"))
