"""One record: the weights of a module's call, and what is known of the call."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from regard.operator import AttentionWeights
from regard.recording.summary import Summary

__all__ = ["Entry", "Fixed", "Flow", "entries_of", "fixed", "in_a_row", "kind_of"]

# How modules are called whose queries and keys come from two texts.
_CROSS = re.compile(r"cross|enc_?dec|encoder_attn|encoder_attention|multihead_attn", re.I)
_PARTS = 3  # of a dotted name, the last ones: the attention and what is in it


class Source(Protocol):
    """Where the weights of a record come from: Fixed, or growing.Growing."""

    @property
    def steps(self) -> list[slice]:
        """The queries of each call."""

    @property
    def arrays(self) -> list[Any]:
        """All that is held."""

    def operator(self) -> AttentionWeights | Summary:
        """The weights."""


@dataclass(frozen=True)
class Fixed:
    """Weights that are there already, with the queries of each call."""

    weights: AttentionWeights | Summary
    steps: list[slice]

    @property
    def arrays(self) -> list[Any]:
        """All that is held."""
        weights = self.weights
        return weights.arrays if isinstance(weights, Summary) else list(weights._watched)

    def operator(self) -> AttentionWeights | Summary:
        """The weights."""
        return self.weights


def fixed(weights: AttentionWeights | Summary) -> Fixed:
    """Weights of one call."""
    return Fixed(weights, [slice(0, weights.shape[-2])])


def in_a_row(counts: Iterable[int]) -> list[slice]:
    """So many queries each, one slice after another."""
    ends = list(itertools.accumulate(counts))
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


@dataclass(frozen=True)
class Flow:
    """What went through attention.

    value: (B, K, Lk, E), detached, of the heads that were kept.
    output: as the model got it, with its gradient: (B, H, Lq, E), or (B, Lq, H, E) where `swapped`.
    heads: which heads of the output were kept; None: all.
    """

    value: Any
    output: Any
    swapped: bool = False
    heads: list[int] | None = None

    def of_heads(self, gradient: Any) -> Any:
        """(B, H, Lq, E) from a gradient of the output."""
        gradient = gradient.swapaxes(1, 2) if self.swapped else gradient
        return gradient if self.heads is None else gradient[:, self.heads]


@dataclass(frozen=True)
class Entry:
    """One record of a recording.

    name: the dotted name of the module. kind: "self" or "cross" attention, by that name.
    heads: the numbers of its heads, where some were chosen; None: all, from 0.
    flow: its values and output, where the watch was asked to keep them.
    """

    name: str
    kind: str
    source: Source
    heads: tuple[int, ...] | None = None
    flow: Flow | None = None

    @property
    def weights(self) -> AttentionWeights | Summary:
        """The operator, or the read-outs that were kept instead of it."""
        found = self.source.operator()
        found.name = self.name
        return found

    @property
    def steps(self) -> list[slice]:
        """The queries of each call that the record consists of."""
        return self.source.steps

    @property
    def arrays(self) -> list[Any]:
        """The arrays that it holds."""
        flow = [] if self.flow is None else [self.flow.value, self.flow.output]
        return [*self.source.arrays, *flow]

    @property
    def numbers(self) -> list[int]:
        """The number of each head."""
        return list(self.heads or range(self.weights.shape[-3]))


def kind_of(name: str) -> str:
    """Whether a module's attention is "self" or "cross", by the last parts of its name."""
    parts = [part for part in name.split(".") if not part.isdigit()][-_PARTS:]
    return "cross" if any(map(_CROSS.search, parts[1:] or parts)) else "self"


def entries_of(recording: Any) -> list[Entry]:
    """The entries of a recording, or of operators that are in none."""
    found = getattr(recording, "entries", None)
    if found is not None:
        return list(found)
    named = ((weights, weights.name or f"call {n}") for n, weights in enumerate(recording))
    return [Entry(name, kind_of(name), fixed(weights)) for weights, name in named]
