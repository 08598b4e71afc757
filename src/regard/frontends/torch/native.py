"""Tensors in main memory: allocate what the kernels write into, and call them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regard import dispatch
from regard.problem import Problem

__all__ = [
    "ARRAYS",
    "backward",
    "empty_gradient",
    "empty_gradients",
    "empty_output",
    "forward",
    "has_whole_bias",
    "in_types_of",
    "log_sum_exp",
    "plain_lse",
    "settled",
    "tensors_of",
]


def empty_output(problem: Problem) -> Tensor:
    """(B, H, Lq, E), in memory as the caller's layout has it."""
    output: Tensor = problem.query.new_empty(problem.output_shape)
    return output if problem.layout == "BHLD" else output.swapaxes(-3, -2)


def forward(
    problem: Problem,
    backend: str | None,
    want_lse: bool = True,
    fields: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Output (B, H, Lq, E), in memory as the caller's layout has it, and lse (B, H, Lq).

    fields: of read-outs of the same weights, to be filled too.
    """
    output = empty_output(problem)
    total = _new_lse(problem) if want_lse else None
    problem = settled(problem)
    if fields:
        dispatch.read_out(problem, output, total, fields, backend)
    else:
        dispatch.forward(problem, output, total, backend)
    return output, total


def log_sum_exp(problem: Problem, backend: str | None) -> Tensor:
    """(B, H, Lq) in the accumulation type."""
    total = _new_lse(problem)
    dispatch.forward(settled(problem.replace(value=None)), None, total, backend)
    return total


def backward(
    problem: Problem,
    output: Tensor | None,
    lse: Tensor,
    d_output: Tensor,
    d_lse: Tensor | None,
    wanted: tuple[bool, ...],
    backend: str | None,
) -> tuple[Tensor | None, ...]:
    """Gradients of the ARRAYS of a problem; None for those not in `wanted`.

    output None: it is not needed, since the value alone wants a gradient.
    """
    arrays = tensors_of(problem)
    gradients = empty_gradients(arrays, wanted, lse)
    named = zip(_GRADIENTS, gradients, strict=True)
    written = {name: array for name, array in named if array is not None}
    lse = lse.contiguous()  # hooks on saved tensors may have moved it
    dispatch.backward(problem, output, lse, d_output, plain_lse(d_lse), backend, **written)
    return in_types_of(arrays, gradients)


# What may want a gradient, in the order in which autograd is told of it.
ARRAYS = ("query", "key", "value", "bias", "sinks", "vector")

_GRADIENTS = tuple(f"d_{name}" for name in ARRAYS)


def tensors_of(problem: Problem) -> tuple[Tensor | None, ...]:
    """The ARRAYS of a problem."""
    return tuple(getattr(problem, name) for name in ARRAYS)


def empty_gradients(
    arrays: Sequence[Tensor | None], wanted: tuple[bool, ...], lse: Tensor
) -> list[Tensor | None]:
    """What the kernels write the gradients into that are wanted, of arrays that are there.

    Those of bias, sinks and vector are sums over many rows: they are held in the type of lse. That
    of the vector is (*batch, H, D), for `in_types_of` to sum up.
    """
    d_query, d_key, d_value = (
        empty_gradient(array) if want and array is not None else None
        for array, want in zip(arrays[:3], wanted[:3], strict=True)
    )
    d_bias, d_sinks = (
        lse.new_empty(array.shape) if want and array is not None else None
        for array, want in zip(arrays[3:5], wanted[3:5], strict=True)
    )
    d_vector = None
    if wanted[5] and arrays[5] is not None:
        d_vector = lse.new_empty((*lse.shape[:-1], arrays[5].shape[-1]))
    return [d_query, d_key, d_value, d_bias, d_sinks, d_vector]


def empty_gradient(array: Tensor) -> Tensor:
    """For the gradient of an array, in memory like the array where kernels can write it so.

    What made the array of a longer one, such as a layer's projection, then takes it as it lies.
    """
    rows = array.ndim <= 4 and array.stride(-1) == 1
    alike = torch.preserve_format if rows else torch.contiguous_format
    return torch.empty_like(array, memory_format=alike)


def in_types_of(
    arrays: Sequence[Tensor | None], gradients: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The gradients; those of bias, sinks and vector in the shapes and types of these."""
    last = (
        None
        if array is None or gradient is None
        else gradient.sum_to_size(array.shape).to(array.dtype)
        for array, gradient in zip(arrays[3:], gradients[3:], strict=True)
    )
    return (*gradients[:3], *last)


def plain_lse(d_lse: Tensor | None) -> Tensor | None:
    """The gradient of the log-sum-exp as kernels read it: contiguous."""
    return None if d_lse is None else d_lse.resolve_neg().contiguous()


def has_whole_bias(problem: Problem) -> bool:
    """Whether the bias, if any, has all batch dimensions or none: of others no gradient is made."""
    batch = () if problem.bias is None else tuple(problem.bias.shape[:-3])
    return all(size == 1 for size in batch) or batch == problem.extent.batch


def settled(problem: Problem) -> Problem:
    """With PyTorch's own precision, of the moment when it computes, where the call names none."""
    if problem.precision is None and torch.get_float32_matmul_precision() != "highest":
        return problem.replace(precision="high")
    return problem


def _new_lse(problem: Problem) -> Tensor:
    dtype = getattr(torch, problem.accumulation_dtype)
    made: Tensor = problem.query.new_empty(problem.extent.shape[:-1], dtype=dtype)
    return made
