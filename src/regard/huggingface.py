"""Hugging Face models that attend with Regard: `attn_implementation="regard"`.

    import regard.huggingface
    model = AutoModel.from_pretrained(name, attn_implementation="regard")

Importing this registers the implementation and its mask function with transformers.
"""

from __future__ import annotations

import functools
import operator
import warnings
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.utils import output_capturing

from regard.errors import OptionError
from regard.layers.heads import attend, dense
from regard.masks import Mask, as_mask, causal, documents, window
from regard.torch.sdpa import autocast

__all__ = ["attention"]

_UPPER_LEFT = causal("upper_left")

# What models and their callers hand through that says nothing about attention, or says it twice.
_HARMLESS = {
    *("max_length_q", "max_length_k", "position_ids", "cache_position", "layer_idx", "use_cache"),
    *("past_key_values", "deterministic", "num_items_in_batch", "output_hidden_states"),
    *("output_router_logits", "return_dict", "logits_to_keep", "output_attentions"),
}
_NOT_OURS = {
    "cache": "a paged cache",
    "block_indices": "blocks of keys chosen by the model",
    "sinks": "sinks for every query",
}


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
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    indices: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers' models call: (B, L, H, E), and the weights (B, H, L, Lk) if asked for.

    Args:
        query: (B, H, L, D); key and value have K heads.
        attention_mask: boolean, True = may attend, or added to the scores; windows are in it.
            None: everything, or causal from the upper left where the module or `is_causal` says
            so, within sliding_window keys, the query's own among them.
        s_aux: sinks (H,).
        position_bias: added to the scores.
        cu_seq_lens_q, cu_seq_lens_k: where the sequences of a packed batch begin.
        indices: (B, L, n), the keys that a model has chosen for each query.

    The weights, before dropout, are computed where output_attentions=True asks for them: memory
    quadratic in length. A keyword that is not known warns, since it may change what is meant.

    Raises: regard.errors.OptionError for a paged cache and what else is not ours.
    """
    _check(rest)
    mask = None
    if attention_mask is None:
        is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        mask = _positions(is_causal, sliding_window, query.shape[2])
    elif not attention_mask.dtype.is_floating_point:
        mask = as_mask(attention_mask)
    by_position = is_causal and attention_mask is None
    masks = [mask, _packed(cu_seq_lens_q, cu_seq_lens_k, by_position), _chosen(indices, key)]
    shown = [mask for mask in masks if mask is not None]
    added = [position_bias]
    if attention_mask is not None and attention_mask.dtype.is_floating_point:
        added.append(attention_mask)
    biases = [bias for bias in added if bias is not None]
    query, key, value = autocast(query, key, value)
    query, key, value = (array.transpose(1, 2) for array in (query, key, value))
    output, weights = attend(
        query,
        key,
        value,
        mask=functools.reduce(operator.and_, shown) if shown else None,
        bias=sum(biases[1:], biases[0]) if biases else None,
        scale=scaling,
        softcap=softcap,
        sinks=s_aux,
        dropout_p=dropout,
        return_weights=_weights_wanted(rest),
    )
    output = output.unflatten(-1, (query.shape[2], -1))
    learned = query, key, s_aux, *biases
    return output, None if weights is None else dense(weights, learned).to(query.dtype)


def _check(rest: dict[str, Any]) -> None:
    for name, value in rest.items():
        if value is None or name in _HARMLESS:
            continue
        if name in _NOT_OURS:
            raise OptionError(
                f"{name}=…, {_NOT_OURS[name]}",
                "keys, values and masks as tensors",
                'load the model with attn_implementation="eager"',
            )
        warnings.warn(
            f'attn_implementation="regard" was given {name}=…, which it does not know and leaves '
            'out: compare with attn_implementation="eager" whether that changes the output',
            stacklevel=3,
        )


def _positions(is_causal: bool, sliding_window: int | None, queries: int) -> Mask | None:
    """What a query sees by its position; one query alone is the last one."""
    align = "upper_left" if queries > 1 else "lower_right"
    if sliding_window is not None:
        before = sliding_window - 1
        return window(before, 0 if is_causal else before, align)
    return _UPPER_LEFT if is_causal and queries > 1 else None


def _packed(starts: Tensor | None, key_starts: Tensor | None, is_causal: Any) -> Any:
    """That sequences which lie in one row do not see one another."""
    if starts is None or key_starts is None or starts is key_starts:
        bounds = starts if key_starts is None else key_starts
        return None if bounds is None else documents(cu_lengths=bounds)
    if is_causal and not torch.equal(starts, key_starts):
        raise OptionError(
            "cu_seq_lens_q and cu_seq_lens_k that differ, causal",
            "sequences with keys of their own",
        )
    ids, key_ids = (
        torch.arange(len(bounds) - 1).repeat_interleave(bounds.diff().cpu())[None]
        for bounds in (starts, key_starts)
    )
    return documents(ids, key_ids)


def _chosen(indices: Tensor | None, key: Tensor) -> Mask | None:
    """That a query sees the keys that were chosen for it."""
    if indices is None:
        return None
    seen = torch.zeros((*indices.shape[:2], key.shape[2]), dtype=torch.bool, device=key.device)
    return as_mask(seen.scatter(-1, indices.long(), True)[:, None])


def _weights_wanted(rest: dict[str, Any]) -> bool:
    """Whether output_attentions=True was said, here or to the model as a whole."""
    if rest.get("output_attentions"):
        return True
    collected = output_capturing._active_collector.get() or ()
    return any("attentions" in name for name in collected)


AttentionInterface.register("regard", attention)
AttentionMaskInterface.register("regard", sdpa_mask)
