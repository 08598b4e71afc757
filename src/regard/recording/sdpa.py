"""F.scaled_dot_product_attention, read as a Call."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from regard.masks import causal
from regard.recording.call import Call

__all__ = ["FUNCTIONS", "read"]

FUNCTIONS = (
    functional.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
)


def read(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Call:
    """The call for PyTorch's arguments; is_causal is aligned to the upper left, as there."""
    return Call(
        query,
        key,
        terms=() if attn_mask is None else (attn_mask,),
        mask=causal("upper_left") if is_causal else None,
        scale=None if scale is None else float(scale),
        value=value,
    )
