"""What can this machine do at most?

    python benchmarks/bench_peaks.py [--resume] [--seconds N] [TEXT …]     # see harness.py

Each peak with one thread, and with all: work a second, in thousand millions. Writes
benchmarks/results/ISA/peaks.json.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import probe
import torch
from harness import alternate, counted, measure, thread_counts, using

MIB = 2**20


def peaks(limits: probe.Probe) -> dict[str, tuple[str, float, Callable[[], Any] | None]]:
    """By name: the unit, how much work, and a call that does it; None where the machine cannot."""
    return {
        "float32 multiply-adds in registers": ("GF/s", 4e9, limits.fma(4e9)),
        "bfloat16 tiles in registers": ("GF/s", 4e10, limits.amx(4e10)),
        "bfloat16 attention in the caches, D = 64": ("GF/s", 1e10, limits.fused(1e10 / 256, 64)),
        "bfloat16 attention in the caches, D = 128": ("GF/s", 1e10, limits.fused(1e10 / 512, 128)),
        "exponentials of float32": ("G/s", 1e8, limits.exp(1e8)),
        "reading 64 MiB": ("GB/s", 64.0 * MIB, limits.read([torch.ones(16 * MIB)])),
    }


def row(label: str, name: str, unit: str, work: float, call: Any, threads: int) -> dict[str, Any]:
    with using(threads):
        spent = alternate({name: call}, seconds=0.5)[name]
    rate = work / spent.median / 1e6
    print(f"{label:<60} {rate:10.1f} {unit}", flush=True)
    return {"rate": rate, "unit": unit, "time": asdict(spent)}


def main() -> None:
    limits = probe.load()
    if limits is None:
        sys.exit(1)
    cases = {}
    for name, (unit, work, call) in peaks(limits).items():
        for threads in thread_counts():
            label = f"{name}, {counted(threads)}"
            if call:
                cases[label] = partial(row, label, name, unit, work, call, threads)
            else:
                print(f"{label}: not on this machine")
    measure("peaks", cases)


if __name__ == "__main__":
    main()
