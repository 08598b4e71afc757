"""F.scaled_dot_product_attention, read as a Call."""

from __future__ import annotations

from inspect import signature
from typing import Any

from regard.masks import causal
from regard.recording.call import Call
from regard.torch.sdpa import FUNCTIONS, scaled_dot_product_attention

__all__ = ["FUNCTIONS", "read"]

_ARGUMENTS = signature(scaled_dot_product_attention)  # ours are PyTorch's


def read(*args: Any, **kwargs: Any) -> Call:
    """The call for PyTorch's arguments; is_causal is aligned to the upper left, as there."""
    given = _ARGUMENTS.bind(*args, **kwargs).arguments
    mask, scale = given.get("attn_mask"), given.get("scale")
    return Call(
        given["query"],
        given["key"],
        terms=() if mask is None else (mask,),
        mask=causal("upper_left") if given.get("is_causal") else None,
        scale=None if scale is None else float(scale),
        value=given["value"],
    )
