"""PyTorch's nested tensors: sequences of several lengths, one behind another in memory.

That is how packed batches lie too, so they are computed as one: one sequence without a batch, in
which each query sees an interval of keys, those of its own sequence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard import api
from regard.errors import ArrayTypeError, ShapeError
from regard.masks import Normal

__all__ = ["attention"]


# Any: PyTorch's types do not know what a nested tensor has.
def attention(query: Any, key: Any, value: Any, is_causal: bool, **options: Any) -> Tensor:
    """(B, H, lengths, E), nested as the query is.

    query, key, value: (B, H, lengths, size), nested, of the layout torch.jagged; keys and values of
        the same lengths. is_causal: from the upper left, within each sequence.

    Raises: regard.errors.ArrayTypeError, ShapeError.
    """
    _check(query, key, value)
    mask = Normal(_intervals(query, key, is_causal), None)
    packed = (tensor.values() for tensor in (query, key, value))
    output = api.attention(*packed, mask=mask, **options)
    result: Tensor = torch.nested.nested_tensor_from_jagged(
        output, offsets=query.offsets(), lengths=query.lengths(), jagged_dim=2
    )
    return result


def _intervals(query: Any, key: Any, is_causal: bool) -> Tensor:
    """(1, 1, Lq, 1, 2): where the keys of each query's sequence start and stop."""
    starts, key_starts = query.offsets(), key.offsets()
    i = torch.arange(query.values().shape[1], device=starts.device)
    sequence = torch.searchsorted(starts, i, right=True).clamp(max=len(starts) - 1) - 1
    within = i - starts[sequence]
    start = key_starts[sequence]
    stop = start + _lengths(key)[sequence]
    if is_causal:
        stop = torch.minimum(stop, start + within + 1)
    stop = torch.where(within < _lengths(query)[sequence], stop, start)
    return torch.stack([start, stop], dim=-1).int()[None, None, :, None]


def _lengths(tensor: Any) -> Tensor:
    given: Tensor | None = tensor.lengths()
    lengths: Tensor = tensor.offsets().diff() if given is None else given
    return lengths


def _check(query: Any, key: Any, value: Any) -> None:
    named = {"query": query, "key": key, "value": value}
    for name, tensor in named.items():
        if not tensor.is_nested or tensor.layout is not torch.jagged:
            raise ArrayTypeError(
                f"{name} {'nested, ' if tensor.is_nested else ''}of layout {tensor.layout}, where "
                "others are nested",
                "nested tensors of the layout torch.jagged",
                "make them with torch.nested.nested_tensor(…, layout=torch.jagged)",
            )
        if tensor.ndim != 4 or tensor._ragged_idx != 2:
            raise ShapeError(
                f"{name} nested, of shape {tuple(tensor.shape)}",
                "(B, H, lengths, size)",
                "transpose(1, 2) what is (B, lengths, H, size)",
            )
    count = {name: tensor.shape[0] for name, tensor in named.items()}
    if len(set(count.values())) > 1:
        raise ShapeError(
            ", ".join(f"{name} of {n} sequences" for name, n in count.items()), "as many of each"
        )
