"""Tensors that are memory and no more, computed with right away: their calls can be repeated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.dispatch import Prepared

__all__ = ["Repeated", "signature"]

_is_compiling = torch.compiler.is_compiling
_modes = torch._C._len_torch_dispatch_stack
_trace = torch._C._get_tracing_state
_transform = torch._C._functorch.peek_interpreter_stack
_dispatch_keys = torch._C._dispatch_keys


def signature(query: Any, key: Any, value: Any) -> tuple[Any, ...] | None:
    """All that a call depends on but addresses and elements; None where they are not plain.

    Plain: in main memory, not standing for other tensors, and nobody traces, transforms or
    differentiates.
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
    if torch.is_grad_enabled() and (
        query.requires_grad or key.requires_grad or value.requires_grad
    ):
        return None
    # fmt: off
    return (
        query.dtype, query.shape, query.stride(),
        key.dtype, key.shape, key.stride(),
        value.dtype, value.shape, value.stride(),
    )
    # fmt: on


class Repeated:
    """A plain call for all tensors of its signature."""

    def __init__(self, query: Tensor, shape: tuple[int, ...], prepared: Prepared) -> None:
        self._write, self._shape = prepared.forward, shape
        self._like_query = query.is_contiguous() and query.shape == shape

    def output(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The output in the caller's layout."""
        # Where it does the same, empty_like takes half the time.
        output = torch.empty_like(query) if self._like_query else query.new_empty(self._shape)
        self._write(query.data_ptr(), key.data_ptr(), value.data_ptr(), output.data_ptr())
        return output


def _plain_keys() -> frozenset[int]:
    """What dispatches a tensor that is memory and no more, as PyTorch itself tells it."""
    ordinary = torch.zeros(0, device="cpu")
    with torch.inference_mode():
        inference = torch.zeros(0, device="cpu")
    return frozenset(_dispatch_keys(tensor).raw_repr() for tensor in (ordinary, inference))


_PLAIN = _plain_keys()
