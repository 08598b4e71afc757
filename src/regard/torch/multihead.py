"""PyTorch's multi-head attention module, on Regard's kernels."""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard.errors import DtypeError, OptionError
from regard.layers.heads import attend, dense
from regard.masks import as_mask, causal, keys

__all__ = ["MultiheadAttention"]

_UPPER_LEFT = causal("upper_left")


class MultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` with its own arguments and parameters, in linear memory.

    Its state dict is PyTorch's. A query that sees nothing gets the output projection of 0, and
    weights 0, where PyTorch gives NaN. Masks of several types may be combined.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(output, weights or None), shaped as PyTorch's; the arguments are PyTorch's.

        The masks: True = hidden, or added to the scores. is_causal says that attn_mask is causal.
        need_weights takes memory quadratic in length; where gradients are kept, it takes as long as
        values of size S would. The weights are those before dropout.

        Raises: regard.errors.OptionError, MaskError, ShapeError.
        """
        # What accelerate() gives this forward to is an nn.MultiheadAttention: only its attributes.
        batched = query.ndim == 3
        batch_first = self.batch_first or not batched
        if not batched:
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        projected = _project(self, query, key, value)
        query, key, value = _heads(self, projected, batch_first, batched)
        mask, bias = _masks(self, query, key_padding_mask, attn_mask, is_causal)
        output, seen = attend(
            query,
            key,
            value,
            mask=mask,
            bias=bias,
            dropout_p=self.dropout if self.training else 0.0,
            return_weights=need_weights,
        )
        output = self.out_proj(output if batch_first else output.transpose(0, 1))
        weights = None
        if seen is not None:
            weights = dense(seen, (query, key, bias)).to(query.dtype)
            weights = weights.mean(1) if average_attn_weights else weights
        if batched:
            return output, weights
        return output[0], None if weights is None else weights[0]


def _project(
    module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, ...]:
    """Queries, keys and values: one product where all three come from one tensor."""
    packed, biases = module.in_proj_weight, module.in_proj_bias
    if packed is not None and query is key and key is value:
        return functional.linear(query, packed, biases).chunk(3, dim=-1)
    if packed is None:
        weights = module.q_proj_weight, module.k_proj_weight, module.v_proj_weight
    else:
        weights = packed.chunk(3)
    parts = (None,) * 3 if biases is None else biases.chunk(3)
    return tuple(map(functional.linear, (query, key, value), weights, parts))


def _heads(
    module: nn.MultiheadAttention,
    projected: tuple[Tensor, ...],
    batch_first: bool,
    batched: bool,
) -> list[Tensor]:
    """(B, L, H, D) each, with the keys and values that the module adds."""
    tensors = [a if batched else a[None] for a in projected]
    tensors = [a if batch_first else a.transpose(0, 1) for a in tensors]
    if module.bias_k is not None and module.bias_v is not None:
        for n, added in ((1, module.bias_k), (2, module.bias_v)):
            tensors[n] = torch.cat([tensors[n], added.expand(len(tensors[n]), 1, -1)], dim=1)
    if module.add_zero_attn:
        tensors[1:] = [functional.pad(a, (0, 0, 0, 1)) for a in tensors[1:]]
    return [a.unflatten(-1, (module.num_heads, -1)) for a in tensors]


def _masks(
    module: nn.MultiheadAttention,
    query: Tensor,
    padding: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
) -> tuple[Any, Tensor | None]:
    """(mask, bias) of PyTorch's two masks, with the keys at the end that every query sees."""
    if is_causal and attn_mask is None:
        raise OptionError("is_causal=True without attn_mask", "the mask that it says is causal")
    for name, given in (("key_padding_mask", padding), ("attn_mask", attn_mask)):
        if given is not None and given.dtype != torch.bool and not given.is_floating_point():
            raise DtypeError(f"{name} of type {given.dtype}", "booleans, or numbers to be added")
    surplus = int(module.bias_k is not None) + int(module.add_zero_attn)
    seen: list[Any] = []
    added: list[Tensor] = []
    if padding is not None:
        padding = functional.pad(padding, (0, surplus))
        if padding.dtype == torch.bool:
            seen.append(keys(~padding))
        else:
            added.append(padding[:, None, None, :].to(query.dtype))
    if is_causal and not surplus:
        seen.append(_UPPER_LEFT)
    elif attn_mask is not None:
        if attn_mask.ndim == 3:
            attn_mask = attn_mask.unflatten(0, (len(query), module.num_heads))
        attn_mask = functional.pad(attn_mask, (0, surplus))
        if attn_mask.dtype == torch.bool:
            seen.append(as_mask(~attn_mask))
        else:
            added.append(attn_mask.to(query.dtype))
    mask = functools.reduce(operator.and_, seen) if seen else None
    return mask, functools.reduce(operator.add, added) if added else None
