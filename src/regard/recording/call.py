"""One call of attention as a model made it, and the operator of its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regard import api
from regard.errors import ModelError, OptionError
from regard.masks import EVERYTHING, Extent, Mask, Normal, Visibility, flatten, visibility
from regard.operator import AttentionWeights
from regard.recording.entry import Flow
from regard.recording.terms import Terms
from regard.score import Additive

__all__ = ["Call", "Found", "Parts", "flow", "kept", "parts"]


@dataclass(frozen=True)
class Found:
    """Read-outs that came with the output of a call: their keywords, and the results, by name."""

    wanted: dict[str, dict[str, Any]]
    results: dict[str, Any]


@dataclass(frozen=True)
class Call:
    """What a model gave to attention, and what it got.

    query: (B, H, Lq, D), or with more or fewer leading dimensions, or none.
    key: (B, K, Lk, D), alike.
    terms: arrays that broadcast to (B, H, Lq, Lk): boolean ones say what may be seen (True), others
        are added to the scores, and hide where they are −∞ or near the smallest number there is.
    mask: what may be seen on top of that.
    score: how queries and keys are compared, which are projected already.
    value, output: (B, K, Lk, E) and (B, H, Lq, E) where they are known, the output as (B, Lq, H, E)
        if `swapped`; they do not matter for the weights.
    found: read-outs of all heads, where they were made with the output.
    """

    query: Tensor
    key: Tensor
    terms: tuple[Tensor, ...] = ()
    mask: Mask | None = None
    scale: float | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    score: str | Additive = "dot"
    value: Tensor | None = None
    output: Tensor | None = None
    swapped: bool = False
    found: Found | None = None

    def replace(self, **changes: Any) -> Call:
        """The same call with some fields changed."""
        return dataclasses.replace(self, **changes)

    def rows(self, queries: list[int]) -> Call:
        """The same call for some queries only; for one without a mask."""
        terms = tuple(t if t.shape[-2] == 1 else t[..., queries, :] for t in self.terms)
        return self.replace(query=self.query[..., queries, :], terms=terms)


@dataclass(frozen=True)
class Parts:
    """What the weights of a call are made of: four dimensions (B, H, Lq, Lk), detached."""

    query: Tensor
    key: Tensor
    mask: Mask | None
    bias: Tensor | None
    scale: float | None
    softcap: float | None
    sinks: Tensor | None
    score: str | Additive

    @property
    def extent(self) -> Extent:
        """The sizes of the weights."""
        batch, heads, queries, _ = self.query.shape
        return Extent((batch,), heads, queries, self.key.shape[-2])

    @property
    def seen(self) -> Visibility:
        """What each query sees, in the normal form of masks."""
        return EVERYTHING if self.mask is None else visibility(self.mask, self.extent)

    @property
    def tensors(self) -> list[Tensor]:
        """The arrays that have a length in their shape."""
        return [self.query, self.key, *([] if self.bias is None else [self.bias])]

    def replace(self, **changes: Any) -> Parts:
        """The same parts with some changed."""
        return dataclasses.replace(self, **changes)

    def kept(self) -> Parts:
        """Queries and keys as a record may hold them: copied where `kept` says so."""
        return self.replace(query=kept(self.query), key=kept(self.key))

    def operator(self) -> AttentionWeights:
        """The weights, referring to the parts. Raises: what `regard.weights` raises."""
        made: AttentionWeights = api.weights(
            self.query,
            self.key,
            mask=self.mask,
            bias=self.bias,
            scale=self.scale,
            softcap=self.softcap,
            sinks=self.sinks,
            score=self.score,
        )
        return made


def flow(call: Call, heads: Sequence[int] | None) -> Flow | None:
    """The values and output of a call, of some heads if they are given; None if not known."""
    value, output = call.value, call.output
    if value is None or output is None or value.ndim != 4 or output.ndim != 4:
        return None
    value, chosen = value.detach(), None
    if heads is not None:
        count = output.shape[2 if call.swapped else 1]
        chosen = [head % count for head in heads]
        value = value[:, [head // (count // value.shape[1]) for head in chosen]]
    return Flow(value, output, call.swapped, chosen)


def parts(call: Call, terms: Terms, heads: Sequence[int] | None = None) -> Parts:
    """The parts of a call, of some heads if they are given.

    Raises: ModelError for tensors without numbers; OptionError for heads that are not there.
    """
    _check_readable(call.query)
    call = _of_heads(_four_dimensional(call), heads)
    mask, bias = terms.normalised(call.terms, (*call.query.shape[:-1], call.key.shape[-2]))
    if call.mask is not None:
        mask = call.mask if mask is None else mask & call.mask
    query, key = call.query.detach(), call.key.detach()
    common = torch.promote_types(query.dtype, key.dtype)  # autocast may not have made them one yet
    if bias is not None and bias.dtype not in (common, torch.float32):
        bias = bias.to(torch.float32)
    sinks = None if call.sinks is None else call.sinks.detach().to(common)
    query, key, score = query.to(common), key.to(common), call.score
    if isinstance(score, Additive):
        score = dataclasses.replace(score, v=score.v.detach().to(common))
    return Parts(query, key, mask, bias, call.scale, call.softcap, sinks, score)


def _check_readable(query: Tensor) -> None:
    if query.device.type == "meta":
        raise ModelError("tensors on the meta device, which hold no numbers")
    if query.is_nested:
        raise ModelError("nested tensors")
    if torch._C._functorch.is_functorch_wrapped_tensor(query):
        raise ModelError("tensors inside torch.func.vmap or grad")


def _four_dimensional(call: Call) -> Call:
    """Leading dimensions broadcast and made (B, H): missing ones are 1, surplus ones join B."""
    query, key = call.query, call.key
    lead = np.broadcast_shapes(query.shape[:-3], key.shape[:-3])
    if query.ndim > 3 and query.shape[-3] == 1:  # one query head for all key heads
        query = query.expand(*query.shape[:-3], key.shape[-3], *query.shape[-2:])
    query = query.expand(*lead, *query.shape[-3:])
    key = key.expand(*lead, *key.shape[-3:])
    query, key = (a.reshape((1,) * (4 - a.ndim) + tuple(a.shape)) for a in (query, key))
    if query.ndim == 4:
        return call.replace(query=query, key=key)
    extent = Extent(tuple(lead), query.shape[-3], query.shape[-2], key.shape[-2])
    return call.replace(
        query=query.flatten(0, -4),
        key=key.flatten(0, -4),
        terms=tuple(_flat_lead(term, tuple(lead)) for term in call.terms),
        mask=_normal(call.mask, extent),
    )


def _flat_lead(term: Tensor, lead: tuple[int, ...]) -> Tensor:
    """A term of a call with several batch dimensions, for the one that they are joined into."""
    if term.ndim <= 3 or all(size == 1 for size in term.shape[:-3]):
        return term.reshape(tuple(term.shape[-4:]) if term.ndim <= 3 else (1, *term.shape[-3:]))
    return term.expand(*lead, *term.shape[-3:]).flatten(0, -4)


def _of_heads(call: Call, heads: Sequence[int] | None) -> Call:
    """The call for some query heads, each with the key head that it reads."""
    if heads is None:
        return call
    count, key_heads = call.query.shape[1], call.key.shape[1]
    wrong = [head for head in heads if not -count <= head < count]
    if wrong:
        raise OptionError(f"heads={list(heads)} where attention has {count} heads")
    chosen = [head % count for head in heads]
    return call.replace(
        query=call.query[:, chosen],
        key=call.key[:, [head // (count // key_heads) for head in chosen]],
        terms=tuple(
            term[..., chosen, :, :] if term.ndim >= 3 and term.shape[-3] == count > 1 else term
            for term in call.terms
        ),
        mask=_normal(call.mask, _extent(call), chosen),
        sinks=None if call.sinks is None else call.sinks[chosen],
        score=call.score if isinstance(call.score, str) else call.score.of_heads(chosen),
    )


def _extent(call: Call) -> Extent:
    batch, heads, queries, _ = call.query.shape
    return Extent((batch,), heads, queries, call.key.shape[-2])


def _normal(mask: Mask | None, extent: Extent, heads: list[int] | None = None) -> Mask | None:
    """A mask that holds for one batch dimension and for these heads, from one for `extent`."""
    if mask is None or (heads is not None and not flatten(mask)[1]):
        return mask
    chosen = np.arange(extent.heads) if heads is None else np.asarray(heads)
    seen = visibility(mask, extent).select(np.arange(extent.flat_batch), chosen)
    return Normal(seen.intervals, seen.dense)


def kept(array: Tensor) -> Tensor:
    """The tensor, or a copy of it where it is likely to be overwritten.

    PyTorch counts changes in place, and an operator refuses to work after one. Two cases need a
    copy: inference mode counts nothing, and what was written in place before (a static key cache)
    will be written in place again, which would make every earlier step's operator stale.
    """
    if array.is_inference() or array._version:
        return array.clone()
    return array
