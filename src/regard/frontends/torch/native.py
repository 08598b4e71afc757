"""Tensors in main memory: allocate what the kernels write into, and call them."""

from __future__ import annotations

import torch
from torch import Tensor

from regard import dispatch
from regard.problem import Problem

__all__ = ["backward", "forward", "log_sum_exp"]


def forward(
    problem: Problem, backend: str | None, want_lse: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Output (B, H, Lq, E), in memory as the caller's layout has it, and lse (B, H, Lq)."""
    extent, query = problem.extent, problem.query
    if problem.layout == "BHLD":
        output = query.new_empty((*extent.shape[:-1], problem.value_size))
    else:
        shape = (*extent.batch, extent.queries, extent.heads, problem.value_size)
        output = query.new_empty(shape).swapaxes(-3, -2)
    total = _new_lse(problem) if want_lse else None
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
    delta = _delta(output, d_output, d_lse, lse)
    dispatch.backward(problem, d_output, lse, delta, backend, **gradients)
    found = (
        None if name not in gradients else gradients[name].to(array.dtype)
        for name, array in zip(names, arrays, strict=True)
    )
    return tuple(found)


def _new_lse(problem: Problem) -> Tensor:
    dtype = getattr(torch, problem.accumulation_dtype)
    made: Tensor = problem.query.new_empty(problem.extent.shape[:-1], dtype=dtype)
    return made


def _delta(output: Tensor | None, d_output: Tensor, d_lse: Tensor | None, lse: Tensor) -> Tensor:
    """Σ_e d_output · output − d_lse (B, H, Lq).

    Where the output is 0 its gradient does not count: a query that sees nothing may well be
    padding, with a gradient that was never written.
    """
    if output is None:
        return torch.zeros_like(lse)
    product = output.to(lse.dtype) * d_output.to(lse.dtype)
    delta = product.sum(dim=-1)
    if not delta.isfinite().all():
        delta = product.masked_fill_(output == 0, 0).sum(dim=-1)
    return (delta if d_lse is None else delta - d_lse).contiguous()
