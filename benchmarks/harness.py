"""What the benchmarks share: timing peers by turns, and saying what machine it was."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import regard
from regard.kernels import native

RESULTS = Path(__file__).parent / "results"


def alternate(
    peers: Mapping[str, Callable[[], Any]], seconds: float = 1.5, least: int = 5
) -> dict[str, dict[str, float]]:
    """Milliseconds of each peer, median and quartiles; the peers take turns after a warm-up."""
    for call in peers.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in peers}
    start = time.perf_counter()
    while min(map(len, times.values())) < least or time.perf_counter() - start < seconds:
        for name, call in peers.items():
            before = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - before) * 1e3)
    return {name: _summary(spent) for name, spent in times.items()}


def _summary(spent: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(spent, n=4)
    return {"median": middle, "low": low, "high": high, "runs": len(spent)}


def machine() -> dict[str, Any]:
    """Processor, threads, versions and commit: what a figure is worth nothing without."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "processor": platform.machine(),
        "isa": native.isa(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "regard": regard.__version__,
        "commit": commit.stdout.strip(),
    }


def save(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    return path


def ratio_line(label: str, times: dict[str, dict[str, float]], own: str = "regard") -> str:
    """One printed row: our median, each peer's, and the ratio."""
    ours = times[own]["median"]
    others = (
        f"{name} {spent['median']:9.2f} ms ({spent['median'] / ours:5.2f}x)"
        for name, spent in times.items()
        if name != own
    )
    return f"{label:<44} {own} {ours:9.2f} ms   " + "   ".join(others)
