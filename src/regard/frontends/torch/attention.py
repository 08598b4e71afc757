"""Which way a call on tensors takes.

On another device than the CPU: PyTorch's own attention. Under torch.compile, or where tensors stand
for others: the operators of ops.py. In the transforms of torch.func: transforms.py. With gradients:
autograd.py. Otherwise straight to the kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from regard import dispatch
from regard.errors import ArrayTypeError, BackendError, DeviceError
from regard.frontends.torch import native, onnx, ops, own, transforms
from regard.frontends.torch.autograd import Attention, Call, Transposed, needs_gradient
from regard.problem import Problem

__all__ = [
    "attend",
    "attention",
    "attention_lse",
    "broadcast",
    "cast",
    "check",
    "copy",
    "from_numpy",
    "host",
    "lse",
    "plan",
    "take",
    "transposed",
    "untraced",
    "version",
    "wants_gradients",
]


def attention(problem: Problem, backend: str | None) -> Tensor:
    """Output (B, H, Lq, E), or (B, Lq, H, E) in the layout BLHD."""
    problem = _whole_bias(_seeded(problem))
    if _elsewhere(problem, backend):
        output = own.output(problem)
    elif (way := _seen_through(problem)) is not None:
        output, _ = way(problem, backend)
    elif needs_gradient(problem):
        output, _ = Attention.apply(Call(problem, backend), *native.tensors_of(problem))
    else:
        output, _ = native.forward(problem, backend, want_lse=False)
    return _in_layout(output, problem)


def attention_lse(problem: Problem, backend: str | None) -> tuple[Tensor, Tensor]:
    """The output as `attention` gives it, and the log-sum-exp (B, H, Lq)."""
    problem = _whole_bias(_seeded(problem))
    if _elsewhere(problem, backend):
        output, total = own.attention_lse(problem)
    elif (way := _seen_through(problem)) is not None:
        output, total = way(problem, backend)
    else:
        output, total = Attention.apply(Call(problem, backend), *native.tensors_of(problem))
    return _in_layout(output, problem), total


def attend(
    problem: Problem, backend: str | None, fields: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """The output as `attention` gives it, and lse (B, H, Lq), with the read-outs' fields filled.

    lse None: the fields are not filled, since the output was not computed here.
    """
    problem = _whole_bias(_seeded(problem))
    if _elsewhere(problem, backend) or _seen_through(problem) is not None:
        return attention(problem, backend), None
    if needs_gradient(problem):
        output, total = Attention.apply(Call(problem, backend), *native.tensors_of(problem))
        if fields:
            dispatch.read_out(problem, None, total, fields, backend)
    else:
        output, total = native.forward(problem, backend, fields=fields)
    return _in_layout(output, problem), total


def lse(problem: Problem, backend: str | None) -> Tensor:
    """(B, H, Lq) log-sum-exp in the accumulation type."""
    problem = _whole_bias(problem.replace(value=None))
    if _elsewhere(problem, backend):
        return own.log_sum_exp(problem)
    way = _seen_through(problem)
    if way is not None:
        return way(problem.replace(value=problem.key[..., :0]), backend)[1]
    total: Tensor = Attention.apply(Call(problem, backend), *native.tensors_of(problem))[1]
    return total


def transposed(problem: Problem, y: Tensor, backend: str | None) -> Tensor:
    """weightsᵀ y: (B, H, Lk, C) for y (B, H, Lq, C)."""
    problem = _whole_bias(problem)
    if _elsewhere(problem, backend):
        return own.transposed(problem, y)
    if _seen_through(problem) is transforms.attention:
        return transforms.transposed(problem, y, backend)
    _refuse_trace("w.mT @ y", problem)
    tensors = native.tensors_of(problem.replace(value=y))
    result: Tensor = untraced(Transposed.apply)(problem, backend, *tensors)
    return result


def from_numpy(array: npt.NDArray[Any], like: Tensor) -> Tensor:
    """A tensor on the device of `like`."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(like.device)


def cast(array: Tensor, dtype: str) -> Tensor:
    """The tensor in that type."""
    return array.to(getattr(torch, dtype))


def take(table: Tensor, index: Tensor) -> Tensor:
    """table[…, index] for an index (n,); (…, H, n) of a table (H, m) for an index (…, n).

    By an embedding, since its gradient is the same bits each time, and that of an index is not.
    """
    *lead, size = table.shape
    found = torch.nn.functional.embedding(index, table.reshape(-1, size).mT)
    return found.movedim(-1, -2).reshape(*index.shape[:-1], *lead, index.shape[-1])


def wants_gradients(*arrays: Any) -> bool:
    """Whether any of them requires a gradient now."""
    return torch.is_grad_enabled() and any(getattr(a, "requires_grad", False) for a in arrays)


def broadcast(array: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A view of that shape."""
    return array.expand(shape)


def check(**arrays: Tensor | None) -> None:
    """That all tensors lie on one device, as plain strided memory.

    Raises: DeviceError, ArrayTypeError.
    """
    for name, array in arrays.items():
        if array is not None and (array.layout is not torch.strided or array.is_nested):
            raise ArrayTypeError(
                f"{name} of layout {array.layout}{', nested' if array.is_nested else ''}",
                "a dense tensor",
                "call to_dense(); nested tensors of the layout torch.jagged are taken by "
                "regard.torch.scaled_dot_product_attention, others have to be padded, and their "
                "lengths said by regard.lengths(...)",
            )
    devices = {name: array.device for name, array in arrays.items() if array is not None}
    if len(set(devices.values())) > 1:
        given = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise DeviceError(given, "one device", "move them with .to(device)")


def version(array: Any) -> int | None:
    """PyTorch's count of in-place changes; None where it keeps none.

    It keeps none in inference mode and under compilation, and NumPy's arrays in a mask have none.
    """
    if torch.compiler.is_compiling() or not isinstance(array, Tensor) or array.is_inference():
        return None
    return array._version


def copy(array: Tensor) -> Tensor:
    """An independent copy, which gradients pass through."""
    return array.clone()


def host(problem: Problem, backend: str | None) -> tuple[Problem, str | None]:
    """The problem detached, with its tensors in main memory, and the backend that reads it out.

    PyTorch's own attention has no read-outs: our kernels' are taken.
    """
    _refuse_trace("a read-out", problem)
    moved = {
        name: None if array is None else array.detach().cpu()
        for name, array in zip(native.ARRAYS, native.tensors_of(problem), strict=True)
    }
    return native.settled(problem.replace(**moved)), None if backend == "torch" else backend


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, as torch.compile must leave it: it asks kernels that are no operators."""
    return torch.compiler.disable(function) if torch.compiler.is_compiling() else function


def plan(problem: Problem, backend: str | None) -> dispatch.Plan:
    """What would compute the problem."""
    if not _elsewhere(problem, backend):
        return dispatch.plan(native.settled(problem), backend)
    device = problem.query.device
    how = "scaled_dot_product_attention" if own.fused(problem) else "the plain expression"
    details = {
        "runs on": str(device),
        "memory": "PyTorch's choice" if own.fused(problem) else ("quadratic in length"),
    }
    why = "asked for by name" if backend else f"no kernels of ours for {device}"
    return dispatch.Plan("torch", f"PyTorch's own {how}: {why}", details)


def _elsewhere(problem: Problem, backend: str | None) -> bool:
    """Whether PyTorch's own attention computes this: asked for, or not in main memory."""
    device = problem.query.device.type
    if backend == "torch":
        return True
    if device == "cpu":
        return False
    if backend is not None:
        raise BackendError(
            f"backend={backend!r} for tensors on {problem.query.device}",
            'tensors in main memory, or backend="torch"',
        )
    return True


def _seen_through(problem: Problem) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """What gives (output, lse) where others look on, or change what is done; None: nobody does."""
    if onnx.exporting() and not torch.compiler.is_dynamo_compiling():
        return onnx.attention
    if torch.compiler.is_compiling():
        # What is compiled inside of a transform has to be expressions that both know.
        return own.attention if transforms.any_active() else ops.attention
    if transforms.active():
        return transforms.attention
    return ops.attention if ops.traced(problem) else None


def _refuse_trace(what: str, problem: Problem) -> None:
    hidden = transforms.is_wrapped(problem) or ops.traced(problem)
    if hidden and not torch.compiler.is_compiling():
        raise BackendError(
            f"{what} inside a trace, a transform or on a tensor subclass",
            "attention, w @ v or w.lse(), which are operators that PyTorch can see",
            "take it outside, from plain tensors",
        )


def _whole_bias(problem: Problem) -> Problem:
    """With a bias that has all batch dimensions or none: autograd sums it over the shared ones."""
    if native.has_whole_bias(problem):
        return problem
    bias = problem.bias
    return problem.replace(bias=bias.expand(*problem.extent.batch, *bias.shape[-3:]))


def _seeded(problem: Problem) -> Problem:
    """With a seed for dropout, drawn from PyTorch's generator (torch.manual_seed repeats it)."""
    if not problem.dropout_p or problem.dropout_seed is not None:
        return problem
    return problem.replace(dropout_seed=torch.randint(2**62, (), device="cpu"))


def _in_layout(output: Tensor, problem: Problem) -> Tensor:
    return output if problem.layout == "BHLD" else output.swapaxes(-3, -2)
