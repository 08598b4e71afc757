"""torch.onnx.export: attention as ONNX's own operator, Attention of opset 23.

Masks become expressions in the graph, so that lengths may stay open. What the operator does not
have is said in its own terms: a sink is a key whose score is the sink, with a value of 0.
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

from regard.errors import BackendError
from regard.frontends.torch import masks, own
from regard.masks.positions import Causal
from regard.problem import Problem

__all__ = ["attention", "exporting"]

_OPSET = 23


def exporting() -> bool:
    """Whether torch.onnx.export is at work."""
    flags = sys.modules.get("torch.onnx._internal.exporter._flags")
    return flags is not None and flags._is_onnx_exporting


def attention(problem: Problem, backend: str | None) -> tuple[Tensor, Tensor]:
    """(output, lse); what is not used of them leaves no trace in the graph."""
    if problem.dropout_p:
        raise BackendError(
            f"dropout_p={problem.dropout_p} in torch.onnx.export",
            "no dropout, which ONNX's operator does not have",
            "call eval() on the model first",
        )
    return _output(problem), own.log_sum_exp(problem)


def _output(problem: Problem) -> Tensor:
    if problem.vector is not None:  # additive scores are no operator
        return own.output(problem)
    key, value = problem.key, problem.value
    if problem.value_heads != problem.key_heads:
        key = key.repeat_interleave(problem.extent.heads // problem.key_heads, dim=-3)
    is_causal, mask = _mask(problem)
    if problem.sinks is not None:
        key, value = (torch.nn.functional.pad(array, (0, 0, 0, 1)) for array in (key, value))
    *batch, heads, queries, _ = problem.query.shape
    count = problem.extent.flat_batch
    arrays = [array.reshape(count, *array.shape[-3:]) for array in (problem.query, key, value)]
    output = torch.onnx.ops.symbolic(
        "Attention",
        (*arrays, mask),
        {"is_causal": int(is_causal), "scale": problem.scale, "softcap": problem.softcap},
        dtype=problem.query.dtype,
        shape=(count, heads, queries, problem.value_size),
        version=_OPSET,
    )
    return output.reshape(*batch, heads, queries, problem.value_size)


def _mask(problem: Problem) -> tuple[bool, Tensor | None]:
    """(is_causal, attn_mask), boolean or added; the operator's is_causal is upper left."""
    mask, extent, plain = problem.mask, problem.extent, problem.bias is None
    plain = plain and problem.sinks is None
    if plain and isinstance(mask, Causal) and mask.align in (None, "upper_left"):
        return True, None
    if plain and mask is None:
        return False, None
    query = problem.query
    seen = None if mask is None else masks.seen(mask, extent, query.device)
    if plain:
        assert seen is not None
        return False, _four_dimensions(seen, extent.shape)
    added = query.new_zeros((1, 1)) if problem.bias is None else own.dense_bias(problem)
    added = added.to(query.dtype)
    if seen is not None:
        added = torch.where(seen, added, -torch.inf)
    if problem.sinks is not None:
        added = added.expand(*added.shape[:-3], *extent.shape[-3:])
        sink = problem.sinks.to(query.dtype)[:, None, None].expand(*added.shape[:-1], 1)
        added = torch.cat([added, sink], dim=-1)
    return False, _four_dimensions(added, (*extent.shape[:-1], added.shape[-1]))


def _four_dimensions(array: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What broadcasts to `shape`, its batch dimensions made one, its rows and columns whole."""
    array = array.expand(*array.shape[:-2], *shape[-2:])
    if len(shape) == 4 or array.ndim <= 3:
        return array
    array = array.expand(*shape[:-3], *array.shape[-3:])
    return array.reshape(math.prod(shape[:-3]), *array.shape[-3:])
