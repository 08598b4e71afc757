"""Hugging Face models that attend with Regard: `attn_implementation="regard"`.

    import regard.huggingface
    model = AutoModel.from_pretrained(name, attn_implementation="regard")

Importing this registers the implementation and its mask function with transformers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from regard import api
from regard.errors import OptionError
from regard.masks import causal
from regard.torch.sdpa import autocast

__all__ = ["attention"]


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """What transformers' models call: (B, L, H, E), and no weights.

    query is (B, H, L, D), key and value have K heads. attention_mask is boolean, True = may attend,
    or added to the scores; None: everything, or causal from the upper left where the module or
    `is_causal` says so. s_aux are sinks (H,). Windows are in the mask.
    """
    if rest.get("cache") is not None:
        raise OptionError("a paged cache", "keys and values as tensors")
    mask: Any = None
    biases = [bias for bias in (position_bias,) if bias is not None]
    if attention_mask is None:
        is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        # One query alone is the last one: it sees every key that there is.
        mask = causal("upper_left") if is_causal and query.shape[2] > 1 else None
    elif attention_mask.dtype.is_floating_point:
        biases.append(attention_mask)
    else:
        mask = attention_mask
    query, key, value = autocast(query, key, value)
    output = api.attention(
        *(array.transpose(1, 2) for array in (query, key, value)),
        mask=mask,
        bias=sum(biases[1:], biases[0]) if biases else None,
        scale=scaling,
        softcap=softcap,
        sinks=s_aux,
        dropout_p=dropout,
        layout="BLHD",
    )
    return output, None


AttentionInterface.register("regard", attention)
AttentionMaskInterface.register("regard", sdpa_mask)
