"""How much memory does a call need beyond its arguments and results, and how does it grow?

    python benchmarks/bench_memory.py [--resume] [--seconds N] [TEXT …]     # see harness.py

Growth of the process's peak, each measurement in a process of its own, after a small call of the
same kind. What is measured includes the result (forward: the output; backward: three gradients, the
output and the log-sum-exp), which the rows tell apart. Writes benchmarks/results/ISA/memory.json.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from bench_readouts import peak
from harness import measure
from torch.nn.functional import scaled_dot_product_attention as sdpa

import regard

HEADS, SIZE = 8, 64
CALLS: dict[str, Callable[..., Any]] = {"regard": regard.attention, "torch": sdpa}
LENGTHS = {"forward": (2048, 8192), "backward": (1024, 2048, 4096)}


def grow(peer: str, way: str, dtype: str, length: int) -> float:
    """MiB."""
    kind = getattr(torch, dtype)

    def run(size: int) -> float:
        shape = (1, HEADS, size, SIZE)
        q, k, v = (torch.randn(shape, dtype=kind, requires_grad=way != "forward") for _ in range(3))
        before = peak()
        output = CALLS[peer](q, k, v)
        if way == "backward":
            torch.autograd.grad(output, (q, k, v), output.detach())
        return peak() - before

    run(64)
    return run(length)


def results(way: str, dtype: str, length: int) -> float:
    """MiB of what the call gives, or saves for its backward."""
    row = SIZE * getattr(torch, dtype).itemsize
    rows = HEADS * length * (row if way == "forward" else 4 * row + 4)
    return rows / 2**20


def row(label: str, way: str, dtype: str, length: int) -> dict[str, Any]:
    found: dict[str, Any] = {"results MiB": results(way, dtype, length)}
    for peer in CALLS:
        command = [sys.executable, __file__, "grow", peer, way, dtype, str(length)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[f"{peer} MiB"] = float(done.stdout)
    print(label, found, flush=True)
    return found


def main() -> None:
    if sys.argv[1:2] == ["grow"]:
        _, _, *what, length = sys.argv
        print(grow(*what, int(length)))
        return
    cases = {}
    for way, lengths in LENGTHS.items():
        for dtype in ("float32", "bfloat16"):
            for length in lengths:
                label = f"{way} {dtype} {length}"
                cases[label] = partial(row, label, way, dtype, length)
    measure("memory", cases)


if __name__ == "__main__":
    main()
