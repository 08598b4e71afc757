"""The transforms of torch.func, and forward mode: two functions that every one of them knows.

    Forward     (output, lse). Its gradients are Backward's.
    Backward    the gradients.

Mapped, either has one more batch dimension (mapped.py). All tensors stand in their arguments, those
of the mask too, where transforms look for them. What there are no kernels for, tangents and second
derivatives, are PyTorch's own expressions, in memory quadratic in length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType

from regard.errors import BackendError
from regard.frontends.torch import native, ops, own
from regard.frontends.torch.mapped import Mapped
from regard.problem import Problem

__all__ = ["active", "any_active", "attention", "gradients", "is_wrapped", "transposed"]

Tensors = tuple[Tensor, ...]
Expression = Callable[..., Tensors]


def active() -> bool:
    """Whether a transform of torch.func (functionalize apart) or forward mode is on."""
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    transform = torch._C._functorch.peek_interpreter_stack()
    return transform is not None and transform.key() != TransformType.Functionalize


def any_active() -> bool:
    """Whether one is on, as torch.compile can find it out."""
    forward: bool = torch.autograd.forward_ad._current_level >= 0
    return forward or torch._C._are_functorch_transforms_active()


def is_wrapped(problem: Problem) -> bool:
    """Whether a transform has put tensors without values in the place of the problem's."""
    known = torch._C._functorch.is_functorch_wrapped_tensor
    return any(isinstance(a, Tensor) and known(a) for a in problem.weight_arrays)


def attention(problem: Problem, backend: str | None) -> tuple[Tensor, Tensor]:
    """(output, lse)."""
    specification, arrays = problem.flatten()
    output, lse = Forward.apply(specification, backend, *arrays)
    return output, lse


def transposed(problem: Problem, y: Tensor, backend: str | None) -> Tensor:
    """weightsᵀ y, (B, H, Lk, C): the values' gradient where the output's is y."""
    shape = (*problem.extent.shape[:-2], problem.extent.keys, y.shape[-1])
    problem = problem.replace(value=y.new_zeros(shape))
    output, lse = attention(problem, backend)
    specification, arrays = problem.flatten()
    upstream = y, torch.zeros_like(lse)
    (result,) = Backward.apply(("value",), specification, backend, output, lse, *upstream, *arrays)
    return result  # type: ignore[no-any-return]


def gradients(
    problem: Problem,
    backend: str | None,
    output: Tensor | None,
    lse: Tensor,
    d_output: Tensor | None,
    d_lse: Tensor | None,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Those of native.ARRAYS that are needed; d_output and d_lse may be mapped, or missing."""
    if problem.value is None:  # the log-sum-exp alone: as if values of size 0 had been there
        problem = problem.replace(value=problem.key[..., :0])
        output = problem.query[..., :0]
    assert output is not None
    d_output = torch.zeros_like(output) if d_output is None else d_output
    d_lse = torch.zeros_like(lse) if d_lse is None else d_lse
    wanted = tuple(n for n, need in zip(native.ARRAYS, needed, strict=True) if need)
    specification, arrays = problem.flatten()
    given = specification, backend, output, lse, d_output, d_lse
    found = dict(zip(wanted, Backward.apply(wanted, *given, *arrays), strict=True))
    return tuple(map(found.get, native.ARRAYS))


class Forward(torch.autograd.Function):
    """(output, lse) of a problem that was taken apart."""

    @staticmethod
    def forward(specification: str, backend: str | None, *arrays: Tensor) -> Tensors:
        """As the kernels compute it."""
        problem = Problem.rebuild(specification, arrays)
        if ops.traced(problem):
            return ops.attention(problem, backend)
        output, lse = native.forward(problem, backend)
        assert lse is not None
        return output, lse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        """Keep everything."""
        ctx.specification, ctx.backend, *arrays = inputs
        _save(ctx, (*output, *arrays))

    @staticmethod
    def backward(ctx: Any, d_output: Tensor, d_lse: Tensor) -> tuple[Any, ...]:
        """By `Backward`."""
        output, lse, *arrays = _saved(ctx)
        names = _differentiable(ctx.specification, arrays)
        needed = dict(zip(names, ctx.needs_input_grad[2:], strict=False))
        wanted = tuple(name for name in names if needed[name])
        given = ctx.specification, ctx.backend, output, lse, d_output, d_lse
        found = dict(zip(wanted, Backward.apply(wanted, *given, *arrays), strict=True))
        return None, None, *map(found.get, names), *[None] * (len(arrays) - len(names))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensors:
        """The tangents of PyTorch's own expression."""
        _, _, *arrays = _saved(ctx)
        names = _differentiable(ctx.specification, arrays)
        expression = _outputs(ctx.specification, arrays)
        return _pushed(expression, arrays[: len(names)], tangents[2 : 2 + len(names)])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensors, tuple[int, ...]]:
        """One more batch dimension, or one after another."""
        specification, backend, *arrays = inputs
        mapped = Mapped(info.batch_size, specification, arrays, in_dims[2:])
        if not mapped.folds(gradients=False):
            return _one_by_one(Forward, info.batch_size, in_dims, inputs)
        folded, more = mapped.fold(gradients=False).flatten()
        return Forward.apply(folded, backend, *more), (0, 0)


class Backward(torch.autograd.Function):
    """The gradients of the arrays that are wanted, by name, in the order of native.ARRAYS.

    It is a function of the arrays and of the gradients of output and log-sum-exp; those two
    themselves are there to save computing them again, and get no gradient.
    """

    @staticmethod
    def forward(
        wanted: tuple[str, ...],
        specification: str,
        backend: str | None,
        output: Tensor,
        lse: Tensor,
        d_output: Tensor,
        d_lse: Tensor,
        *arrays: Tensor,
    ) -> Tensors:
        """As the kernels compute them."""
        problem = Problem.rebuild(specification, arrays)
        if ops.traced(problem):
            found = ops.backward(problem, backend, output, lse, d_output, d_lse)
            named = dict(zip(_differentiable(specification, arrays), found, strict=True))
            return tuple(named[name] for name in wanted)
        needed = tuple(name in wanted for name in native.ARRAYS)
        gradients = native.backward(problem, output, lse, d_output, d_lse, needed, backend)
        return tuple(gradient for gradient in gradients if gradient is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        """Keep what the gradients are a function of."""
        ctx.wanted, ctx.specification, _, _, _, *given = inputs
        _save(ctx, given)

    @staticmethod
    def backward(ctx: Any, *d_gradients: Tensor) -> tuple[Any, ...]:
        """The gradients of PyTorch's own expression."""
        expression, given, rest = _gradients(ctx)
        pull = torch.func.vjp(expression, *given)[1]
        return *[None] * 5, *pull(d_gradients), *[None] * rest

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensors:
        """The tangents of PyTorch's own expression."""
        expression, given, _ = _gradients(ctx)
        return _pushed(expression, given, tangents[5 : 5 + len(given)])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensors, tuple[int, ...]]:
        """One more batch dimension, or one after another."""
        wanted, specification, backend, *given = inputs
        dims = in_dims[3:]
        mapped = Mapped(info.batch_size, specification, given[4:], dims[4:])
        if not mapped.folds(gradients=True):
            return _one_by_one(Backward, info.batch_size, in_dims, inputs)
        size = info.batch_size
        results = (
            array.expand(size, *array.shape) if dim is None else array.movedim(dim, 0)
            for array, dim in zip(given[:4], dims[:4], strict=True)
        )
        folded, more = mapped.fold(gradients=True).flatten()
        found = Backward.apply(wanted, folded, backend, *results, *more)
        found = tuple(
            mapped.unfold_bias(gradient) if name == "bias" else gradient
            for name, gradient in zip(wanted, found, strict=True)
        )
        return found, (0,) * len(found)


def _save(ctx: Any, arrays: Sequence[Any]) -> None:
    """Keep tensors where transforms find them, and the NumPy arrays of masks beside them."""
    tensors = [array for array in arrays if isinstance(array, Tensor)]
    ctx.others = [None if isinstance(array, Tensor) else array for array in arrays]
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _saved(ctx: Any) -> list[Any]:
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if other is None else other for other in ctx.others]


def _differentiable(specification: str, arrays: Sequence[Tensor]) -> list[str]:
    """Those of native.ARRAYS that are there; they come first."""
    problem = Problem.rebuild(specification, tuple(arrays))
    return [name for name in native.ARRAYS if getattr(problem, name) is not None]


def _outputs(specification: str, arrays: Sequence[Tensor]) -> Expression:
    """(output, lse) as an expression in the differentiable arrays."""
    problem = Problem.rebuild(specification, tuple(arrays))
    if problem.dropout_p:
        raise BackendError(
            f"tangents or second derivatives through dropout_p={problem.dropout_p}",
            "first derivatives in reverse, or no dropout",
        )

    def expression(*primals: Tensor) -> Tensors:
        given = (*primals, *arrays[len(primals) :])
        return own.attention_lse(Problem.rebuild(specification, given))

    return expression


def _gradients(ctx: Any) -> tuple[Expression, Sequence[Tensor], int]:
    """What is wanted as an expression in the first saved tensors; these; how many are left."""
    d_output, d_lse, *arrays = _saved(ctx)
    names, wanted = _differentiable(ctx.specification, arrays), ctx.wanted
    outputs = _outputs(ctx.specification, arrays)

    def expression(d_output: Tensor, d_lse: Tensor, *primals: Tensor) -> Tensors:
        pull = torch.func.vjp(outputs, *primals)[1]
        found = dict(zip(names, pull((d_output, d_lse)), strict=True))
        return tuple(found[name] for name in wanted)

    return expression, (d_output, d_lse, *arrays[: len(names)]), len(arrays) - len(names)


def _pushed(
    expression: Expression, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> Tensors:
    """The tangents of an expression's outputs: the transpose of its transpose.

    Not torch.func.jvp, since forward mode does not nest outside of torch.func. PyTorch turns it off
    around a function's own jvp, and with it that of the transforms further out.
    """
    forward = torch.autograd.forward_ad
    with forward._set_fwd_grad_enabled(True):
        primals = [forward.unpack_dual(primal).primal for primal in primals]
        given = (
            torch.zeros_like(primal) if tangent is None else tangent
            for primal, tangent in zip(primals, tangents, strict=True)
        )

        def transpose(*cotangents: Tensor) -> Any:
            return torch.func.vjp(expression, *primals)[1](cotangents)

        zeros = map(torch.zeros_like, expression(*primals))
        found: Tensors = torch.func.vjp(transpose, *zeros)[1](tuple(given))
        return found


def _one_by_one(
    function: type[torch.autograd.Function], size: int, dims: Sequence[Any], inputs: Sequence[Any]
) -> tuple[Tensors, tuple[int, ...]]:
    each = [
        function.apply(
            *(
                given if dim is None or not isinstance(given, Tensor) else given.select(dim, n)
                for given, dim in zip(inputs, dims, strict=True)
            )
        )
        for n in range(size)
    ]
    found = tuple(map(torch.stack, zip(*each, strict=True)))
    return found, (0,) * len(found)
