"""PyTorch's attention function, on Regard's kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.bias import CausalBias, CausalVariant

from regard import api
from regard.errors import OptionError, ShapeError
from regard.masks import as_mask, causal
from regard.torch import nested

__all__ = ["FUNCTIONS", "autocast", "scaled_dot_product_attention", "split"]

# PyTorch's own function, under all its names.
FUNCTIONS = (
    torch.nn.functional.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
)
_CAST = (torch.float32, torch.float16, torch.bfloat16)  # what torch.autocast converts
# One object for all calls: a mask knows its own signature, by which calls are repeated.
_UPPER_LEFT, _LOWER_RIGHT = causal("upper_left"), causal("lower_right")


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` with its own signature and conventions.

    Memory is linear in length, whatever is asked for: a mask that is learned, dropout, values of
    another size, two or three dimensions.

    Nested tensors of the layout torch.jagged, (B, H, lengths, D), attend sequence by sequence, in
    one call and without padding.

    Args:
        query: (..., H, L, D), or (L, D).
        key: (..., H, S, D). Leading dimensions of size 1, or that are missing, are shared.
        value: (..., H, S, E).
        attn_mask: boolean, True = may attend; or added to the scores, in the type of query or
            float32; broadcasts to (..., H, L, S).
        dropout_p: probability with which a weight is dropped, below 1, in evaluation too; drawn
            from PyTorch's generator (but other weights than PyTorch drops).
        is_causal: query i sees key j when j <= i (upper left), and what attn_mask allows.
        scale: a number; default 1/√D.
        enable_gqa: key and value may have fewer heads, whose number divides H.

    Returns:
        (..., H, L, E). A query that sees nothing gets 0, as in PyTorch.

    Raises: regard.errors.ShapeError, DtypeError, OptionError (ValueErrors and TypeErrors).
    """
    query, key, value, attn_mask = autocast(query, key, value, attn_mask)
    if query.is_nested or key.is_nested or value.is_nested:
        if attn_mask is not None:
            raise OptionError(
                "attn_mask with nested tensors", "is_causal, or the documents of a packed sequence"
            )
        return nested.attention(query, key, value, is_causal, scale=scale, dropout_p=dropout_p)
    matrices = max(query.ndim, key.ndim, value.ndim) < 3
    if matrices or not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        query, key, value = _aligned(query, key, value, enable_gqa)
    mask: Any = _UPPER_LEFT if is_causal else None
    if attn_mask is None and not dropout_p:
        output = api.attention(query, key, value, mask=mask, scale=scale)
    else:
        seen, bias = split(attn_mask)
        if seen is not None:
            mask = seen if mask is None else as_mask(seen) & mask
        output = api.attention(
            query, key, value, mask=mask, bias=bias, scale=scale, dropout_p=dropout_p
        )
    result: Tensor = output[0] if matrices else output
    return result


def split(attn_mask: Tensor | None) -> tuple[Any, Tensor | None]:
    """(mask, bias): PyTorch's masks are one or the other."""
    if attn_mask is None:
        return None, None
    if isinstance(attn_mask, CausalBias):
        lower_right = attn_mask.variant == CausalVariant.LOWER_RIGHT
        return (_LOWER_RIGHT if lower_right else _UPPER_LEFT), None
    return (attn_mask, None) if attn_mask.dtype == torch.bool else (None, attn_mask)


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors as torch.autocast gives them to PyTorch's attention; as they are without it."""
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    wanted = torch.get_autocast_dtype(device)
    return tuple(
        tensor.to(wanted) if tensor is not None and tensor.dtype in _CAST else tensor
        for tensor in tensors
    )


def _aligned(
    query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Views with the same leading dimensions, at least one; with enable_gqa but for the heads."""
    rank = max(3, query.ndim, key.ndim, value.ndim)
    tensors = [tensor[(None,) * (rank - tensor.ndim)] for tensor in (query, key, value)]
    shared = -3 if enable_gqa else -2
    try:
        lead = np.broadcast_shapes(*(tuple(tensor.shape[:shared]) for tensor in tensors))
    except ValueError as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ShapeError(
            f"query, key and value of shapes {shapes}",
            "leading dimensions that broadcast",
            "pass enable_gqa=True where keys and values have fewer heads",
        ) from error
    query, key, value = (tensor.expand(*lead, *tensor.shape[shared:]) for tensor in tensors)
    return query, key, value
