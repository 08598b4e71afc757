"""torch.func.vmap: a call that is mapped is one call with one more batch dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from regard.masks import Mask, edge_count, flatten, rebuild
from regard.masks.stacked import Stacked
from regard.problem import Problem

__all__ = ["Mapped"]


class Mapped:
    """A problem whose arrays have a dimension that is mapped, or not, as `dims` says."""

    def __init__(
        self, size: int, specification: str, arrays: Sequence[Tensor], dims: Sequence[int | None]
    ) -> None:
        self._size = size
        arrays = tuple(
            a if dim is None else a.movedim(dim, 0) for a, dim in zip(arrays, dims, strict=True)
        )
        self._mapped = tuple(dim is not None for dim in dims)
        self._problem = Problem.rebuild(specification, arrays)
        self._is_mapped = Problem.rebuild(specification, self._mapped)
        self._element = Problem.rebuild(specification, _nth(arrays, self._mapped, 0))

    def folds(self, gradients: bool) -> bool:
        """Whether one call computes the same as one for each.

        Dropout draws by batch element; sinks and vectors have no batch dimension, nor have their
        gradients; the edges of a graph are shared by all.
        """
        problem, mapped = self._problem, self._is_mapped
        if problem.dropout_p or mapped.sinks or mapped.vector:
            return False
        if gradients and not (problem.sinks is None and problem.vector is None):
            return False
        return edge_count(problem.mask) is None or not any(self._mask_arrays()[1])

    def fold(self, gradients: bool) -> Problem:
        """The one call.

        gradients: the bias is repeated where it is shared, so that each element gets a gradient.
        """
        names = ("query", "key", "value")
        return self._problem.replace(
            **{name: self._batched(name) for name in names},
            bias=self._bias(gradients),
            mask=self._mask(),
        )

    def unfold_bias(self, gradient: Tensor) -> Tensor:
        """The gradient of each element's bias, from that of the folded one."""
        shape = self._element.bias.shape
        ones = (1,) * (gradient.ndim - 1 - len(shape))
        return gradient.sum_to_size((self._size, *ones, *shape)).reshape(self._size, *shape)

    def _batched(self, name: str) -> Any:
        array = getattr(self._problem, name)
        if getattr(self._is_mapped, name):
            return array
        return array.expand(self._size, *array.shape)

    def _bias(self, gradients: bool) -> Any:
        bias, extent = self._problem.bias, self._element.extent
        if bias is None:
            return None
        shape = tuple(self._element.bias.shape)
        shared = all(size == 1 for size in shape[:-3])
        if not self._is_mapped.bias:
            if shared and not gradients:
                return bias
            bias = bias[None]
        bias = bias.reshape(len(bias), *(1,) * (len(extent.shape) - len(shape)), *shape)
        batch = (1,) * len(extent.batch) if all(n == 1 for n in extent.batch) else extent.batch
        return bias.expand(self._size, *batch, *bias.shape[-3:])

    def _mask(self) -> Mask | None:
        mask = self._problem.mask
        if mask is None or mask.signature is not None or edge_count(mask) is not None:
            return mask
        arrays, mapped = self._mask_arrays()
        if not any(mapped):
            return Stacked((mask,))
        structure, _ = flatten(mask)
        each = (_nth(arrays, mapped, n) for n in range(self._size))
        return Stacked(tuple(rebuild(structure, part) for part in each))

    def _mask_arrays(self) -> tuple[tuple[Any, ...], tuple[bool, ...]]:
        """Those of the mask, which stand behind all others, and which of them are mapped."""
        arrays = () if self._problem.mask is None else flatten(self._problem.mask)[1]
        return arrays, self._mapped[len(self._mapped) - len(arrays) :]


def _nth(arrays: Sequence[Any], mapped: Sequence[bool], n: int) -> tuple[Any, ...]:
    return tuple(a[n] if is_mapped else a for a, is_mapped in zip(arrays, mapped, strict=True))
