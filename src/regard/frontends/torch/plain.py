"""Tensors that are memory and no more, computed with right away: their calls can be repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regard import dispatch
from regard.dispatch import Prepared
from regard.frontends.torch import native
from regard.frontends.torch.autograd import Attention, needs_gradient
from regard.masks import Mask
from regard.problem import Problem

__all__ = ["Repeated", "repeated", "signature"]

_is_compiling = torch.compiler.is_compiling
_modes = torch._C._len_torch_dispatch_stack
_trace = torch._C._get_tracing_state
_transform = torch._C._functorch.peek_interpreter_stack
_dispatch_keys = torch._C._dispatch_keys
_precision = torch.get_float32_matmul_precision


def signature(query: Any, key: Any, value: Any, bias: Any = None) -> tuple[Any, ...] | None:
    """All that a call depends on but addresses and elements; None where they are not plain.

    Plain: in main memory, not standing for other tensors, and nobody traces or transforms.
    """
    if (
        _is_compiling()
        or not (type(query) is type(key) is type(value) is Tensor)
        or _dispatch_keys(query).raw_repr() not in _PLAIN
        or _dispatch_keys(key).raw_repr() not in _PLAIN
        or _dispatch_keys(value).raw_repr() not in _PLAIN
        or _modes()
        or _trace() is not None
        or _transform() is not None
        or torch.autograd.forward_ad._current_level >= 0
    ):
        return None
    gradient = query.requires_grad or key.requires_grad or value.requires_grad
    more = None
    if bias is not None:
        if type(bias) not in _LEAVES or _dispatch_keys(bias).raw_repr() not in _PLAIN:
            return None
        gradient = gradient or bias.requires_grad
        more = (bias.dtype, bias.shape, bias.stride())
    # fmt: off
    return (
        gradient and torch.is_grad_enabled(), _precision(), more,
        query.dtype, query.shape, query.stride(),
        key.dtype, key.shape, key.stride(),
        value.dtype, value.shape, value.stride(),
    )
    # fmt: on


def repeated(problem: Problem, backend: str | None) -> Repeated | None:
    """How to repeat a call without sinks and dropout; None: it goes another way."""
    if backend == "torch" or not native.has_whole_bias(problem):
        return None
    problem = native.settled(problem)
    prepared = dispatch.prepare(problem, native.empty_output(problem), backend)
    return None if prepared is None else Repeated(problem, prepared, backend)


class Repeated:
    """A plain call for all tensors of its signature."""

    def __init__(self, problem: Problem, prepared: Prepared, backend: str | None) -> None:
        query, self.shape, self.backend = problem.query, problem.output_shape, backend
        self.prepared, self.gradient = prepared, needs_gradient(problem)
        self.heads_first = problem.layout == "BHLD"
        self.lse = (problem.extent.shape[:-1], getattr(torch, problem.accumulation_dtype))
        self.problem = problem.replace(query=None, key=None, value=None, bias=None, mask=None)
        self.like_query = self.heads_first and query.is_contiguous() and query.shape == self.shape

    def output(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, mask: Mask | None
    ) -> Tensor:
        """The output in the caller's layout."""
        seen, alive = self.prepared.seen(mask)
        if not self.gradient:
            output = self.new_output(query)
            self.write(query, key, value, bias, seen, output, 0)
            return output
        if not self.heads_first:
            query, key, value = (x.swapaxes(-3, -2) for x in (query, key, value))
        call = _Call(self, mask, seen, alive)
        result: Tensor = Attention.apply(call, query, key, value, bias, None, None)[0]
        return result if self.heads_first else result.swapaxes(-3, -2)

    def new_output(self, query: Tensor) -> Tensor:
        """What the kernels write into, in the caller's layout."""
        # Where it does the same, empty_like takes half the time.
        return torch.empty_like(query) if self.like_query else query.new_empty(self.shape)

    def write(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        seen: bytes,
        output: Tensor,
        lse: int,
    ) -> None:
        """Compute the output and, unless its address is 0, the log-sum-exp."""
        # fmt: off
        self.prepared.forward(
            query.data_ptr(), key.data_ptr(), value.data_ptr(),
            0 if bias is None else bias.data_ptr(), seen, output.data_ptr(), lse,
        )
        # fmt: on


class _Call:
    """What `Attention` asks for, of a call that is repeated."""

    def __init__(self, repeated: Repeated, mask: Mask | None, seen: bytes, alive: Any) -> None:
        self.mask, self.backend = mask, repeated.backend
        self._repeated, self._seen, self._alive = repeated, seen, alive

    def problem(self, tensors: Sequence[Tensor | None]) -> Problem:
        query, key, value, bias, *_ = tensors
        return self._repeated.problem.replace(
            query=query, key=key, value=value, bias=bias, mask=self.mask
        )

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, *_: None
    ) -> tuple[Tensor, Tensor]:
        call = self._repeated
        shape, dtype = call.lse
        output, lse = call.new_output(query), torch.empty(shape, dtype=dtype, device=query.device)
        call.write(query, key, value, bias, self._seen, output, lse.data_ptr())
        return output if call.heads_first else output.swapaxes(-3, -2), lse

    def backward(
        self,
        tensors: Sequence[Tensor | None],
        output: Tensor,
        lse: Tensor,
        d_output: Tensor | None,
        d_lse: Tensor | None,
        wanted: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        gradients = native.empty_gradients(tensors, wanted, lse)
        d_output = torch.zeros_like(output) if d_output is None else d_output
        query, key, value, bias, *_ = tensors
        d_query, d_key, d_value, d_bias, *_ = gradients
        self._repeated.prepared.backward(
            (query, key, value, bias),
            self._seen,
            output,
            lse,
            d_output,
            native.plain_lse(d_lse),
            (d_query, d_key, d_value, d_bias),
        )
        return native.in_types_of(tensors, gradients)


def _plain_keys() -> frozenset[int]:
    """What dispatches a tensor that is memory and no more, as PyTorch itself tells it."""
    with torch.inference_mode(False):  # whatever mode it is loaded in
        ordinary = torch.zeros(0, device="cpu")
    with torch.inference_mode():
        inference = torch.zeros(0, device="cpu")
    return frozenset(_dispatch_keys(tensor).raw_repr() for tensor in (ordinary, inference))


_LEAVES = (Tensor, torch.nn.Parameter)
_PLAIN = _plain_keys()
