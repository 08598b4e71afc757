"""Timing peers by turns: on a shared machine only ratios measured side by side mean anything."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Timing", "alternate", "summary"]


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call: the median, the lower and the upper quartile of so many runs."""

    median: float
    low: float
    high: float
    runs: int


def alternate(
    peers: Mapping[str, Callable[[], Any]], seconds: float = 1.5, least: int = 5
) -> dict[str, Timing]:
    """Time each peer; after one warm-up call they take turns for so many seconds, at least 2."""
    for call in peers.values():
        call()
    spent: dict[str, list[float]] = {name: [] for name in peers}
    start, turns = time.perf_counter(), 0
    while turns < max(least, 2) or time.perf_counter() - start < seconds:
        for name, call in peers.items():
            before = time.perf_counter()
            call()
            spent[name].append((time.perf_counter() - before) * 1e3)
        turns += 1
    return {name: summary(times) for name, times in spent.items()}


def summary(times: list[float]) -> Timing:
    """Of milliseconds, two at least."""
    low, middle, high = statistics.quantiles(times, n=4)
    return Timing(middle, low, high, len(times))
