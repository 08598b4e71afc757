"""What the benchmarks share: timing by turns, printed ratios, and JSON that names the machine."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import regard
from regard.cli.timing import Timing, alternate
from regard.kernels import native

__all__ = [
    "alternate",
    "chosen",
    "counted",
    "machine",
    "ratio_line",
    "record",
    "save",
    "thread_counts",
    "using",
]

RESULTS = Path(__file__).parent / "results"


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


def chosen(cases: list[Any]) -> list[Any]:
    """Those cases whose first entry, the label, has every text of the command line in it."""
    return [case for case in cases if all(text in case[0] for text in sys.argv[1:])]


def thread_counts() -> tuple[int, ...]:
    """One thread, and all."""
    return tuple(dict.fromkeys((1, torch.get_num_threads())))


def counted(threads: int) -> str:
    """ "1 thread", "2 threads"."""
    return f"{threads} thread{'s' if threads > 1 else ''}"


@contextmanager
def using(threads: int) -> Iterator[None]:
    """With so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def save(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    return path


def record(label: str, dtype: str, times: dict[str, Timing]) -> dict[str, Any]:
    """One row for `save`, printed as it comes: our median, each peer's, and the ratio."""
    print(ratio_line(label, times), flush=True)
    return {"case": label, "dtype": dtype, **{name: asdict(t) for name, t in times.items()}}


def ratio_line(label: str, times: dict[str, Timing], own: str = "regard") -> str:
    """Our median, each peer's, and how many times as long it takes."""
    ours = times[own].median
    others = (
        f"{name} {spent.median:9.3f} ms ({spent.median / ours:5.2f}x)"
        for name, spent in times.items()
        if name != own
    )
    return f"{label:<52} {own} {ours:9.3f} ms   " + "   ".join(others)
