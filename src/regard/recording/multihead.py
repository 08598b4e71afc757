"""torch.nn.MultiheadAttention, read as a Call.

It projects inside of one function, and on its fast path inside of one kernel, so that no queries
and keys can be met on the way: they are projected a second time.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard.errors import ModelError
from regard.recording.call import Call

__all__ = [
    "FUNCTION",
    "fast",
    "read_encoder_layer",
    "read_function",
    "read_module",
    "read_slow_layer",
]

FUNCTION = functional.multi_head_attention_forward
_OF_FUNCTION = inspect.signature(FUNCTION)
_OF_MODULE = inspect.signature(nn.MultiheadAttention.forward)
_OF_LAYER = inspect.signature(nn.TransformerEncoderLayer.forward)


def fast(module: nn.Module) -> bool:
    """Whether a module may take a fast path of torch.nn, which a TorchFunctionMode would prevent.

    It must run what torch.nn defines: a subclass with a forward of its own attends otherwise.
    """
    kinds = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
    return getattr(module.forward, "__func__", None) in [kind.forward for kind in kinds]


def read_function(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """A call of F.multi_head_attention_forward; query (Lq, B, size) or (Lq, size)."""
    given = _OF_FUNCTION.bind(*args, **kwargs)
    given.apply_defaults()
    named = given.arguments
    if named["static_k"] is not None:
        raise NotImplementedError("multi-head attention with static_k")
    if named["use_separate_proj_weight"]:
        weights = named["q_proj_weight"], named["k_proj_weight"]
    else:
        weights = named["in_proj_weight"].chunk(3)[:2]
    biases = (None, None) if named["in_proj_bias"] is None else named["in_proj_bias"].chunk(3)[:2]
    return _projected(
        named["query"],
        named["key"],
        weights,
        biases,
        heads=named["num_heads"],
        bias_k=named["bias_k"],
        zero_key=named["add_zero_attn"],
        masks=(named["key_padding_mask"], named["attn_mask"]),
    )


def read_module(
    module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Call:
    """A call of the module."""
    given = _OF_MODULE.bind(module, *args, **kwargs)
    given.apply_defaults()
    named = given.arguments
    masks = named["key_padding_mask"], named["attn_mask"]
    return _of_module(module, named["query"], named["key"], masks)


def read_encoder_layer(
    layer: nn.TransformerEncoderLayer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Call:
    """A call of an encoder layer that took the fast path, which skips its self_attn module."""
    given = _OF_LAYER.bind(layer, *args, **kwargs)
    given.apply_defaults()
    states, padding = given.arguments["src"], given.arguments["src_key_padding_mask"]
    if states.is_nested:  # the encoder has packed a padded batch
        lengths = torch.tensor([len(part) for part in states.unbind()], device=states.device)
        states = states.to_padded_tensor(0.0)
        padding = torch.arange(states.shape[1], device=states.device) >= lengths[:, None]
    if layer.norm_first:
        states = layer.norm1(states)
    return _of_module(layer.self_attn, states, states, (padding, given.arguments["src_mask"]))


def read_slow_layer(layer: nn.TransformerEncoderLayer, *_: Any) -> Call:
    """An encoder layer that took no fast path, with no call seen in it. Raises: ModelError."""
    raise ModelError(f"{type(layer).__name__} attends in a way of its own")


def _of_module(
    module: nn.MultiheadAttention, query: Tensor, key: Tensor, masks: tuple[Any, Any]
) -> Call:
    if module.batch_first and query.ndim == 3:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    if module.in_proj_weight is None:
        weights = module.q_proj_weight, module.k_proj_weight
    else:
        weights = module.in_proj_weight.chunk(3)[:2]
    biases = (None, None) if module.in_proj_bias is None else module.in_proj_bias.chunk(3)[:2]
    return _projected(
        query,
        key,
        weights,
        biases,
        heads=module.num_heads,
        bias_k=module.bias_k,
        zero_key=module.add_zero_attn,
        masks=masks,
    )


def _projected(
    query: Tensor,
    key: Tensor,
    weights: tuple[Any, ...],
    biases: tuple[Any, ...],
    *,
    heads: int,
    bias_k: Tensor | None,
    zero_key: bool,
    masks: tuple[Tensor | None, Tensor | None],
) -> Call:
    """query (Lq, B, size) or (Lq, size); masks: (B, Lk) padding, and (Lq, Lk) or (B·H, Lq, Lk)."""
    if query.ndim == 2:
        query, key = query[:, None], key[:, None]
    batch = query.shape[1]
    query = functional.linear(query, weights[0], biases[0])
    key = functional.linear(key, weights[1], biases[1])
    surplus = int(bias_k is not None) + int(zero_key)
    if bias_k is not None:
        key = torch.cat([key, bias_k.expand(1, batch, -1)])
    if zero_key:
        key = torch.cat([key, key.new_zeros(1, *key.shape[1:])])
    padding, other = (_for_more_keys(mask, surplus) for mask in masks)
    terms = []
    if padding is not None:
        terms.append(padding.reshape(batch, 1, 1, padding.shape[-1]))
    if other is not None:
        terms.append(other if other.ndim == 2 else other.reshape(batch, heads, *other.shape[1:]))
    size = query.shape[-1] // heads
    query, key = (a.reshape(len(a), batch, heads, size).permute(1, 2, 0, 3) for a in (query, key))
    return Call(query, key, terms=tuple(terms))


def _for_more_keys(mask: Tensor | None, surplus: int) -> Tensor | None:
    """As a term (here True means hidden), with keys at the end that every query sees."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = ~mask
        return functional.pad(mask, (0, surplus), value=True) if surplus else mask
    return functional.pad(mask, (0, surplus)) if surplus else mask
