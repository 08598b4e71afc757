"""Calls of one module that go on with a cache of keys, where only their read-outs are kept.

Each step's read-outs are asked for as of the whole, whose first query and first key lie elsewhere
than the step's, and are put together when the record is looked at. Of read-outs that no step can
tell its part of (pooled maps, threshold, top_queries, similarity, groups of queries or keys) only a
record of one call has any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regard.masks import Extent
from regard.operator import AttentionWeights
from regard.readouts import KINDS, TopK
from regard.recording.cache import Cache, marks
from regard.recording.call import Parts
from regard.recording.entry import in_a_row
from regard.recording.summary import Keywords, Summary, summarise

__all__ = ["Stepped"]

_OF_QUERIES = ("lse", "max_score", "max_weight", "entropy", "effective_keys")


@dataclass(frozen=True)
class _Step:
    """The read-outs of some queries, for keys from `start` on."""

    summary: Summary
    start: int


class Stepped:
    """The read-outs of a call, and of those that go on where it ended."""

    def __init__(self, first: Parts, summary: Summary, crosses: bool) -> None:
        held = marks(first.key)
        self._cache: Cache | None = Cache(first, held, held, crosses)
        self._steps = [_Step(summary, 0)]
        self._keys = first.extent.keys
        self._made: Summary | None = summary

    @property
    def steps(self) -> list[slice]:
        """The queries of each call."""
        return in_a_row(step.summary.shape[-2] for step in self._steps)

    @property
    def arrays(self) -> list[Any]:
        """All that is held, but for the marks of keys: they go when the watch ends."""
        return [array for step in self._steps for array in step.summary.arrays]

    def grow(self, parts: Parts, fits: Callable[[list[Any], Any], bool]) -> bool:
        """Take a call in, if it goes on from here; False if it does not, or grew too large.

        fits: whether so many arrays may be held instead of this record's.
        """
        assert self._cache is not None
        held = marks(parts.key)
        place = self._cache.place(parts, held)
        if place is None:
            return False
        row, first = self.steps[-1].stop, self._steps[0].summary
        kept = {name: keywords for name, (keywords, _) in first.kept.items()}
        wanted = _of_step(kept, row, place.start, parts.extent.keys)
        step = _Step(summarise(parts.operator(), wanted), place.start)
        if not fits([*self.arrays, *step.summary.arrays], self):
            return False
        self._steps.append(step)
        self._cache.take(place, held)
        self._keys, self._made = place.keys.shape[-2], None
        return True

    def close(self) -> None:
        """No call will come any more."""
        self._cache = None

    def operator(self) -> AttentionWeights | Summary:
        """The read-outs of all steps."""
        if self._made is None:
            self._made = self._joined()
        return self._made

    def _joined(self) -> Summary:
        first, names = self._steps[0].summary, self._steps[1].summary.kept
        shape = (*first.shape[:2], self.steps[-1].stop, self._keys)
        kept = {
            name: (keywords, self._one(name, keywords, shape))
            for name, (keywords, _) in first.kept.items()
            if name in names
        }
        seen = [step.summary.visible for step in self._steps]
        lead = np.broadcast_shapes(*(part.shape[:2] for part in seen))
        rows = [step.summary.shape[-2] for step in self._steps]
        wide = [np.broadcast_to(part, (*lead, n)) for part, n in zip(seen, rows, strict=True)]
        return Summary(shape, kept, np.concatenate(wide, axis=-1))

    def _one(self, name: str, keywords: Keywords, shape: tuple[int, ...]) -> Any:
        """One read-out of all steps."""
        results = [step.summary.kept[name][1] for step in self._steps]
        if name == "top_k":
            return TopK(
                torch.cat([top.weights for top in results], dim=2),
                torch.cat([_moved(top.keys, step.start)
                           for top, step in zip(results, self._steps, strict=True)], dim=2),
            )  # fmt: skip
        if name == "received":
            return self._received(results, keywords["reduce"], shape)
        if name == "distance_bins":
            extent = Extent(shape[:1], *shape[1:])
            count = KINDS[name](extent, "float32", **keywords).count  # type: ignore[attr-defined]
            results = [_resized(bins, count) for bins in results]
        return torch.cat(results, dim=2)

    def _received(self, results: list[Tensor], reduce: str, shape: tuple[int, ...]) -> Tensor:
        total = results[0].new_zeros(*shape[:2], shape[-1])
        for part, step in zip(results, self._steps, strict=True):
            there = total[..., step.start : step.start + part.shape[-1]]
            part = part[..., : there.shape[-1]]
            there.copy_(torch.maximum(there, part) if reduce == "max" else there + part)
        return total


def _of_step(kept: dict[str, Keywords], row: int, start: int, keys: int) -> dict[str, Keywords]:
    """What to ask of a step whose first query and key are `row` and `start` of the whole."""
    wanted: dict[str, Keywords] = {}
    for name, keywords in kept.items():
        if name in _OF_QUERIES or name == "top_k":
            wanted[name] = keywords
        elif name in ("distance", "distance_bins"):
            wanted[name] = {"offset": keywords["offset"] + row - start}
        elif name == "offsets":
            wanted[name] = {"offsets": np.asarray(keywords["offsets"]) + row - start}
        elif name == "mass" and np.ndim(keywords["keys"]) == 0:
            wanted[name] = {"keys": np.arange(start, start + keys) < keywords["keys"]}
        elif name == "received" and _of_all_queries(keywords):
            wanted[name] = keywords
    return wanted


def _of_all_queries(keywords: Keywords) -> bool:
    alone = keywords["queries"] is None and keywords["groups"] is None
    return alone and keywords["reduce"] != "mean"


def _moved(keys: Tensor, start: int) -> Tensor:
    """Keys of a step among all keys; −1 stays −1."""
    return torch.where(keys < 0, keys, keys + start)


def _resized(bins: Tensor, count: int) -> Tensor:
    """Other many bins: those of distances that do not occur are 0."""
    return torch.nn.functional.pad(bins, (0, count - bins.shape[-1]))
