"""Tensors as the rest of Regard handles arrays: with NumPy's methods, and a transposition in mind.

TensorFlow's tensors have no strides, so that exchanging two dimensions copies. `Held` remembers
that its heads and positions are to be exchanged, and kernels get a view that has them so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

__all__ = ["Held", "enter", "is_tensor", "leave", "view"]


class Held:
    """A tensor, perhaps with its dimensions −3 and −2 exchanged."""

    def __init__(self, tensor: Any, exchanged: bool = False) -> None:
        self.raw, self.exchanged = tensor, exchanged

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes; inside tf.function None for those that are not known."""
        sizes: list[Any] = self.raw.shape.as_list()
        if self.exchanged:
            sizes[-3], sizes[-2] = sizes[-2], sizes[-3]
        return tuple(sizes)

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.raw.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's element type."""
        kind: np.dtype[Any] = np.dtype(self.raw.dtype.as_numpy_dtype)
        return kind

    @property
    def tensor(self) -> Any:
        """The tensor as its shape says: a copy where dimensions are exchanged."""
        if not self.exchanged:
            return self.raw
        order = [*range(self.ndim)]
        order[-3], order[-2] = order[-2], order[-3]
        return tf.transpose(self.raw, order)

    def swapaxes(self, one: int, other: int) -> Held:
        """With heads and positions exchanged: nothing is moved."""
        assert {one, other} == {-3, -2}
        return Held(self.raw, not self.exchanged)

    def reshape(self, shape: tuple[int, ...]) -> Held:
        """In another shape."""
        return self if shape == self.shape else Held(tf.reshape(self.tensor, shape))

    def __getitem__(self, index: Any) -> Held:
        entries = index if isinstance(index, tuple) else (index,)
        chosen = self.tensor
        heads = [entry for entry in entries if isinstance(entry, list)]
        if heads:  # some key heads: (…, [heads], :, :), which TensorFlow's own index cannot take
            return Held(tf.gather(chosen, heads[0], axis=-3))
        return Held(chosen[entries])

    def __len__(self) -> int:
        return self.shape[0]

    def __matmul__(self, other: Held) -> Held:
        return Held(tf.matmul(self.tensor, other.tensor))

    def __array__(self, dtype: Any = None, copy: Any = None) -> npt.NDArray[Any]:
        return np.asarray(view(self), dtype)


def enter(array: Any) -> Held:
    """A tensor or variable, to be handled as an array."""
    return Held(tf.convert_to_tensor(array))


def is_tensor(value: Any) -> bool:
    """Whether this is TensorFlow's; tf.is_tensor takes long over what is not."""
    return isinstance(value, (tf.Tensor, tf.Variable))


def leave(array: Any) -> Any:
    """The tensor again."""
    return array.tensor


def view(held: Held) -> npt.NDArray[Any]:
    """The elements where they lie, for tensors in main memory that have values."""
    array = np.asarray(held.raw)
    return array.swapaxes(-3, -2) if held.exchanged else array
