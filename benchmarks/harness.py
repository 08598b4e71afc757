"""What the benchmarks share: timing by turns, printed ratios, and JSON that grows case by case.

    python benchmarks/bench_NAME.py [--resume] [--seconds N] [TEXT …]

measures the cases whose label has every TEXT; each is written to benchmarks/results/ISA/NAME.json
as soon as it is measured, in place of what was there for it; ISA is the instruction set in use, of
which the figures are. --resume leaves out what this version of
the code was measured on already. After --seconds no further case is begun, and the status is 75 if
some are left.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import regard
from regard.cli.timing import Timing, alternate, summary
from regard.kernels import native

__all__ = [
    "UNFINISHED",
    "alternate",
    "chosen",
    "counted",
    "machine",
    "measure",
    "measured",
    "ratio_line",
    "record",
    "result",
    "save",
    "summary",
    "thread_counts",
    "using",
]

RESULTS = Path(__file__).parent / "results"
UNFINISHED = 75
_CODE = ("src", "native", "CMakeLists.txt", "benchmarks/*.py", "benchmarks/*.cpp")

Row = dict[str, Any]


@functools.cache
def commit() -> str:
    """The last commit that changed what is measured, or how."""
    root = Path(__file__).parents[1]
    command = ["git", "-C", str(root), "log", "-1", "--format=%h", "--", *_CODE]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def processor() -> str:
    """What it calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Processor, threads, versions and commit: what a figure is worth nothing without."""
    return {
        "processor": processor(),
        "isa": native.isa(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "regard": regard.__version__,
        "commit": commit(),
    }


def measure(name: str, cases: Mapping[str, Callable[[], Row]], arguments: Any = None) -> None:
    """Measure the cases that the command line chooses: labels, and calls that give their rows.

    arguments: a parser that has options of its own.
    """
    parser = arguments or argparse.ArgumentParser()
    parser.add_argument("texts", nargs="*", metavar="TEXT")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    chosen = parser.parse_args()
    begun, rows = time.monotonic(), measured(name)
    for label, call in cases.items():
        if not all(text in label for text in chosen.texts):
            continue
        if chosen.resume and rows.get(label, {}).get("commit") == commit():
            continue
        if time.monotonic() - begun > chosen.seconds:
            sys.exit(UNFINISHED)
        rows[label] = {"case": label, **call(), "commit": commit()}
        save(name, [rows[label] for label in cases if label in rows])


def chosen(cases: list[Any]) -> list[Any]:
    """Those cases whose first entry, the label, has every text of the command line in it."""
    return [case for case in cases if all(text in case[0] for text in sys.argv[1:])]


def result(name: str, isa: str | None = None) -> Path:
    """Where what was measured on an instruction set is written; None: the one in use."""
    return RESULTS / (isa or native.isa()) / f"{name}.json"


def measured(name: str, isa: str | None = None) -> dict[str, Row]:
    """The rows of `result` by their cases."""
    path = result(name, isa)
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return {row["case"]: row for row in rows}


def save(name: str, rows: Any) -> Path:
    """Write benchmarks/results/ISA/NAME.json."""
    path = result(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    return path


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


def record(label: str, dtype: str, times: dict[str, Timing]) -> Row:
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
