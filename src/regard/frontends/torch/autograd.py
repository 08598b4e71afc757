"""Gradients: attention and its log-sum-exp, and the transposed product.

With ds_ij = p_ij (dP_ij − δ_i), all gradients of the weights have this one form:

    y = P v     given dy:  dP_ij = dy_i · v_j,  δ_i = dy_i · y_i − dlse_i,  dv = Pᵀ dy
    x = Pᵀ y    given dx:  dP_ij = y_i · dx_j,  δ_i = y_i · (P dx)_i,      dy = P dx

so the transposed product's backward is attention's, with values dx and output gradient y.

With create_graph=True the gradients are computed by PyTorch's own expressions instead, which it can
differentiate again; their memory is quadratic in length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regard.errors import BackendError
from regard.frontends.torch import native, own, transforms
from regard.masks import Mask, flatten
from regard.problem import Problem

__all__ = ["Attention", "Call", "Transposed", "needs_gradient"]

# Of torch.autograd.grad(…, is_grads_batched=True): these know PyTorch's own operators alone.
_is_batched = torch._C._functorch.is_legacy_batchedtensor


def needs_gradient(problem: Problem) -> bool:
    """Whether anything that was given to attention requires a gradient now."""
    if not torch.is_grad_enabled():
        return False
    arrays = native.tensors_of(problem)
    return any(array is not None and array.requires_grad for array in arrays)


class Call:
    """One call of a problem, without the tensors that autograd tracks: saved_tensors has those.

    plain.py has another class with these methods, for calls that were made before.
    """

    def __init__(self, problem: Problem, backend: str | None) -> None:
        self.mask, self._problem, self.backend = problem.mask, _without_tensors(problem), backend

    def problem(self, tensors: Sequence[Tensor | None]) -> Problem:
        """The problem with its tensors (native.ARRAYS)."""
        return _with_tensors(self._problem, tensors)

    def forward(self, *tensors: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Output (None without values) and lse."""
        problem = self.problem(tensors)
        if problem.value is None:
            return None, native.log_sum_exp(problem, self.backend)
        output, lse = native.forward(problem, self.backend)
        assert lse is not None
        return output, lse

    def backward(
        self,
        tensors: Sequence[Tensor | None],
        output: Tensor | None,
        lse: Tensor,
        d_output: Tensor | None,
        d_lse: Tensor | None,
        wanted: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        """Gradients of all tensors; None for those not in `wanted`."""
        problem = self.problem(tensors)
        if problem.value is None:  # the log-sum-exp alone: as if values of size 0 had been there
            value = problem.key.new_zeros((*problem.key.shape[:-1], 0))
            problem = problem.replace(value=value)
            output = problem.query.new_zeros((*problem.query.shape[:-1], 0))
        if d_output is None:
            assert output is not None
            d_output = torch.zeros_like(output)
        return native.backward(problem, output, lse, d_output, d_lse, wanted, self.backend)


class Attention(torch.autograd.Function):
    """(output, lse) of a call; its tensors stand beside it so that autograd sees them."""

    @staticmethod
    def forward(
        ctx: Any, call: Any, *tensors: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Output (None without values) and lse."""
        ctx.call = call
        ctx.set_materialize_grads(False)
        output, lse = call.forward(*tensors)
        ctx.save_for_backward(output, lse, *tensors, *_of_mask(call.mask))
        return output, lse

    @staticmethod
    def backward(ctx: Any, d_output: Tensor | None, d_lse: Tensor | None) -> tuple[Any, ...]:
        """Gradients of all tensors, in one sweep."""
        output, lse, *tensors = ctx.saved_tensors[: 2 + len(native.ARRAYS)]
        call = ctx.call
        if any(d is not None and _is_batched(d) for d in (d_output, d_lse)):
            with torch.enable_grad():
                return None, *_again(call.problem(tensors), tensors, d_output, d_lse)
        if transforms.active():
            given = output, lse, d_output, d_lse, ctx.needs_input_grad[1:]
            return None, *transforms.gradients(call.problem(tensors), call.backend, *given)
        if torch.is_grad_enabled():
            return None, *_again(call.problem(tensors), tensors, d_output, d_lse)
        lse = lse.contiguous()  # hooks on saved tensors may have moved it
        wanted = ctx.needs_input_grad[1:]
        return None, *call.backward(tensors, output, lse, d_output, d_lse, wanted)


class Transposed(torch.autograd.Function):
    """weightsᵀ y, (B, H, Lk, C); y stands in the place of the value."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, backend: str | None, *tensors: Tensor | None) -> Tensor:
        """As the values' gradient where the output's gradient is y."""
        lse = native.log_sum_exp(problem, backend)
        ctx.problem, ctx.backend = _without_tensors(problem), backend
        ctx.save_for_backward(lse, *tensors, *_of_mask(problem.mask))
        y = tensors[_VALUE]
        assert y is not None
        *lead, _, size = y.shape
        values = y.new_zeros((*lead, problem.extent.keys, size))
        found = native.backward(
            problem.replace(value=values), None, lse, y, None, _ONLY_VALUE, backend
        )
        result = found[_VALUE]
        assert result is not None
        return result

    @staticmethod
    def backward(ctx: Any, d_result: Tensor) -> tuple[Any, ...]:
        """Gradients of all tensors."""
        lse, *tensors = ctx.saved_tensors[: 1 + len(native.ARRAYS)]
        problem, y = _with_tensors(ctx.problem, tensors), tensors[_VALUE]
        if torch.is_grad_enabled():
            result = own.transposed(problem, y)
            return None, None, *_gradients([result], tensors, [d_result])
        problem = problem.replace(value=d_result, layout="BHLD")
        d_y = native.forward(problem, ctx.backend, want_lse=False)[0]
        wanted = list(ctx.needs_input_grad[2:])
        wanted[_VALUE] = False
        found = list(native.backward(problem, d_y, lse, y, None, tuple(wanted), ctx.backend))
        found[_VALUE] = d_y
        return None, None, *found


def _again(
    problem: Problem,
    tensors: list[Tensor | None],
    d_output: Tensor | None,
    d_lse: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The gradients of attention as PyTorch's own expressions, differentiable once more."""
    if problem.dropout_p:
        raise BackendError(
            f"second derivatives through dropout_p={problem.dropout_p}",
            "create_graph=False, or no dropout",
        )
    if problem.value is None:
        return _gradients([own.log_sum_exp(problem)], tensors, [d_lse])
    return _gradients(list(own.attention_lse(problem)), tensors, [d_output, d_lse])


def _gradients(
    outputs: list[Tensor], tensors: list[Tensor | None], upstream: list[Tensor | None]
) -> tuple[Tensor | None, ...]:
    wanted = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
    pairs = [(y, dy) for y, dy in zip(outputs, upstream, strict=True) if dy is not None]
    ys, dys = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(ys, wanted, dys, create_graph=True, allow_unused=True))
    return tuple(
        next(found) if tensor is not None and tensor.requires_grad else None for tensor in tensors
    )


_VALUE = native.ARRAYS.index("value")
_ONLY_VALUE = tuple(name == "value" for name in native.ARRAYS)


def _of_mask(mask: Mask | None) -> tuple[Tensor, ...]:
    """The mask's tensors: saved, so that autograd notices when they are changed in place."""
    arrays = () if mask is None or mask.signature is not None else flatten(mask)[1]
    return tuple(array for array in arrays if isinstance(array, Tensor))


def _without_tensors(problem: Problem) -> Problem:
    """What may be kept on the context: tensors that autograd tracks belong in saved_tensors."""
    return problem.replace(**dict.fromkeys(native.ARRAYS))


def _with_tensors(problem: Problem, tensors: Sequence[Tensor | None]) -> Problem:
    return problem.replace(**dict(zip(native.ARRAYS, tensors, strict=True)))
