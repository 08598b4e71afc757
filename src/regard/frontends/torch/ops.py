"""What torch.compile and torch.export see: one operator for the forward, one for the backward.

A problem crosses as a text and a flat list of tensors (`Problem.flatten`); whatever depends on the
values in a mask's arrays is worked out inside. The operators are registered when this is imported.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType

from regard.frontends.torch import native
from regard.problem import Problem

__all__ = ["attention", "backward", "traced"]


def traced(problem: Problem) -> bool:
    """Whether tensors may stand for others: in traces, fake tensors, functionalize, subclasses.

    An operator is seen there; a kernel that is given addresses is not.
    """
    transform = torch._C._functorch.peek_interpreter_stack()
    return (
        (transform is not None and transform.key() == TransformType.Functionalize)
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or type(problem.query).__torch_dispatch__ is not Tensor.__torch_dispatch__
    )


def attention(problem: Problem, backend: str | None) -> tuple[Tensor, Tensor]:
    """(output, lse) through the operator that a tracer can see."""
    specification, arrays = problem.flatten()
    output, lse = _forward(_tensors(arrays), specification, backend or "")
    return output, lse


def backward(
    problem: Problem, backend: str | None, output: Tensor, lse: Tensor, *upstream: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of all tensors of a problem, in the order of native.ARRAYS."""
    specification, arrays = problem.flatten()
    given = _tensors(arrays), specification, backend or "", output, lse, *upstream
    return tuple(_backward(*given))


def _tensors(arrays: tuple[Any, ...]) -> list[Tensor]:
    """With the NumPy arrays of masks as tensors."""
    return [a if isinstance(a, Tensor) else torch.as_tensor(a) for a in arrays]


@torch.library.custom_op("regard::attention", mutates_args=())
def _forward(tensors: list[Tensor], specification: str, backend: str) -> tuple[Tensor, Tensor]:
    problem = Problem.rebuild(specification, tuple(tensors))
    output, lse = native.forward(problem, backend or None)
    assert lse is not None
    return output, lse


@_forward.register_fake
def _(tensors: list[Tensor], specification: str, backend: str) -> tuple[Tensor, Tensor]:
    problem = Problem.rebuild(specification, tuple(tensors))
    *lead, queries, _ = problem.query.shape
    dtype = getattr(torch, problem.accumulation_dtype)
    lse = problem.query.new_empty((*lead, queries), dtype=dtype)
    size = problem.value.shape[-1]
    if problem.layout == "BHLD":
        return problem.query.new_empty((*lead, queries, size)), lse
    *batch, heads = lead
    shape = (*batch, queries, heads, size)
    return problem.query.new_empty(shape).swapaxes(-3, -2), lse


_ALL = (True,) * len(native.ARRAYS)


@torch.library.custom_op("regard::attention_backward", mutates_args=())
def _backward(
    tensors: list[Tensor],
    specification: str,
    backend: str,
    output: Tensor,
    lse: Tensor,
    d_output: Tensor,
    d_lse: Tensor,
) -> list[Tensor]:
    problem = Problem.rebuild(specification, tuple(tensors))
    gradients = native.backward(problem, output, lse, d_output, d_lse, _ALL, backend or None)
    return [gradient for gradient in gradients if gradient is not None]


@_backward.register_fake
def _(
    tensors: list[Tensor],
    specification: str,
    backend: str,
    output: Tensor,
    lse: Tensor,
    d_output: Tensor,
    d_lse: Tensor,
) -> list[Tensor]:
    problem = Problem.rebuild(specification, tuple(tensors))
    *_, bias, sinks, vector = native.tensors_of(problem)
    rest = [array for array in (bias, sinks, vector) if array is not None]
    made = [native.empty_gradient(a) for a in (problem.query, problem.key, problem.value)]
    return [*made, *(array.new_empty(array.shape) for array in rest)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors, ctx.specification, ctx.backend = inputs
    ctx.count = len(tensors)
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, d_output: Tensor, d_lse: Tensor) -> tuple[Any, ...]:
    *tensors, output, lse = ctx.saved_tensors
    gradients = _backward(tensors, ctx.specification, ctx.backend, output, lse, d_output, d_lse)
    # Behind the differentiable tensors stand the seed and the mask's arrays.
    padded = [*gradients, *[None] * (ctx.count - len(gradients))]
    return padded, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
