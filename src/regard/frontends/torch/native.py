"""Tensors in main memory: allocate what the kernels write into, and call them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard import dispatch
from regard.problem import Problem

__all__ = ["backward", "empty_output", "forward", "log_sum_exp"]


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
    if fields:
        dispatch.read_out(problem, output, total, fields, backend)
    else:
        dispatch.forward(problem, output, total, backend)
    return output, total


def log_sum_exp(problem: Problem, backend: str | None) -> Tensor:
    """(B, H, Lq) in the accumulation type."""
    total = _new_lse(problem)
    dispatch.forward(problem.replace(value=None), None, total, backend)
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
    """Gradients of query, key, value, bias and sinks; None for those not in `wanted`.

    output None: it is not needed, since neither query nor key nor sinks want a gradient.
    """
    arrays = (problem.query, problem.key, problem.value, problem.bias, problem.sinks)
    names = ("d_query", "d_key", "d_value", "d_bias", "d_sinks")
    gradients: dict[str, Tensor] = {}
    for name, array, want in zip(names, arrays, wanted, strict=True):
        if want and array is not None:
            small = name in ("d_bias", "d_sinks")  # sums over many rows: held in full
            gradients[name] = torch.empty(
                array.shape, dtype=lse.dtype if small else array.dtype, device=array.device
            )
    d_lse = None if d_lse is None else d_lse.resolve_neg().contiguous()
    dispatch.backward(problem, output, lse, d_output, d_lse, backend, **gradients)
    found = (
        None if name not in gradients else gradients[name].to(array.dtype)
        for name, array in zip(names, arrays, strict=True)
    )
    return tuple(found)


def _new_lse(problem: Problem) -> Tensor:
    dtype = getattr(torch, problem.accumulation_dtype)
    made: Tensor = problem.query.new_empty(problem.extent.shape[:-1], dtype=dtype)
    return made
